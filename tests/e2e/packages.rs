//! The Debian packages hold what `make install` installs, each file once, and every unit is known to the
//! scripts that dpkg runs. What these do on a clean Debian is in `clean.rs`.

use anyhow::{Context, Result, ensure};
use spa_tests::{finish, our_binary, program, workspace};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The packages of the programs of this build.
struct Packed {
    target: PathBuf,
    debs: [PathBuf; 2],
    directory: TempDir,
}

impl Packed {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let target = directory.path().join("target");
        fs::create_dir_all(target.join("release"))?;
        for name in ["spa-server", "spa-client"] {
            fs::copy(our_binary(name)?, target.join("release").join(name))?;
        }
        let debs = pack(&target, &directory.path().join("first"))?;
        Ok(Self { target, debs, directory })
    }
}

/// Makes the packages; gives back the server's and the client's.
fn pack(target: &Path, out: &Path) -> Result<[PathBuf; 2]> {
    let mut command = Command::new(workspace()?.join("packaging/debian/pack"));
    command.arg(target).arg(out).env("DEB_COMPRESSION", "none");
    let printed = finish(&mut command)?.ok()?;
    let debs: Vec<PathBuf> = printed.lines().map(Into::into).collect();
    debs.try_into().ok().with_context(|| format!("not two packages: {printed}"))
}

/// The files below a directory: their modes, and what is in them.
fn files(root: &Path) -> Result<BTreeMap<String, (String, Vec<u8>)>> {
    let mut find = Command::new(program("find")?);
    find.arg(root).args(["-type", "f", "-printf", "%P %m\n"]);
    let listed = finish(&mut find)?.ok()?;
    let files = listed.lines().map(|line| {
        let (path, mode) = line.rsplit_once(' ').context("find prints a path and a mode")?;
        Ok((path.to_owned(), (mode.to_owned(), fs::read(root.join(path))?)))
    });
    files.collect()
}

fn unpack(deb: &Path, into: &Path) -> Result<()> {
    finish(Command::new(program("dpkg-deb")?).arg("--raw-extract").arg(deb).arg(into))?.ok()?;
    Ok(())
}

/// That what the pages of a directory link to is there.
fn ensure_links_lead_somewhere(directory: &Path) -> Result<()> {
    let mut links = 0;
    for entry in fs::read_dir(directory)? {
        let page = entry?.path();
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&page)?;
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|it| !it.is_empty() && !it.starts_with("https://")) {
            links += 1;
            let to = directory.join(target);
            ensure!(to.is_file(), "{} links to {target}", page.display());
        }
    }
    ensure!(links > 10, "{} has {links} links", directory.display());
    Ok(())
}

fn gunzipped(path: &Path) -> Result<Vec<u8>> {
    let text = finish(Command::new(program("gzip")?).arg("-dc").arg(path))?.ok()?;
    Ok(text.into_bytes())
}

