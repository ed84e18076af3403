//! What real shells offer when TAB is typed.

use crate::screen::Screen;
use crate::support::{Home, server_key};
use std::path::Path;
use std::process::Command;

/// Two servers, of which one has a service of its own.
fn home() -> Home {
    let home = Home::empty();
    home.add_server("work", "host = \"gw.example.org\"");
    home.add_server("home", "host = \"192.0.2.7\"\nservices.smtp = [\"tcp/25\"]");
    let file = home.file("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, format!("default = \"work\"\n{text}")).unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.run(&["completions", shell]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        std::fs::write(home.file(&format!("script.{shell}")), ran.stdout).unwrap();
    }
    home
}

/// What is offered for these words, the last of which is not finished.
fn offered(home: &Home, words: &[&str]) -> Vec<String> {
    let all = [&["complete", "--", "spa-client"], words].concat();
    let ran = home.run(&all);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words:?}");
    ran.stdout.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn services_and_servers_of_the_configuration_are_offered() {
    let home = home();
    for (words, expected) in [
        (&["open", "s"][..], &["ssh", "smtp@home", "ssh@home", "ssh@work"][..]),
        (&["open", "ssh@"], &["ssh@home", "ssh@work"]),
        (&["open", "ssh@w"], &["ssh@work"]),
        (&["open", "ssh", "smtp"], &["smtp@home"]),
        (&["close", "ssh@h"], &["ssh@home"]),
        (&["open", "--server", ""], &["home", "work"]),
        (&["server", "remove", "w"], &["work"]),
        (&["server", "add", "w"], &[]),
        (&["doctor", ""], &["home", "work"]),
        (&["doctor", "--service", "sm"], &["smtp"]),
        (&["compl"], &["completions"]),
        (&["completions", ""], &["bash", "zsh", "fish"]),
        (&["open", "--no"], &["--no-wait"]),
        (&["complet"], &["completions"]),
        (&["help", "server", "rem"], &["remove"]),
    ] {
        assert_eq!(offered(&home, words), expected, "{words:?}");
    }
    // Without a configuration nothing is known, and nothing is said about it either.
    let empty = Home::empty();
    assert_eq!(offered(&empty, &["open", "ssh@"]), [""; 0]);
    assert_eq!(offered(&empty, &["clo"]), ["close"]);
}

/// An interactive shell in which `spa-client` is ours, with a prompt that can be waited for.
fn shell(home: &Home, program: &str, args: &[&str]) -> Screen {
    let ours = Path::new(env!("CARGO_BIN_EXE_spa-client")).parent().unwrap();
    let mut command = Command::new(program);
    command.args(args).env("SPA_CONFIG_DIR", home.path()).env("HOME", home.path());
    command.env("XDG_CONFIG_HOME", home.path()).env("XDG_DATA_HOME", home.path());
    command.env("PATH", format!("{}:/usr/bin:/bin", ours.display()));
    command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
    Screen::start(&command)
}

/// Types the line and TAB; the shell then tells what the line has become.
fn completed(shell: &mut Screen, typed: &str) -> String {
    shell.type_in(typed);
    shell.await_text(typed.rsplit(' ').next().unwrap());
    // To the beginning of the line, and a command before it that prints the rest; the marks are
    // sums, so that they are not met while the line is typed.
    shell.type_in("\t\x01echo \"<$((40+2))\"'\x05'\"$((40+2))>\"\r");
    let _ = shell.await_text("<42spa-client");
    shell.await_text("42>").trim_end_matches("42>").trim_start().to_owned()
}

fn in_bash(home: &Home, prepare: &str) {
    let mut bash = shell(home, "/bin/bash", &["--norc", "--noprofile", "-i"]);
    bash.type_in(&format!("PS1='rea''dy>'; {prepare}\r"));
    bash.await_text("ready>");
    bash.type_in(&format!("source {}\r", home.file("script.bash").display()));
    bash.await_text("ready>");
    assert_eq!(completed(&mut bash, "spa-client open ssh@w"), "open ssh@work ");
    assert_eq!(completed(&mut bash, "spa-client open ssh@home smt"), "open ssh@home smtp@home ");
    assert_eq!(completed(&mut bash, "spa-client server rem"), "server remove ");
    assert_eq!(completed(&mut bash, "spa-client open --server=h"), "open --server=home ");
    std::fs::create_dir_all(home.file("dir")).unwrap();
    let [di, dir] = ["di", "dir"].map(|name| home.file(name).display().to_string());
    let typed = format!("spa-client keygen -o {di}");
    // What is complete has a blank behind it, a directory none.
    assert_eq!(completed(&mut bash, &typed), format!("keygen -o {dir}/"));
    bash.type_in("spa-client open s\t\t");
    let list = bash.await_text("ssh@work");
    for one in ["smtp@home", "ssh ", "ssh@home"] {
        assert!(list.contains(one), "{one}: {list:?}");
    }
}

