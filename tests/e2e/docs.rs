//! README, manual and guides say what is so: their configurations load, their commands exist, their tables
//! are complete, their links lead somewhere, and `make install` puts things where they say. The tests
//! that the threat model, the table of faults and the list of others' holes name are there.

use anyhow::{Context, Result, bail, ensure};
use spa_client::Config;
use spa_server::audit::trail::EVENTS;
use spa_server::config::{ClientSettings, Settings};
use spa_server::counters::Counters;
use spa_tests::{finish, our_binary, program};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const README: &str = include_str!("../../README.md");
const MANUAL: &str = include_str!("../../docs/manual.md");
const THREATS: &str = include_str!("../../docs/threat-model.md");
const ASSURANCE: &str = include_str!("../../docs/assurance.md");
const SUMMARY: &str = include_str!("../../docs/SUMMARY.md");
/// What to do, step by step.
const GUIDES: [(&str, &str); 5] = [
    ("docs/installation.md", include_str!("../../docs/installation.md")),
    ("docs/migration.md", include_str!("../../docs/migration.md")),
    ("docs/recovery.md", include_str!("../../docs/recovery.md")),
    ("docs/keys.md", include_str!("../../docs/keys.md")),
    ("docs/incidents.md", include_str!("../../docs/incidents.md")),
];
const MAKEFILE: &str = include_str!("../../Makefile");

const KEY: &str = "spa-public-wMhVlcx9xJF13OjNS9umBc3un8KC_CmV1VONnUazdnferDP3";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A fenced block.
struct Block {
    language: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                blocks.push(Block { language: language.into(), text: String::new() });
                inside = true;
            }
            None => {
                if let Some(block) = blocks.last_mut().filter(|_| inside) {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
            }
        }
    }
    blocks
}

/// The text from a heading to the next one of the same level.
fn section<'a>(document: &'a str, heading: &str) -> Result<&'a str> {
    let (_, after) = document
        .split_once(&format!("\n## {heading}\n"))
        .with_context(|| format!("there is no section {heading:?}"))?;
    Ok(after.split_once("\n## ").map_or(after, |(section, _)| section))
}

/// What stands in backticks in a text.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(Into::into).collect()
}

/// What stands in backticks in the first column of the tables of a text.
fn first_column(text: &str) -> BTreeSet<String> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(quoted).collect()
}

fn minimal_server() -> Result<Settings> {
    let text = "[services.ssh]\nports = [\"tcp/22\"]\n";
    Ok(Settings::parse(Path::new("/etc/spa/server.toml"), text)?)
}

/// Loads all TOML of a document, whose first lines say what it is; gives back how many there were
/// of the server, of clients in `clients.d`, and of the client program.
fn load(document: &str) -> Result<[usize; 3]> {
    let mut found = [0; 3];
    let mut server = minimal_server()?;
    for Block { text, .. } in blocks(document).iter().filter(|block| block.language == "toml") {
        let first = text.lines().next().unwrap_or_default();
        let comment = first.strip_prefix("# ").context("a TOML block begins with its path")?;
        let path = comment.split([' ', ':']).next().unwrap_or_default();
        let is_defaults = comment.ends_with("defaults");
        let place = || format!("the block {first:?}");
        if path == "/etc/spa/server.toml" {
            server = Settings::parse(Path::new(path), text).with_context(place)?;
            ensure!(!is_defaults || server == minimal_server()?, "{first}: these are not it");
            found[0] += 1;
        } else if path.starts_with("/etc/spa/clients.d/") {
            let path = Path::new(path);
            let client = ClientSettings::parse(path, text, &server).with_context(place)?;
            let minimal = format!("public-key = \"{KEY}\"\nallow = [\"ssh\"]\n");
            let minimal = ClientSettings::parse(path, &minimal, &minimal_server()?)?;
            ensure!(!is_defaults || client == minimal, "{first}: these are not it");
            found[1] += 1;
        } else {
            ensure!(path == "~/.config/spa/config.toml", "{first} is the path of nothing");
            Config::parse(text, path.into()).with_context(place)?;
            found[2] += 1;
        }
    }
    Ok(found)
}

