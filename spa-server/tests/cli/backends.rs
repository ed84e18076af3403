//! The back-ends as an administrator chooses, changes and removes them, without a daemon.

use crate::host::Host;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

/// With `backend`, and with hook commands that note what they are told in `hook.log`.
fn host_with(backend: &str) -> Host {
    let host = Host::new();
    let script =
        "#!/bin/sh\necho $SPA_ACTION $SPA_PROTOCOL/$SPA_PORT $SPA_SOURCE >>\"${0%/*}/hook.log\"\n";
    host.write("hook", script);
    fs::set_permissions(host.path("hook"), Permissions::from_mode(0o755)).unwrap();
    let command = host.path("hook");
    host.edit("server.toml", |text| {
        let gate = format!(
            "[gate]\nbackend = \"{backend}\"\n\n[gate.hook]\nopen = [\"{path}\"]\nclose = [\"{path}\"]\n",
            path = command.display()
        );
        text.replacen("[gate]\n", &gate, 1)
    });
    host
}

/// A line of a script that has another back-end configured from here on.
fn change(host: &Host, from: &str, to: &str) -> String {
    let path = host.path("server.toml");
    format!("sed -i 's/^backend = \"{from}\"/backend = \"{to}\"/' {}", path.display())
}

const RULES: &str = "iptables-save; ip6tables-save; ipset list -name";

#[test]
fn what_an_installation_would_do_is_told_and_not_done() {
    let host = Host::new();
    let said = host.script_in_namespace(&format!("% gate install --dry-run; {RULES}")).done();
    let begin = "the back-end ipset would install the gate; nothing is done\n";
    assert!(said.out.starts_with(begin), "{said:#?}");
    let count = |text: &str| said.out.lines().filter(|line| line.contains(text)).count();
    // Each chain and set is told, and none is there.
    for told in ["iptables-restore: :SPA-GUARD ", "ip6tables-restore: :SPA-GUARD "] {
        assert_eq!(said.out.lines().filter(|line| line.starts_with(told)).count(), 1, "{said:#?}");
    }
    assert_eq!(count("create spa6 "), 1, "{said:#?}");
    let is_there = |line: &str| line.starts_with("-A SPA") || line.starts_with("spa");
    assert!(!said.out.lines().any(is_there), "{said:#?}");

    let preview = |before: &str| {
        let script = format!("% gate install >/dev/null; {before} % gate install --dry-run --json");
        let said = host.script_in_namespace(&script).done();
        serde_json::from_str::<serde_json::Value>(&said.out).unwrap()
    };
    let same = preview("");
    assert_eq!((&same["would-change"], &same["backend"]), (&false.into(), &"ipset".into()));
    let other = preview("iptables -t mangle -F SPA-GUARD;");
    assert_eq!((&other["would-change"], &other["script"]), (&true.into(), &serde_json::json!([])));
}

#[test]
fn a_dry_run_touches_nothing() {
    let host = host_with("dry-run");
    let said = host.script_in_namespace(&format!("% gate install; % gate show; {RULES}")).done();
    assert!(said.out.contains("warning: backend = \"dry-run\": nothing is hidden"), "{said:#?}");
    assert!(said.out.contains("the gate is not installed (back-end dry-run)"), "{said:#?}");
    assert!(!said.out.contains("\n-A") && !said.out.contains("\nspa4"), "{said:#?}");
    let checked = host.script_in_namespace("% check").done();
    let line = "ok       backend        dry-run (as configured): nothing is ever open\nwarning  backend        a dry run guards nothing";
    assert!(checked.out.contains(line), "{checked:#?}");
}

#[test]
fn a_dry_run_says_that_a_gate_still_stands() {
    let host = host_with("ipset");
    let to_dry_run = change(&host, "ipset", "dry-run");
    let told = "warning: a gate of ipset still stands and hides the ports, which nothing opens now";
    let said = host
        .script_in_namespace(&format!(
            "% gate install; {to_dry_run}; % gate install; % gate remove; echo ==; % gate install"
        ))
        .done();
    let (standing, removed) = said.out.split_once("==").unwrap();
    assert!(standing.contains(told) && !removed.contains(told), "{said:#?}");
}