#[test]
fn bash_completes_words_with_an_at_sign() {
    in_bash(&home(), ":");
}

#[test]
fn bash_with_its_own_completions_loaded_does_the_same() {
    in_bash(&home(), "source /usr/share/bash-completion/bash_completion");
}

#[test]
fn zsh_completes_from_the_script_and_from_its_path() {
    let home = home();
    let functions = home.file("functions");
    std::fs::create_dir(&functions).unwrap();
    std::fs::copy(home.file("script.zsh"), functions.join("_spa-client")).unwrap();
    for load in [
        format!(
            "autoload -U compinit; compinit -u -D; source {}",
            home.file("script.zsh").display()
        ),
        format!("fpath=({} $fpath); autoload -U compinit; compinit -u -D", functions.display()),
    ] {
        let mut zsh = shell(&home, "/usr/bin/zsh", &["-f", "-i"]);
        zsh.type_in("PS1='rea''dy>'; bindkey -e; unsetopt zle_bracketed_paste prompt_cr\r");
        zsh.await_text("ready>");
        zsh.type_in(&format!("{load}\r"));
        zsh.await_text("ready>");
        // Zsh takes its blank back when the cursor leaves.
        assert_eq!(completed(&mut zsh, "spa-client open ssh@w"), "open ssh@work");
        assert_eq!(completed(&mut zsh, "spa-client server rem"), "server remove");
        std::fs::create_dir_all(home.file("dir")).unwrap();
        let [di, dir] = ["di", "dir"].map(|name| home.file(name).display().to_string());
        let typed = format!("spa-client keygen -o {di}");
        assert_eq!(completed(&mut zsh, &typed), format!("keygen -o {dir}/"));
        zsh.type_in("spa-client open s\t\t");
        let list = zsh.await_text("ssh@work");
        for one in ["smtp@home  -- tcp/25 at 192.0.2.7", "ssh  -- ", "ssh@home"] {
            assert!(list.contains(one), "{one}: {list:?}");
        }
    }
}

#[test]
fn fish_offers_the_same_with_what_it_is() {
    let home = home();
    let mut fish = Command::new("/usr/bin/fish");
    let ours = Path::new(env!("CARGO_BIN_EXE_spa-client")).parent().unwrap();
    let asked = |line: &str| {
        format!("source {}; complete --do-complete '{line}'", home.file("script.fish").display())
    };
    let mut offered = |line: &str| {
        fish = Command::new("/usr/bin/fish");
        fish.args(["--no-config", "--command", &asked(line)]);
        fish.env_clear().env("SPA_CONFIG_DIR", home.path()).env("HOME", home.path());
        fish.env("PATH", format!("{}:/usr/bin:/bin", ours.display())).env("TERM", "dumb");
        let output = fish.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(offered("spa-client open ssh@w"), ["ssh@work\ttcp/22 at gw.example.org"]);
    assert_eq!(
        offered("spa-client open s"),
        [
            "smtp@home\ttcp/25 at 192.0.2.7",
            "ssh\ttcp/22 at work",
            "ssh@home\ttcp/22 at 192.0.2.7",
            "ssh@work\ttcp/22 at gw.example.org",
        ]
    );
    assert_eq!(
        offered("spa-client server rem"),
        ["remove\tRemove a server from the configuration. Key files stay"]
    );
}

#[test]
fn no_shell_finds_anything_wrong_with_its_script() {
    let home = home();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.file(&format!("script.{shell}"));
        let output = Command::new(shell).arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
    }
    assert!(server_key().to_string().starts_with("spa-public-"));
}