#[test]
fn configurations_load_and_defaults_are_the_defaults() -> Result<()> {
    assert_eq!(load(README)?, [1, 1, 1]);
    assert_eq!(load(MANUAL)?, [4, 3, 3]);
    // The control: it would be seen.
    for wrong in [
        "# /etc/spa/server.toml\nknock-port = 1\n",
        "# /etc/spa/server.toml: the defaults\nmax-grants = 1\n[services.ssh]\nports = [\"tcp/22\"]\n",
        "# /etc/spa/clients.d/a.toml\nallow = [\"ssh\"]\n",
        "# ~/.config/spa/config.toml\ndefault = \"x\"\n",
        "# /etc/passwd\n",
    ] {
        assert!(load(&format!("```toml\n{wrong}```\n")).is_err(), "{wrong}");
    }
    Ok(())
}

/// The keys that a parser says it knows when it meets one that it doesn't.
fn known_keys<T>(parsed: Result<T, impl ToString>) -> BTreeSet<String> {
    let message = parsed.err().map(|error| error.to_string()).unwrap_or_default();
    message.split_once("expected").map(|(_, known)| quoted(known)).unwrap_or_default()
}

#[test]
fn every_setting_is_in_the_manual() -> Result<()> {
    let server = |text: &str| Settings::parse(Path::new("/etc/spa/server.toml"), text);
    let client = |text: &str| {
        ClientSettings::parse(Path::new("/etc/spa/clients.d/a.toml"), text, &minimal_server()?)
            .map_err(anyhow::Error::from)
    };
    let config = |text: &str| Config::parse(text, "config.toml".into());
    for (heading, prefix, keys) in [
        ("The server's configuration", "", known_keys(server("nope = 1"))),
        ("The server's configuration", "gate.", known_keys(server("[gate]\nnope = 1"))),
        ("The server's configuration", "gate.hook.", known_keys(server("[gate.hook]\nnope = 1"))),
        (
            "The server's configuration",
            "services.NAME.",
            known_keys(server("[services.x]\nnope = 1")),
        ),
        ("A client's file", "", known_keys(client("nope = 1"))),
        ("A client's file", "source-prefix.", known_keys(client("source-prefix = { nope = 1 }"))),
        ("A client's file", "invitation.", known_keys(client("[invitation]\nnope = 1"))),
        ("A client's file", "rate.", known_keys(client("rate = { nope = 1 }"))),
        ("The client's configuration", "", known_keys(config("nope = 1"))),
        ("The client's configuration", "server.NAME.", known_keys(config("[server.x]\nnope = 1"))),
    ] {
        ensure!(!keys.is_empty(), "{heading}: the parser names no keys");
        let told = first_column(section(MANUAL, heading)?);
        for key in keys {
            let key = format!("{prefix}{key}");
            let is_told = told.iter().any(|it| *it == key || it.starts_with(&format!("{key}.")));
            ensure!(is_told, "{heading}: {key} is missing among {told:?}");
        }
    }
    let tools = known_keys(server("[gate.tools]\nnope = 1"));
    let told = quoted(section(MANUAL, "The server's configuration")?);
    ensure!(!tools.is_empty() && tools.is_subset(&told), "{tools:?}");
    Ok(())
}

#[test]
fn every_drop_reason_is_in_the_manual_and_no_other() -> Result<()> {
    let counted: BTreeSet<String> = Counters::default().dropped().into_keys().collect();
    assert_eq!(first_column(section(MANUAL, "Drop reasons")?), counted);
    Ok(())
}

#[test]
fn every_event_is_in_the_manual_and_no_other() -> Result<()> {
    let events: BTreeSet<String> = EVENTS.map(Into::into).into();
    assert_eq!(first_column(section(MANUAL, "Log and audit trail")?), events);
    Ok(())
}

/// The commands of ours in the console and shell blocks of a document, and what `make` is told.
fn commands(document: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for Block { language, text } in blocks(document) {
        let lines = text.lines().filter_map(|line| match language.as_str() {
            "console" => line.strip_prefix("# ").or(line.strip_prefix("$ ")),
            "sh" => Some(line),
            _ => None,
        });
        for command in lines.flat_map(|line| line.split(['\'', ';', '&'])) {
            let command = command.split(" #").next().unwrap_or_default();
            let command = command.split(" > ").next().unwrap_or_default();
            let words: Vec<String> = command.split_ascii_whitespace().map(Into::into).collect();
            let name = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
            if matches!(name, "spa-server" | "spa-client" | "make") {
                commands.push([&[name.to_owned()], words.get(1..).unwrap_or_default()].concat());
            }
        }
    }
    commands
}

