//! `docs/dependencies.md` says what is so: which crates our own stand on, with which features, what these bring, and how
//! many that makes.

use anyhow::{Context, Result, ensure};
use spa_tests::finish;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use toml::{Table, Value};

const PAGE: &str = include_str!("../../docs/dependencies.md");

/// By their directories. The last two are the programs.
const SHIPPED: [&str; 5] = ["spa-proto", "keys", "man", "spa-client", "spa-server"];
const PROGRAMS: [&str; 2] = ["spa-client", "spa-server"];
const TESTS: &str = "tests";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest(directory: &str) -> Result<Table> {
    let path = root().join(directory).join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.parse().with_context(|| path.display().to_string())
}

/// Others' crates, and the features that are asked of them: `-default`, where those are off.
type Crates = BTreeMap<String, BTreeSet<String>>;

/// What a crate of ours declares as `kind` of dependency, on any system.
fn declared(directory: &str, kind: &str) -> Result<Crates> {
    let (manifest, workspace) = (manifest(directory)?, manifest(".")?);
    let shared = workspace.get("workspace").and_then(|it| it.get("dependencies"));
    let targets = manifest.get("target").and_then(Value::as_table);
    let everywhere = [manifest.get(kind)].into_iter();
    let some = targets.into_iter().flat_map(Table::values).map(|target| target.get(kind));
    let mut crates = Crates::new();
    for table in everywhere.chain(some).flatten() {
        for (name, own) in table.as_table().context("dependencies are a table")? {
            let shared =
                shared.and_then(|it| it.get(name)).filter(|_| own.get("workspace").is_some());
            if [Some(own), shared].into_iter().flatten().any(|it| it.get("path").is_some()) {
                continue;
            }
            let features = crates.entry(name.clone()).or_default();
            for place in [Some(own), shared].into_iter().flatten() {
                if place.get("default-features") == Some(&Value::Boolean(false)) {
                    features.insert("-default".into());
                }
                let named = place.get("features").and_then(Value::as_array);
                features
                    .extend(named.into_iter().flatten().filter_map(Value::as_str).map(Into::into));
            }
        }
    }
    Ok(crates)
}

/// The text from a heading to the next one of the same level.
fn section<'a>(page: &'a str, heading: &str) -> Result<&'a str> {
    let (_, after) = page
        .split_once(&format!("\n## {heading}\n"))
        .with_context(|| format!("there is no section {heading:?}"))?;
    Ok(after.split_once("\n## ").map_or(after, |(section, _)| section))
}

/// The first two cells of each row of the tables of a text, and of their headings.
fn rows(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|');
        Some((cells.next()?, cells.next()?))
    })
}

/// What stands in backticks in a text.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(Into::into).collect()
}

/// Which crates, with which features, the page names as those of a crate of ours.
fn named(page: &str, directory: &str) -> Result<Crates> {
    let rows = rows(section(page, directory)?);
    let crates = rows.flat_map(|(names, features)| {
        quoted(names).into_iter().map(|name| (name, quoted(features))).collect::<Vec<_>>()
    });
    Ok(crates.collect())
}

#[test]
fn every_direct_dependency_is_named_with_its_features_and_no_other() -> Result<()> {
    for directory in SHIPPED {
        assert_eq!(named(PAGE, directory)?, declared(directory, "dependencies")?, "{directory}");
    }
    // The control: a crate that is gone, one that is not named, and another feature would be seen.
    for (was, wrong) in [
        ("| `hmac` |", "| `hmac`, `md5` |"),
        ("| `hmac` |", "| hmac |"),
        ("| `hmac` | `-default`, `zeroize` |", "| `hmac` | `-default` |"),
    ] {
        let page = PAGE.replacen(was, wrong, 1);
        ensure!(page != PAGE, "{was} is not there");
        assert_ne!(named(&page, "spa-proto")?, declared("spa-proto", "dependencies")?, "{wrong}");
    }
    Ok(())
}

#[test]
fn every_dependency_of_tests_is_named_and_no_other() -> Result<()> {
    let mut ours = BTreeSet::new();
    for directory in [&SHIPPED[..], &[TESTS]].concat() {
        let kinds = ["dependencies", "dev-dependencies"];
        for kind in kinds.into_iter().filter(|kind| directory == TESTS || *kind != "dependencies") {
            let crates = declared(directory, kind)?.into_keys();
            ours.extend(crates.map(|name| (name, directory.to_owned())));
        }
        let at_build = declared(directory, "build-dependencies")?;
        ensure!(at_build.is_empty(), "{directory} has build dependencies: {at_build:?}");
    }
    let mut told = BTreeSet::new();
    for (names, of) in rows(section(PAGE, "Tests and benchmarks")?) {
        for name in quoted(names) {
            told.extend(quoted(of).into_iter().map(|of| (name.clone(), of)));
        }
    }
    assert_eq!(told, ours);
    Ok(())
}

