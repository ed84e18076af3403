//! One key on two devices.

use crate::support::{CLIENT_PRIVATE, Ear, Home, Ran};
use crate::terminal::Terminal;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn home(ear: &Ear) -> Home {
    Home::with_server(&format!(
        "host = \"127.0.0.1\"\nknock-ports = [{}]\nlifetime = \"5m\"\n\
         services.desk = {{ ports = [\"tcp/5900\"], connections = 1 }}",
        ear.port()
    ))
}

fn words(home: &Home) -> String {
    let path = home.file("words");
    fs::write(&path, "some words\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().into()
}

fn run_with(home: &Home, file: &str, words: &[&str]) -> Ran {
    let mut command = home.command(words);
    Ran::of(&command.env("SPA_PASSPHRASE_FILE", file).output().unwrap(), home.path())
}

#[test]
fn what_was_exported_knocks_from_the_other_device() {
    let ear = Ear::v4();
    let (one, two) = (home(&ear), Home::empty());
    let words = words(&one);
    let file = one.file("work.export");
    let file = file.to_str().unwrap();
    let exported = run_with(&one, &words, &["export", "work", "--output", file, "--yes"]);
    assert_eq!((exported.status, exported.stdout.as_str()), (0, ""), "{}", exported.stderr);
    insta::assert_snapshot!("export", exported.stderr);
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains("spa-encrypted-private-") && !text.contains(CLIENT_PRIVATE), "{text}");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    let imported = two.run(&["import", file]);
    assert_eq!((imported.status, imported.stdout.as_str()), (0, ""), "{}", imported.stderr);
    assert!(
        imported.stderr.starts_with(
            "added work to [dir]/config.toml; its key is in [dir]/work.key, under the passphrase \
             that it was exported with\n"
        ),
        "{}",
        imported.stderr
    );
    let mode = fs::metadata(two.file("work.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run_with(&two, &words, &["open", "ssh"]).status, 0);
    assert_eq!(ear.knock().request.lifetime.map(u32::from), Some(300));
    let list = two.run(&["list"]).stdout;
    assert!(list.contains("desk (tcp/5900, one connection)"), "{list}");

    // Never over anything that is here.
    let before = fs::read(two.file("work.key")).unwrap();
    let again = two.run(&["import", file]);
    assert_eq!(again.status, 1);
    assert!(again.stderr.contains("a server called work stands in"), "{}", again.stderr);
    let again = run_with(&one, &words, &["export", "--output", file, "--yes"]);
    assert_eq!((again.status, again.stdout.as_str()), (1, ""));
    assert!(again.stderr.contains("exists already and is left as it is"), "{}", again.stderr);
    fs::write(two.file("second.key"), "mine").unwrap();
    let again = two.run(&["import", file, "--name", "second"]);
    assert_eq!(again.status, 1);
    assert!(again.stderr.contains("second.key exists already"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(two.file("second.key")).unwrap(), "mine");
    assert_eq!(fs::read(two.file("work.key")).unwrap(), before);
    assert!(!fs::read_to_string(two.file("config.toml")).unwrap().contains("second"));
}

#[test]
fn nothing_is_exported_without_a_yes() {
    let ear = Ear::v4();
    let home = home(&ear);
    let file = home.file("work.export");
    let path = file.to_str().unwrap();
    let ran = home.run(&["export", "--output", path, "--plain"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: a second device with this key"), "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: --plain writes the private key as it is"));
    assert!(ran.stderr.contains("say --yes"), "{}", ran.stderr);
    assert_eq!(home.run(&["export", "--yes"]).status, 2, "neither file nor --stdout");
    for (answer, is_there) in [("", false), ("y", false), ("no", false), ("yes", true)] {
        let words = ["export", "--output", path, "--plain"];
        let mut terminal = Terminal::start_with(&home, &words, "");
        terminal.answer("type yes to export it all the same: ", answer);
        let (status, shown) = terminal.end();
        assert_eq!((status == 0, file.exists()), (is_there, is_there), "{answer}: {shown}");
    }
    assert!(fs::read_to_string(&file).unwrap().contains(CLIENT_PRIVATE));
}

#[test]
fn a_pre_shared_key_goes_along_and_standard_output_and_input_do() {
    let ear = Ear::v4();
    let one = home(&ear);
    let psk = spa_keys::PreSharedKey::generate(&ring::rand::SystemRandom::new()).unwrap();
    spa_keys::write_pre_shared_key(one.file("a.psk"), &psk, spa_keys::Overwrite::Refuse).unwrap();
    let config = fs::read_to_string(one.file("config.toml")).unwrap();
    fs::write(one.file("config.toml"), format!("{config}pre-shared-key-file = \"a.psk\"\n"))
        .unwrap();
    let exported = one.run(&["export", "--stdout", "--plain", "--yes"]);
    assert_eq!(exported.status, 0, "{}", exported.stderr);
    fs::write(one.file("pipe"), &exported.stdout).unwrap();
    let two = Home::empty();
    let mut command = two.command(&["import", "-", "--name", "gw"]);
    let output = command.stdin(fs::File::open(one.file("pipe")).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let keys = spa_keys::read_stored_keys(two.file("gw.key")).unwrap().open().unwrap();
    assert_eq!(*keys.private.to_text(), CLIENT_PRIVATE);
    assert_eq!(keys.pre_shared.unwrap().to_text(), psk.to_text());
    assert_eq!(two.run(&["open", "ssh"]).status, 0);
    ear.hear();
}

#[test]
fn a_hostile_export_neither_runs_a_command_nor_shows_a_key() {
    let ear = Ear::v4();
    let one = home(&ear);
    let good = one.run(&["export", "--stdout", "--plain", "--yes"]).stdout;
    let two = Home::empty();
    let marker = two.file("ran");
    let file = two.file("bad.export");
    let command = format!("key-command = [\"touch\", \"{}\"]\nhost = ", marker.display());
    for (bad, told) in [
        (good.replacen("host = ", &command, 1), "it says where keys are kept on another device"),
        (good.replacen("host = ", "identity = \"/etc/x\"\nhost = ", 1), "it says where keys"),
        (
            good.replacen("private-key = \"spa-private-um3", "private-key = \"spa-private-Um3", 1),
            "typing error",
        ),
        (good.replace("server.work", "server.\"../x\""), "is not the name of a server"),
        (good.replacen("[keys]", "[keys]\nmore = 1", 1), "unknown field"),
        (format!("{good}[server.b]\nhost = \"b\"\npublic-key = \"x\"\n"), "not exactly one server"),
        (String::new(), "missing field"),
    ] {
        assert_ne!(bad, good);
        fs::write(&file, &bad).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let ran = two.run(&["import", file.to_str().unwrap()]);
        assert_eq!((ran.status, ran.stdout.as_str()), (78, ""), "{told}: {}", ran.stderr);
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
        assert!(!ran.stderr.contains("um3NOma"), "{}", ran.stderr);
        assert!(!two.file("config.toml").exists() && !marker.exists());
    }
    fs::write(&file, &good).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let ran = two.run(&["import", file.to_str().unwrap()]);
    assert!(ran.stderr.contains("open to other users"), "{}", ran.stderr);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(two.run(&["import", file.to_str().unwrap()]).status, 0);
}