/// The commands of ours that stand in a line of text or a table.
fn commands_within(document: &str) -> Vec<Vec<String>> {
    // Blocks have three of them, so that what is between two is still between two.
    let quoted = quoted(document).into_iter();
    let ours =
        quoted.filter(|text| text.starts_with("spa-server ") || text.starts_with("spa-client "));
    ours.map(|text| text.split_ascii_whitespace().map(Into::into).collect()).collect()
}

/// Whether the program knows these words, without doing what they say.
fn is_understood(words: &[String]) -> Result<bool> {
    let (name, words) = words.split_first().context("no command")?;
    // What comes after these is another program's.
    let others = words.iter().position(|word| word == "--").or_else(|| {
        let is_ssh = words.first().is_some_and(|word| word == "ssh");
        is_ssh.then_some(1)
    });
    let ours = &words[..others.unwrap_or(words.len())];
    Ok(finish(Command::new(our_binary(name)?).args(ours).arg("--help"))?.success())
}

#[test]
fn every_command_is_understood() -> Result<()> {
    let mut ours = BTreeSet::new();
    let mut all = [commands(README), commands(MANUAL)].concat();
    for (name, guide) in GUIDES {
        let found = [commands(guide), commands_within(guide)].concat();
        ensure!(found.len() > 3, "{name}: no commands were found");
        all.extend(found);
    }
    for words in all {
        if words[0] == "make" {
            let target = words.get(1).context("make without a target")?;
            ensure!(MAKEFILE.contains(&format!("\n{target}:")), "make has no target {target}");
        } else {
            ensure!(is_understood(&words)?, "{words:?} is not understood");
            ours.insert(words[..2].join(" "));
        }
    }
    for known in ["init", "check", "client", "status", "grants", "gate", "invite", "rotate-key"] {
        ensure!(ours.contains(&format!("spa-server {known}")), "{known} is missing: {ours:?}");
    }
    for known in [
        "keygen",
        "key",
        "server",
        "open",
        "close",
        "list",
        "export",
        "import",
        "proxy",
        "ssh",
        "setup",
        "status",
        "doctor",
        "completions",
        "join",
        "rotate",
    ] {
        ensure!(ours.contains(&format!("spa-client {known}")), "{known} is missing: {ours:?}");
    }
    // The control: other words are not.
    for wrong in ["spa-server gate delete", "spa-server client add x --nope", "spa-client knock"] {
        let words: Vec<String> = wrong.split(' ').map(Into::into).collect();
        ensure!(!is_understood(&words)?, "{wrong} is understood");
    }
    Ok(())
}

/// How a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let others = [
        ("README.md", README),
        ("docs/manual.md", MANUAL),
        ("docs/threat-model.md", THREATS),
        ("docs/SUMMARY.md", SUMMARY),
    ];
    for (name, document) in others.into_iter().chain(GUIDES) {
        let here = root().join(name);
        let mut links = 0;
        for link in document.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let directory = here.parent().context("a file lies in a directory")?;
            let file = if file.is_empty() { here.clone() } else { directory.join(file) };
            let text = fs::read_to_string(&file).with_context(|| format!("{name}: {link}"))?;
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            let is_there = headings.any(|line| anchor(line.trim_start_matches('#')) == heading);
            ensure!(heading.is_empty() || is_there, "{name}: nothing is called {link}");
        }
        ensure!(links > 2, "{name}: no links were found");
    }
    Ok(())
}

/// The book has every page, once.
#[test]
fn every_page_is_in_the_book() -> Result<()> {
    let links = SUMMARY.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let mut links: Vec<_> = links.collect();
    links.sort_unstable();
    let mut pages: Vec<String> = Vec::new();
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension() == Some("md".as_ref()) && name != "SUMMARY.md" {
            pages.push(name);
        }
    }
    pages.sort_unstable();
    assert_eq!(links, pages);
    // What is installed without the others is there.
    for (name, _) in GUIDES {
        let name = name.trim_start_matches("docs/");
        let pages = MAKEFILE.lines().find(|line| line.starts_with("PAGES :="));
        ensure!(pages.is_some_and(|pages| pages.contains(name)), "{name} is not installed");
    }
    Ok(())
}