#[test]
fn hook_commands_are_checked_and_their_gate_installed_and_removed() {
    let host = host_with("hook");
    let said = host
        .script_in_namespace(
            "% check | grep -e backend -e gate; % gate install; % gate show --json; % gate remove",
        )
        .done();
    let begin =
        "ok       backend        hook (as configured): the daemon alone closes what is open: ";
    assert!(said.out.starts_with(begin), "{said:#?}");
    for part in [
        "\nwarning  backend        hook commands hide and refuse nothing",
        "\nok       gate           the gate can be installed\nthe gate is installed\n",
        "\"backend\": \"hook\",\n  \"installed\": true,\n  \"up-to-date\": true,\n",
    ] {
        assert!(said.out.contains(part), "{part}: {said:#?}");
    }
    assert!(!host.path("state-gate/hook").exists());
    fs::set_permissions(host.path("hook"), Permissions::from_mode(0o757)).unwrap();
    let checked = host.script_in_namespace("% check");
    assert!(
        checked.code == 1
            && checked.out.contains("error    gate           a hook command can't be used: "),
        "{checked:#?}"
    );
    host.script_in_namespace("% gate install").failed(1, "chmod go-w");
}

#[test]
fn another_backend_takes_over_what_is_open_and_the_former_one_goes() {
    let host = host_with("ipset");
    let said = host
        .script_in_namespace(&format!(
            "% gate install; ipset add spa4 192.0.2.7,tcp:22 timeout 5000
            ipset add spa4 192.0.2.8,tcp:23 timeout 5000
            {to_hook}; % gate install; {RULES}; % gate show; cat {log}
            {to_ipset}; % gate install; ipset save spa4 | grep add; cat {log}",
            to_hook = change(&host, "ipset", "hook"),
            to_ipset = change(&host, "hook", "ipset"),
            log = host.path("hook.log").display(),
        ))
        .done();
    let parts: Vec<_> = said.out.split("the gate is installed\n").collect();
    let [_, _, hook, ipset] = parts.as_slice() else { panic!("{said:#?}") };
    assert!(!hook.contains("SPA-") && !hook.contains("\nspa4"), "{hook}");
    // What no service has any more is not taken over.
    assert!(hook.contains("192.0.2.7  tcp/22  1h") && !hook.contains("192.0.2.8"), "{hook}");
    assert!(hook.ends_with("\nopen tcp/22 192.0.2.7\n"), "{hook}");
    assert!(ipset.starts_with("add spa4 192.0.2.7,tcp:22 timeout 4"), "{ipset}");
    assert!(ipset.ends_with("\nopen tcp/22 192.0.2.7\nclose tcp/22 192.0.2.7\n"), "{ipset}");
    assert!(!host.path("state-gate/hook").exists());
}

#[test]
fn a_removal_finds_what_another_backend_has_installed() {
    let host = host_with("ipset");
    let removed = host
        .script_in_namespace(&format!(
            "% gate install; {}; % gate remove; {RULES}",
            change(&host, "ipset", "hook")
        ))
        .done();
    assert!(!removed.out.contains("SPA-") && !removed.out.contains("spa4"), "{removed:#?}");
}

#[test]
fn what_hook_commands_have_left_open_is_not_forgotten_with_them() {
    let host = host_with("ipset");
    fs::create_dir_all(host.path("state-gate/hook")).unwrap();
    let start = host.read("server.toml");
    host.edit("server.toml", |text| {
        let (begin, rest) = text.split_once("[gate.hook]").unwrap();
        let (_, end) = rest.split_once("close = ").unwrap();
        format!("{begin}{}", end.split_once('\n').unwrap().1)
    });
    let told = "hook commands may have left ports open";
    let said = host.script_in_namespace("% check; % gate install; % gate remove").done();
    assert_eq!(said.out.matches(told).count(), 2, "{said:#?}");
    assert!(said.err.contains(told), "{said:#?}");
    host.write("server.toml", &start);
    let said = host.script_in_namespace("% gate install; % check").done();
    assert!(!said.out.contains(told) && !host.path("state-gate/hook").exists(), "{said:#?}");
}