#[test]
fn the_packages_hold_what_is_installed() -> Result<()> {
    let packed = Packed::new()?;
    let directory = packed.directory.path();
    let installed = directory.join("installed");
    let mut make = Command::new(program("make")?);
    make.arg("-C").arg(workspace()?).args(["install", "PREFIX=/usr"]);
    make.arg(format!("DESTDIR={}", installed.display())).env("CARGO_TARGET_DIR", &packed.target);
    finish(&mut make)?.ok()?;

    let mut found = BTreeMap::new();
    for (deb, name) in packed.debs.iter().zip(["spa-server", "spa-client"]) {
        let root = directory.join(name);
        unpack(deb, &root)?;
        for (path, (mode, mut content)) in files(&root)? {
            // What dpkg wants, and what every package has a copy of.
            if path.starts_with("DEBIAN/") || path.starts_with(&format!("usr/share/doc/{name}/")) {
                continue;
            }
            let mut plain = path.clone();
            if let Some(page) = path.strip_suffix(".gz") {
                content = gunzipped(&root.join(&path))?;
                page.clone_into(&mut plain);
            }
            let before = found.insert(plain, (mode, content));
            ensure!(before.is_none(), "{path} is in both packages");
        }
        for file in ["copyright", "changelog.gz", "changelog.Debian.gz", "crates", "manual.md"] {
            let of_both = root.join("usr/share/doc").join(name).join(file);
            let is_there = of_both.is_file() || file == "manual.md" && name == "spa-server";
            ensure!(is_there, "{} is missing", of_both.display());
        }
    }
    for pages in ["spa-server/usr/share/doc/spa", "spa-client/usr/share/doc/spa-client"] {
        ensure_links_lead_somewhere(&directory.join(pages))?;
    }
    let mut wanted = files(&installed)?;
    for program in ["usr/sbin/spa-server", "usr/bin/spa-client"] {
        // They are stripped.
        let (mode, _) = wanted.remove(program).context("the program is installed")?;
        let (packed, content) = found.remove(program).context("the program is packed")?;
        ensure!(mode == packed && content.starts_with(b"\x7fELF"), "{program}: {mode}, {packed}");
    }
    let names = |files: &BTreeMap<String, _>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&wanted));
    for (path, file) in &wanted {
        ensure!(found.get(path) == Some(file), "{path} is another one in the package");
    }
    Ok(())
}

#[test]
fn the_scripts_know_every_unit_and_the_package_what_it_needs() -> Result<()> {
    let packed = Packed::new()?;
    let root = packed.directory.path().join("server");
    let [server, _] = &packed.debs;
    unpack(server, &root)?;
    let script = |name: &str| fs::read_to_string(root.join("DEBIAN").join(name));
    let words = |name: &str, variable: &str| -> Result<Vec<String>> {
        let text = script(name)?;
        let line = text.lines().find_map(|line| line.strip_prefix(variable)?.strip_prefix("=\""));
        let list = line.with_context(|| format!("{name} has no {variable}"))?.trim_end_matches('"');
        Ok(list.split(' ').map(Into::into).collect())
    };
    let mut units: Vec<String> = fs::read_dir(workspace()?.join("packaging"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    units.retain(|name| [".service", ".socket"].iter().any(|end| name.ends_with(end)));
    units.sort();
    ensure!(units.len() >= 4, "{units:?}");
    for name in ["prerm", "postrm"] {
        let mut known = words(name, "UNITS")?;
        known.sort();
        assert_eq!(known, units, "{name}");
    }
    // Of those, what is restarted: not what is one of many, nor what has done its work at boot, nor what
    // is there while the daemon is stopped as well.
    let restarted = words("postinst", "RUNNING")?;
    ensure!(restarted.contains(&"spa-server.service".to_owned()), "{restarted:?}");
    for unit in &units {
        let text = fs::read_to_string(workspace()?.join("packaging").join(unit))?;
        let is_not =
            unit.contains("@.") || text.contains("\nType=oneshot\n") || unit == "spa-helper.socket";
        ensure!(restarted.contains(unit) != is_not, "{unit}: {restarted:?}");
    }
    for name in ["postinst", "prerm", "postrm"] {
        let path = root.join("DEBIAN").join(name);
        finish(Command::new(program("sh")?).arg("-n").arg(path))?.ok()?;
    }
    let control = script("control")?;
    let depends = control.lines().find(|line| line.starts_with("Depends: "));
    let depends = depends.context("the package depends on something")?;
    for needed in ["libc6 (>=", "libpcap0.8 (>=", "iptables"] {
        ensure!(depends.contains(needed), "{needed} is missing: {depends}");
    }
    // Nothing below /etc: `spa-server init` makes it.
    ensure!(!root.join("etc").exists() && !root.join("DEBIAN/conffiles").exists());
    Ok(())
}

#[test]
fn the_same_programs_are_packed_the_same_again() -> Result<()> {
    let packed = Packed::new()?;
    let again = pack(&packed.target, &packed.directory.path().join("again"))?;
    for (first, second) in packed.debs.iter().zip(&again) {
        ensure!(fs::read(first)? == fs::read(second)?, "{} differs", second.display());
    }
    Ok(())
}