/// Appends a file of Rust, or all of those in a directory.
fn read_rust(place: &Path, text: &mut String) -> Result<()> {
    if place.is_dir() {
        for entry in fs::read_dir(place)? {
            read_rust(&entry?.path(), text)?;
        }
    } else if place.is_file() && place.extension().is_some_and(|extension| extension == "rs") {
        text.push_str(&fs::read_to_string(place)?);
    }
    Ok(())
}

/// The sources of `CRATE/FILE`, a test program, or of `CRATE`, what is tested beside the code.
fn sources(place: &str) -> Result<String> {
    let (name, file) = place.split_once('/').unwrap_or((place, ""));
    let (directory, tests) = match name {
        "spa-proto" | "spa-client" | "spa-server" => (name, "tests"),
        "spa-keys" => ("keys", "tests"),
        "spa-tests" => ("tests", "e2e"),
        _ => bail!("{name} is no crate of ours"),
    };
    let directory = root().join(directory);
    let mut text = String::new();
    if file.is_empty() {
        read_rust(&directory.join("src"), &mut text)?;
    } else {
        let program = directory.join(tests).join(file);
        read_rust(&program.with_extension("rs"), &mut text)?;
        read_rust(&program, &mut text)?;
    }
    Ok(text)
}

/// That each `CRATE/FILE::NAME` and `CRATE::NAME` of a document is a function there; how many
/// there are.
fn ensure_tests_are_there(document: &str) -> Result<usize> {
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    let mut count = 0;
    for test in quoted(document) {
        let Some((place, name)) = test.split_once("::") else { continue };
        if !place.starts_with("spa-") || test.contains(char::is_whitespace) {
            continue;
        }
        if !read.contains_key(place) {
            read.insert(place.to_owned(), sources(place)?);
        }
        ensure!(read[place].contains(&format!("fn {name}(")), "there is no test {test}");
        count += 1;
    }
    Ok(count)
}

/// The same for items as `- Shows: NAME, NAME (FILE); NAME (FILE).`, where FILE is a path as that
/// document shortens it.
fn ensure_shown_by_tests(document: &str) -> Result<usize> {
    let mut count = 0;
    for item in document.split("\n- Shows:").skip(1) {
        let item = item.split("\n\n").next().unwrap_or_default();
        let mut names = Vec::new();
        for word in item.split('`').skip(1).step_by(2) {
            if Path::new(word).extension() != Some("rs".as_ref()) {
                names.push(word);
                continue;
            }
            let (first, rest) = word.split_once('/').with_context(|| format!("{word}: no path"))?;
            let directory = match first {
                "e2e" => "tests/e2e",
                "server" => "spa-server/src",
                "proto" => "spa-proto",
                "client" => "spa-client",
                other => other,
            };
            let text =
                fs::read_to_string(root().join(directory).join(rest)).context(word.to_owned())?;
            for name in names.drain(..) {
                ensure!(text.contains(&format!("fn {name}(")), "there is no test {name} in {word}");
                count += 1;
            }
        }
        ensure!(names.is_empty(), "{names:?}: in which file?");
    }
    Ok(count)
}

#[test]
fn every_test_that_is_named_is_there() -> Result<()> {
    ensure!(ensure_tests_are_there(THREATS)? > 200, "no tests were found in the threat model");
    ensure!(ensure_tests_are_there(ASSURANCE)? > 90, "no tests were found in the table of faults");
    let holes = root().join("docs/cves.md");
    if holes.is_file() {
        let holes = fs::read_to_string(holes)?;
        ensure!(ensure_shown_by_tests(&holes)? > 20, "no tests were found in the list of holes");
        ensure_tests_are_there(&holes)?;
    }
    // The control: others would be missed, and those that are elsewhere too.
    for wrong in [
        "spa-tests/replay::no_such_test",
        "spa-tests/tampering::replay_at_once_opens_nothing",
        "spa-server::replay_at_once_opens_nothing",
        "spa-nothing::replay_at_once_opens_nothing",
    ] {
        ensure!(ensure_tests_are_there(&format!("`{wrong}`")).is_err(), "{wrong} is there");
    }
    let shows = |names: &str| ensure_shown_by_tests(&format!("\n- Shows: {names}.\n"));
    ensure!(shows("`replay_at_once_opens_nothing` (`e2e/replay.rs`)")? == 1);
    for wrong in [
        "`no_such_test` (`e2e/replay.rs`)",
        "`replay_at_once_opens_nothing` (`e2e/tampering.rs`)",
        "`replay_at_once_opens_nothing` (`e2e/no_such_file.rs`)",
        "`replay_at_once_opens_nothing`",
    ] {
        ensure!(shows(wrong).is_err(), "{wrong} is there");
    }
    Ok(())
}