#[test]
fn the_first_backend_that_works_is_taken_and_why_is_said() {
    let host = Host::new();
    let checked = host.script_in_namespace("% check | grep backend").done();
    let first = "ok       backend        ipset (the first choice, and it works here): the kernel closes what is open in time, also when the daemon is dead\n";
    assert_eq!(checked.out, first, "{checked:#?}");
    // Nothing that can be run is where the tools were, for whoever is in that mount namespace.
    let script = format!(
        "cd {directory}
        unshare --mount sh -ec 'mount --bind /dev/null $(command -v iptables-save)
            % check | grep backend >check; % gate install; % gate show >nftables
            nft add element inet spa spa4 {{ 192.0.2.7 . tcp . 22 timeout 5000s }}'
        nft list tables >>nftables
        % gate install; {{ iptables-save; nft list tables; % gate show; }} >ipset
        ! unshare --mount sh -ec 'mount --bind /dev/null $(command -v iptables-save)
            % gate install' 2>stranded
        % gate remove; nft list tables >removed",
        directory = host.directory.path().display()
    );
    host.script_in_namespace(&script).done();
    let read = |name: &str| fs::read_to_string(host.directory.path().join(name)).unwrap();
    let why = "ok       backend        nftables (the first that works here; not ipset: iptables-restore is in none of /usr/sbin";
    assert!(read("check").starts_with(why), "{}", read("check"));
    let nftables = read("nftables");
    assert!(nftables.contains("(back-end nftables)") && nftables.contains("table inet spa\n"));
    // The tools are there again: the first choice takes over, and nothing of the other one stays.
    let ipset = read("ipset");
    assert!(ipset.contains("(back-end ipset)") && !ipset.contains("table inet spa\n"), "{ipset}");
    assert!(ipset.contains("-j SPA-GUARD") && ipset.contains("192.0.2.7  tcp/22  1h"), "{ipset}");
    // Gone once more: a table beside rules that nobody can change would open nothing.
    let told = "nftables: an earlier gate of iptables still hides the ports, and the tools";
    assert!(read("stranded").contains(told), "{}", read("stranded"));
    assert!(!read("removed").contains("table inet spa\n"));
}

#[test]
fn no_other_backend_is_taken_while_a_gate_stands_whose_tools_fail() {
    let host = Host::new();
    let failing = "mount --bind /bin/false $(command -v iptables-save)";
    let script = format!(
        "cd {directory}
        unshare --mount sh -ec '{failing}; % gate install; nft list tables >nothing-stood
            nft delete table inet spa'
        % gate install
        ! unshare --mount sh -ec '{failing}; % gate install' 2>failed
        nft list tables >ipset-stood
        % gate remove",
        directory = host.directory.path().display()
    );
    host.script_in_namespace(&script).done();
    let read = |name: &str| fs::read_to_string(host.directory.path().join(name)).unwrap();
    // Positive control: where there is no gate it is better than none.
    assert!(read("nothing-stood").contains("table inet spa\n"));
    assert!(read("failed").contains("cannot ask a tool for its version"), "{}", read("failed"));
    assert!(!read("ipset-stood").contains("table inet spa\n"));
}

#[test]
fn a_table_that_nobody_can_change_any_more_is_told() {
    let host = Host::new();
    let without = |tool: &str, what: &str| {
        format!("unshare --mount sh -ec 'mount --bind /dev/null $(command -v {tool}); {what}'")
    };
    let script = format!(
        "cd {directory}
        {install_nftables}
        ! {install} 2>installing
        ! {remove} 2>removing
        nft list tables >standing
        % gate remove; nft list tables >removed
        {remove}",
        directory = host.directory.path().display(),
        install_nftables = without("iptables-save", "% gate install"),
        install = without("nft", "% gate install"),
        remove = without("nft", "% gate remove"),
    );
    host.script_in_namespace(&script).done();
    let read = |name: &str| fs::read_to_string(host.directory.path().join(name)).unwrap();
    let told = "an earlier gate of nftables still hides the ports, and the tools";
    assert!(read("installing").contains(&format!("ipset: {told}")), "{}", read("installing"));
    assert!(read("removing").contains(told), "{}", read("removing"));
    assert!(read("standing").contains("table inet spa\n"));
    assert!(!read("removed").contains("table inet spa\n"));
}