/// Others' crates in what cargo builds of one of ours over such edges: name and version.
fn packages(package: &str, edges: &str, more: &[&str]) -> Result<BTreeSet<(String, String)>> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--package", package, "--edges", edges]).args(more).current_dir(root());
    let text = finish(&mut tree)?.ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(" v"));
    let others = lines.filter(|(name, _)| !name.starts_with("spa-"));
    let packages: BTreeSet<_> = others
        .map(|(name, rest)| (name.into(), rest.split(' ').next().unwrap_or_default().into()))
        .collect();
    ensure!(packages.iter().any(|(name, _)| name == "clap"), "what {package} is built from");
    Ok(packages)
}

fn names(packages: &BTreeSet<(String, String)>) -> BTreeSet<String> {
    packages.iter().map(|(name, _)| name.clone()).collect()
}

/// The crates in the second column of the tables of a section, one of several versions or not.
fn brought(heading: &str) -> Result<BTreeSet<String>> {
    let cells = rows(section(PAGE, heading)?).flat_map(|(_, crates)| quoted(crates));
    Ok(cells.map(|it| it.split('@').next().unwrap_or_default().to_owned()).collect())
}

const LINKED: &str = "normal,no-proc-macro";

#[test]
fn all_that_the_programs_are_built_from_is_named_and_counted() -> Result<()> {
    let mut at_build = BTreeSet::new();
    for program in PROGRAMS {
        let all = packages(program, LINKED, &[])?;
        let mut ours = declared(program, "dependencies")?;
        for directory in ["spa-proto", "keys", "man"] {
            ours.extend(declared(directory, "dependencies")?);
        }
        let is_direct = |name: &String| ours.contains_key(name);
        let heading = format!("What is in {program}");
        let transitive: BTreeSet<_> = names(&all).into_iter().filter(|it| !is_direct(it)).collect();
        assert_eq!(brought(&heading)?, transitive, "{program}");

        let direct = all.iter().filter(|(name, _)| is_direct(name)).count();
        let text = section(PAGE, &heading)?;
        for told in [
            format!("In `{program}` are {} crates of others", all.len()),
            format!("{direct} are those above"),
            format!("these bring {} more", all.len() - direct),
        ] {
            ensure!(text.contains(&told), "{program}: it should say {told:?}");
        }
        let with_builders = packages(program, "normal,build", &[])?;
        at_build.extend(names(&with_builders.difference(&all).cloned().collect()));
    }
    assert_eq!(brought("What runs while they are built")?, at_build);

    let alone = packages("spa-client", LINKED, &["--no-default-features"])?.len();
    let told = format!("Without the secret service it is {alone} in all");
    ensure!(PAGE.contains(&told), "it should say {told:?}");
    Ok(())
}

/// What `make sbom` has written for a program, as part of `make test`.
fn materials(program: &str) -> Result<Vec<serde_json::Value>> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("sbom").join(format!("{program}.cdx.json"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{}: run `make sbom`", path.display()))?;
    let list: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(list["bomFormat"] == "CycloneDX" && list["metadata"]["component"]["name"] == program);
    ensure!(
        !text.contains(&root().canonicalize()?.display().to_string()),
        "a path of this machine"
    );
    list["components"].as_array().cloned().context("it lists nothing")
}

#[test]
fn the_lists_of_materials_have_each_crate_with_checksum_and_licence() -> Result<()> {
    let lock: Table = fs::read_to_string(root().join("Cargo.lock"))?.parse()?;
    let mut checksums = BTreeMap::new();
    for package in lock.get("package").and_then(Value::as_array).context("no packages")? {
        let word = |key: &str| package.get(key).and_then(Value::as_str).unwrap_or_default();
        checksums.insert((word("name"), word("version")), word("checksum"));
    }
    for program in PROGRAMS {
        let mut listed = BTreeSet::new();
        for one in materials(program)? {
            let word = |key: &str| one[key].as_str().unwrap_or_default();
            let (name, version) = (word("name"), word("version"));
            if name.starts_with("spa-") {
                continue;
            }
            let locked = checksums.get(&(name, version)).copied();
            let hash = one["hashes"][0]["content"].as_str();
            ensure!(locked.is_some() && hash == locked, "{name} {version}: {hash:?}, {locked:?}");
            let licences = one["licenses"].as_array().map(Vec::len);
            ensure!(licences.is_some_and(|count| count > 0), "{name} has no licence");
            listed.insert((name.to_owned(), version.to_owned()));
        }
        // Features are those of both programs at once, so there may be more.
        let missing = &packages(program, "normal", &[])? - &listed;
        ensure!(missing.is_empty(), "{program}: {missing:?}");
    }
    Ok(())
}