#[test]
fn what_is_installed_fits_together_and_is_removed_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (target, root_directory) = (directory.path().join("target"), directory.path().join("root"));
    fs::create_dir_all(target.join("release"))?;
    for name in ["spa-server", "spa-client"] {
        // The real ones: they write the manual pages.
        fs::copy(our_binary(name)?, target.join("release").join(name))?;
    }
    let ours = root_directory.join("etc/spa/server.toml");
    fs::create_dir_all(ours.parent().context("it has one")?)?;
    fs::write(&ours, "mine")?;

    for prefix in ["/usr", "/opt/spa"] {
        let make = |what: &str| {
            let mut command = Command::new(program("make")?);
            command.arg("-C").arg(root()).args([what, &format!("PREFIX={prefix}")]);
            command.arg(format!("DESTDIR={}", root_directory.display()));
            finish(command.env("CARGO_TARGET_DIR", &target))?.ok()
        };
        let installed = |path: &str| root_directory.join(path.trim_start_matches('/'));
        make("install")?;
        let unit = installed(&format!("{prefix}/lib/systemd/system/spa-server.service"));
        let unit = fs::read_to_string(unit)?;
        let mut programs = 0;
        for line in unit.lines() {
            if let Some(command) =
                ["ExecStart=", "ExecReload="].iter().find_map(|key| line.strip_prefix(key))
            {
                let path = command.split(' ').next().unwrap_or_default().trim_start_matches('+');
                ensure!(installed(path).is_file(), "{line}: there is no such program");
                programs += 1;
            }
        }
        ensure!(programs == 2, "the unit starts {programs} programs");
        ensure!(installed(&format!("{prefix}/bin/spa-client")).is_file());
        for file in [
            "man/man1/spa-client.1",
            "man/man1/spa-client-open.1",
            "man/man8/spa-server.8",
            "man/man8/spa-server-client-add.8",
            "man/man8/spa-server-refuse.8",
            "doc/spa/examples/fail2ban/jail.d/spa.conf",
            "bash-completion/completions/spa-client",
            "fish/vendor_completions.d/spa-client.fish",
        ] {
            ensure!(installed(&format!("{prefix}/share/{file}")).is_file(), "{file}");
        }
        let functions = if prefix == "/usr" { "vendor-completions" } else { "site-functions" };
        let zsh = installed(&format!("{prefix}/share/zsh/{functions}/_spa-client"));
        ensure!(zsh.is_file(), "{}", zsh.display());
        // What a unit runs beside the program is there too.
        let unit = installed(&format!("{prefix}/lib/systemd/system/spa-notify.service"));
        let unit = fs::read_to_string(unit)?;
        let command = unit.split_whitespace().find(|word| word.ends_with("/notify-mail"));
        let command = installed(command.context("the unit runs it")?);
        ensure!(
            command.is_file() && command.starts_with(installed(prefix)),
            "{}",
            command.display()
        );
        ensure!(installed(&format!("{prefix}/libexec/spa/notify-webhook")).is_file());
        let action = format!("{prefix}/share/doc/spa/examples/fail2ban/action.d/spa.conf");
        let action = fs::read_to_string(installed(&action))?;
        ensure!(action.contains(&format!("\nspa-server = {prefix}/sbin/spa-server\n")), "{action}");
        let example = installed(&format!("{prefix}/share/doc/spa/examples/server.toml"));
        Settings::parse(Path::new("/etc/spa/server.toml"), &fs::read_to_string(example)?)?;

        make("uninstall")?;
        make("uninstall")?;
        let left =
            finish(Command::new(program("find")?).arg(&root_directory).args(["-type", "f"]))?;
        assert_eq!(left.ok()?.trim(), ours.display().to_string());
        assert_eq!(fs::read_to_string(&ours)?, "mine");
    }
    Ok(())
}