#[test]
fn where_no_backend_works_each_one_is_told() {
    let host = Host::new();
    host.edit("server.toml", |text| text.replacen("[gate]\n", "[gate]\nmode = \"open\"\n", 1));
    let hide =
        "for tool in ipset iptables-save; do mount --bind /dev/null $(command -v $tool); done";
    let script = format!("unshare --mount sh -ec '{hide}; % gate install'");
    let failed =
        host.script_in_namespace(&script).failed(1, "no back-end of the gate works here; ");
    for told in [
        "ipset: iptables-restore is in none of",
        "nftables: cannot install this plan: the nftables back-end has no open mode",
        "iptables: ",
    ] {
        assert!(failed.err.contains(told), "{told}: {failed:#?}");
    }
}

#[test]
fn the_two_of_iptables_hand_over_to_each_other_what_is_open() {
    let host = host_with("ipset");
    let script = format!(
        "cd {directory}
        % gate install; ipset add spa4 192.0.2.7,tcp:22 timeout 5000
        {to_iptables}; % gate install; {{ {RULES}; % gate show; }} >iptables
        {to_ipset}; % gate install; {{ {RULES}; % gate show; }} >ipset",
        directory = host.directory.path().display(),
        to_iptables = change(&host, "ipset", "iptables"),
        to_ipset = change(&host, "iptables", "ipset"),
    );
    let done = host.script_in_namespace(&script).done();
    assert!(!done.out.contains("warning"), "{done:#?}");
    for (backend, has_sets) in [("iptables", false), ("ipset", true)] {
        let seen = fs::read_to_string(host.directory.path().join(backend)).unwrap();
        assert!(seen.contains(&format!("is installed (back-end {backend})\n")), "{seen}");
        assert!(seen.contains("192.0.2.7  tcp/22  1h"), "{seen}");
        assert_eq!(seen.lines().any(|line| line == "spa4"), has_sets, "{seen}");
        assert_eq!(seen.contains("--match-set"), has_sets, "{seen}");
    }
}

#[test]
fn a_gate_that_may_be_left_in_the_other_variant_of_iptables_is_told() {
    let host = host_with("iptables");
    let now = host.read("server.toml");
    let tools = ["iptables-restore", "iptables-save", "ip6tables-restore", "ip6tables-save"]
        .map(|tool| format!("{tool} = \"/usr/sbin/{}\"\n", tool.replace('-', "-legacy-")))
        .concat();
    host.write("before.toml", &format!("{now}\n[gate.tools]\n{tools}"));
    host.write("now.toml", &now);
    let script = format!(
        "cd {directory}
        cp before.toml server.toml; % gate install; cp now.toml server.toml
        unshare --mount sh -ec 'mount --bind /bin/false $(readlink -f $(command -v iptables-legacy-save))
            % gate install >installing
            ! % gate remove 2>removing'
        iptables-legacy-save >standing
        % gate install >installed; iptables-legacy-save >replaced
        cp before.toml server.toml; % gate install; cp now.toml server.toml
        % gate remove; iptables-legacy-save >removed",
        directory = host.path("").display(),
    );
    host.script_in_namespace(&script).done();
    let read = |name: &str| host.read(name);
    let told = "warning: a second gate may stand in iptables-legacy (IPv4), which refuses what this one lets in: cannot read the rules";
    assert!(read("installing").contains(told), "{}", read("installing"));
    assert!(read("removing").contains("cannot read the rules"), "{}", read("removing"));
    assert!(read("standing").contains("SPA-GUARD"));
    assert!(!read("installed").contains("second gate"), "{}", read("installed"));
    for (name, has_gate) in [("replaced", false), ("removed", false)] {
        assert_eq!(read(name).contains("SPA-"), has_gate, "{name}: {}", read(name));
    }
}

#[test]
fn a_removal_uses_what_is_there_of_the_tools() {
    for backend in ["ipset", "iptables"] {
        let host = host_with(backend);
        let script = format!(
            "cd {directory}
            % gate install; iptables-save >standing
            mkdir tools; cp -a /usr/sbin/*tables* /usr/sbin/nft tools; rm tools/ip6tables-save
            unshare --mount sh -ec 'mount --bind tools /usr/sbin; % gate remove'
            {{ {RULES}; }} >removed",
            directory = host.path("").display(),
        );
        host.script_in_namespace(&script).done();
        assert!(host.read("standing").contains("SPA-GUARD"));
        let removed = host.read("removed");
        assert!(!removed.contains("SPA-") && !removed.contains("spa4"), "{removed}");
    }
}
