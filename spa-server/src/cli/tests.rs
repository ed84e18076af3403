//! The help that it shows, and the lines that it understands.

use super::*;

/// The help of the program and of all commands, by their names, 80 columns wide.
fn helps(command: &clap::Command, names: &str) -> Vec<(String, String)> {
    let mut this = command.clone().term_width(80);
    let mut helps = vec![(names.to_owned(), this.render_help().to_string())];
    for sub in command.get_subcommands() {
        helps.extend(helps_of(sub, names));
    }
    helps
}

fn helps_of(command: &clap::Command, names: &str) -> Vec<(String, String)> {
    helps(command, &format!("{names} {}", command.get_name()))
}

fn built() -> clap::Command {
    let mut command = Cli::command().term_width(80);
    command.build();
    command
}

#[test]
fn the_command_line_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_help_fits_a_screen_and_shows_an_example() {
    let helps = helps(&built(), "spa-server");
    assert_eq!(helps.len(), 33, "{:?}", helps.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (names, help) in helps {
        assert!(help.contains("Example"), "{names}: no example\n{help}");
        assert!(help.lines().count() <= 30, "{names}: too long\n{help}");
        for line in help.lines().filter(|line| !line.starts_with("Usage:")) {
            assert!(line.chars().count() <= 88, "{names}: too wide: {line}");
        }
    }
}

#[test]
fn help_of_the_program() {
    insta::assert_snapshot!(built().render_help(), @"
    Hides ports, and opens them for those who prove who they are with one datagram

    Usage: spa-server [OPTIONS] <COMMAND>

    Commands:
      run         Run the daemon in the foreground, as the systemd unit does
      check       Look for what is wrong here, and say how to mend it
      init        Write a configuration and the server's key for this host
      invite      Invite a client: it makes its key itself
      client      Add, show and change clients
      rotate-key  Give this server a new key; clients may use the old one for a time
      status      Show how the running daemon is
      top         Watch the running daemon: what is open, knocks, noise
      log         Show the audit trail: who opened what, and what was refused
      notify      Run a command for what happens: to send a mail, say
      metrics     Print what `status` shows for Prometheus
      grants      Show or revoke what is open
      refuse      Open nothing for an address for a time, and throw out who is in
      reload      Have the running daemon read its configuration anew
      gate        Install, show or remove the firewall rules without the daemon

    Options:
          --config <FILE>  Configuration, if not /etc/spa/server.toml
      -h, --help           Print help
      -V, --version        Print version

    Example, on a fresh server:
      spa-server init && spa-server invite laptop --allow ssh
      spa-server check && systemctl start spa-server # enable once the laptop got in
    Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.
    ");
}

#[test]
fn help_of_client_add() {
    let built = built();
    let client = built.find_subcommand("client").unwrap();
    let mut add = client.find_subcommand("add").unwrap().clone().term_width(80);
    insta::assert_snapshot!(add.render_help(), @"
    Let a client in whose public key is known

    Usage: spa-server client add [OPTIONS] --allow <SERVICES> <NAME>

    Arguments:
      <NAME>  What to call it

    Options:
          --config <FILE>           Configuration, if not /etc/spa/server.toml
          --public-key <KEY>        What `spa-client keygen` prints there
          --allow <SERVICES>        What it may open, with commas between
          --max-lifetime <TIME>     Longest lifetime to ask for [default: 1h]
          --source <NETWORK>        Network to knock from [default: any]
          --require-bound-source    Only knocks that name their source
          --expires <WHEN>          A date, or a duration, as in 90d
          --psk                     Make a pre-shared key, too: ./NAME.psk
          --private-key-out <FILE>  Instead of ./NAME.key
          --json                    Write JSON
      -h, --help                    Print help

    Examples:
      spa-server client add laptop --public-key spa-public-... --allow ssh
      spa-server client add backup --allow ssh,db --source 192.0.2.7 --expires 90d

    Without --public-key a key pair is made, with its private half for the client in
    ./NAME.key. Better: run `spa-client keygen` there, and add what it prints.
    Prints the command that the client's user runs next.
    ");
}

#[test]
fn words_that_do_not_go_together_are_refused() {
    for words in [
        "",
        "client add laptop",
        "client add la/ptop --allow ssh",
        "client add laptop --allow ssh --public-key x --private-key-out y",
        "client reset-replay",
        "client reset-replay laptop --all",
        "grants revoke",
        "grants revoke --all --source 192.0.2.7",
        "grants revoke --source example.org",
        "grants revoke --service SSH",
        "refuse",
        "refuse example.org",
        "refuse 192.0.2.7 --lift 192.0.2.7",
        "refuse --list --for 1m",
        "refuse --lift 192.0.2.7 --no-cut",
        "status now",
        "log --event open",
        "notify",
        "notify /bin/true",
        "notify --event open -- /bin/true",
        "notify --per-minute 0 -- /bin/true",
    ] {
        let words = ["spa-server"].into_iter().chain(words.split_ascii_whitespace());
        let error = Cli::try_parse_from(words.clone()).expect_err(&format!("{words:?}"));
        assert_eq!(error.exit_code(), i32::from(commands::USAGE), "{words:?}");
    }
    for words in [
        "client add laptop --allow ssh,web --source 192.0.2.0/24 --source ::1",
        "client reset-replay --all",
        "grants revoke laptop --source 192.0.2.7 --service tcp/22",
        "refuse 192.0.2.0/24 --for 1h --no-cut --json",
        "refuse --list --json",
        "refuse --lift ::1",
        "log --event opened --event refused,failed --json",
        "notify --event opened --client laptop --file - -- /bin/true --flag -- x",
        "status --json --config /tmp/server.toml",
    ] {
        let words = ["spa-server"].into_iter().chain(words.split_ascii_whitespace());
        Cli::try_parse_from(words).unwrap();
    }
}
