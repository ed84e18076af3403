//! `spa-client setup ssh` changes ssh's configuration and nothing else in it.

use crate::support::{Home, Ran};
use std::fs;
use std::path::Path;

fn home() -> Home {
    let home = Home::with_server("host = \"gw.example.org\"");
    home.add_server("home", "host = \"2001:db8::1\"");
    home
}

/// The block as `--print` shows it.
fn block(home: &Home) -> String {
    let printed = home.run(&["setup", "ssh", "--print"]);
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    let program = env!("CARGO_BIN_EXE_spa-client");
    assert_eq!(
        printed.stdout,
        format!(
            "\
# >>> spa-client: written by `spa-client setup ssh`, which replaces it
Host home 2001:db8::1
    ProxyCommand {program} proxy --fdpass --server home %h %p
    ProxyUseFdpass yes
Host work gw.example.org
    ProxyCommand {program} proxy --fdpass --server work %h %p
    ProxyUseFdpass yes
Match all
# <<< spa-client
"
        )
    );
    printed.stdout
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_block_is_written_once_shown_before_and_removed_again() {
    let home = home();
    let block = block(&home);
    let file = home.file("ssh/config");
    let file_text = file.to_str().unwrap();
    let setup =
        |words: &[&str]| home.run(&[&["setup", "ssh", "--file", file_text], words].concat());

    let refused = setup(&[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.starts_with("--- [dir]/ssh/config\n"), "{}", refused.stderr);
    let why =
        "error: there is no terminal to ask on, and no --yes, so [dir]/ssh/config stays as it is\n";
    assert!(refused.stderr.ends_with(why), "{}", refused.stderr);
    assert!(!file.exists());

    assert_eq!(setup(&["--yes"]).status, 0);
    assert_eq!(read(&file), block);
    assert_eq!(setup(&["--yes"]), Ran::said(0, "[dir]/ssh/config is as it should be"));
    assert_eq!(setup(&[]).status, 0, "where nothing changes, nothing is asked");

    let theirs = "ForwardAgent no\nHost a\n    Port 1\n";
    fs::write(&file, theirs).unwrap();
    let done = setup(&["--yes", "--json"]);
    assert_eq!(done.status, 0);
    let done: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(done["changed"], true);
    assert!(done["difference"].as_str().unwrap().contains("\n+Match all\n"), "{done}");
    assert_eq!(read(&file), format!("{block}\n{theirs}"));
    let removed = setup(&["--remove", "--yes"]);
    assert!(removed.stderr.contains("\n-Match all\n"), "{}", removed.stderr);
    assert_eq!(read(&file), theirs);
    assert_eq!(setup(&["--remove"]), Ran::said(0, "[dir]/ssh/config is as it should be"));
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn the_servers_that_are_named_are_those_in_the_block() {
    let home = home();
    let printed = home.run(&["setup", "ssh", "home", "--print", "--match-exec"]).stdout;
    assert!(printed.contains("open ssh@home --quiet --wait") && !printed.contains("@work"));
    assert_eq!(home.run(&["setup", "ssh", "hmoe", "--print"]).status, 2);
    assert_eq!(Home::empty().run(&["setup", "ssh", "--print"]).status, 78);
}

#[cfg(unix)]
#[test]
fn modes_and_links_stay_and_what_is_made_is_for_its_owner() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let home = home();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let setup =
        |file: &Path| home.run(&["setup", "ssh", "--yes", "--file", file.to_str().unwrap()]).status;
    let made = home.file("new/config");
    assert_eq!(setup(&made), 0);
    assert_eq!((mode(made.parent().unwrap()), mode(&made)), (0o700, 0o600));

    let (target, link) = (home.file("dotfile"), home.file("link"));
    fs::write(&target, "Host a\n").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&target, &link).unwrap();
    assert_eq!(setup(&link), 0);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((mode(&target), read(&target).ends_with("\nHost a\n")), (0o644, true));

    // A link that leads nowhere, and a file that nobody may read as text.
    symlink(home.file("nowhere/config"), home.file("dangling")).unwrap();
    assert_eq!(setup(&home.file("dangling")), 1);
    assert!(fs::symlink_metadata(home.file("dangling")).unwrap().is_symlink());
    fs::write(home.file("binary"), [0xff, 0xfe]).unwrap();
    assert_eq!(setup(&home.file("binary")), 1);
    assert_eq!(fs::read(home.file("binary")).unwrap(), [0xff, 0xfe]);
}

#[test]
fn ssh_does_not_connect_by_itself_where_a_look_would_use_up_the_connection() {
    let home = Home::with_server(
        "host = \"gw\"\nservices.ssh = { ports = [\"tcp/22\"], connections = 1 }",
    );
    let refused = home.run(&["setup", "ssh", "--print", "--match-exec"]);
    assert_eq!((refused.status, refused.stdout.as_str()), (2, ""));
    assert!(refused.stderr.contains("leave --match-exec out"), "{}", refused.stderr);
    assert_eq!(home.run(&["setup", "ssh", "--print"]).status, 0);
}

/// An editor may be open while it asks.
#[cfg(unix)]
#[test]
fn what_was_written_since_it_was_shown_is_not_lost() {
    use std::io::{Read as _, Write as _};
    use std::process::Stdio;
    let home = home();
    let file = home.file("config");
    let words = ["setup", "ssh", "--json", "--file", file.to_str().unwrap()];
    for (meanwhile, status) in [(Some("Host other\n"), 1), (None, 0)] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = home.command(&words);
        command.stdin(Stdio::from(pty.slave)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut client = command.spawn().unwrap();
        let (mut shown, mut byte) = (Vec::new(), [0]);
        let mut stderr = client.stderr.take().unwrap();
        while !shown.ends_with(b"[y/N] ") {
            stderr.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("\n+Match all\n"), "asked without a look: {shown}");
        if let Some(text) = meanwhile {
            fs::write(&file, text).unwrap();
        }
        let mut terminal = fs::File::from(pty.master);
        terminal.write_all(b"y\n").unwrap();
        let mut told = String::new();
        stderr.read_to_string(&mut told).unwrap();
        assert_eq!(client.wait().unwrap().code(), Some(status), "{told}");
        if let Some(text) = meanwhile {
            assert!(told.contains("it has changed since it was read"), "{told}");
            assert_eq!(read(&file), text);
        }
    }
}

#[cfg(unix)]
#[test]
fn on_a_terminal_it_asks() {
    use std::io::Write as _;
    use std::process::Stdio;
    let home = home();
    let block = block(&home);
    let file = home.file("config");
    for (answer, written) in [("n\n", false), ("\n", false), ("y\n", true)] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = home.command(&["setup", "ssh", "--file", file.to_str().unwrap()]);
        command.stdin(Stdio::from(pty.slave)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut terminal = fs::File::from(pty.master);
        terminal.write_all(answer.as_bytes()).unwrap();
        let status = command.status().unwrap();
        assert_eq!((status.success(), file.exists()), (written, written), "{answer:?}");
    }
    assert_eq!(read(&file), block);
}
