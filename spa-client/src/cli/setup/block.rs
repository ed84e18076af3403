//! The block in ssh's configuration: what it says, where it stands, and what changes by it. Pure.

use crate::server::{Host, Server};
use core::fmt::Write as _;

const BEGIN: &str = "# >>> spa-client: written by `spa-client setup ssh`, which replaces it";
const END: &str = "# <<< spa-client";
/// Whatever begins and ends a block of ours, also one of another version.
const BEGIN_MARK: &str = "# >>> spa-client";
/// Lines around a change that are shown with it.
const CONTEXT: usize = 3;

/// How ssh comes to knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// spa-client connects, and hands the connection to ssh.
    HandedOver,
    /// spa-client connects, and carries the bytes: where ssh takes no connection.
    Carried,
    /// ssh connects, after spa-client has opened.
    MatchExec,
}

/// The block for these servers.
pub(super) fn text(servers: &[&Server], program: &str, way: Way) -> String {
    let mut text = format!("{BEGIN}\n");
    for server in servers {
        let (name, host) = (server.name.as_str(), server.host.as_str());
        let mut names = vec![name];
        for host in server.hosts().map(Host::as_str) {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(host)) {
                names.push(host);
            }
        }
        let _ = match way {
            Way::HandedOver => writeln!(
                text,
                "Host {}\n    ProxyCommand {program} proxy --fdpass --server {name} %h %p\n    ProxyUseFdpass yes",
                names.join(" ")
            ),
            Way::Carried => writeln!(
                text,
                "Host {}\n    ProxyCommand {program} proxy --server {name} %h %p",
                names.join(" ")
            ),
            Way::MatchExec => {
                let hosts = names.join(",");
                if !name.eq_ignore_ascii_case(host) {
                    // ssh expands tokens in it: an IPv6 scope is none.
                    let host = host.replace('%', "%%");
                    let _ = writeln!(text, "Host {name}\n    HostName {host}");
                }
                writeln!(
                    text,
                    "Match originalhost {hosts} exec \"{program} open ssh@{name} --quiet --wait\""
                )
            }
        };
    }
    // What follows was for all hosts, and has to stay so.
    let _ = writeln!(text, "Match all\n{END}");
    text
}

/// The file with this block, at its top: there its values are the first ones. Without a block:
/// the file without.
pub(super) fn changed(before: &str, block: Option<&str>) -> Result<String, String> {
    let rest = without_block(before)?;
    Ok(match block {
        None => rest,
        Some(block) if rest.is_empty() => block.into(),
        Some(block) => format!("{block}\n{rest}"),
    })
}

fn without_block(text: &str) -> Result<String, String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let place = |mark: &str| lines.iter().position(|line| line.starts_with(mark));
    let count = |mark: &str| lines.iter().filter(|line| line.starts_with(mark)).count();
    match (place(BEGIN_MARK), place(END), count(BEGIN_MARK), count(END)) {
        (None, None, ..) => Ok(text.into()),
        (Some(begin), Some(end), 1, 1) if begin < end => {
            let before = lines.iter().take(begin);
            let mut after = lines.iter().skip(end.saturating_add(1)).peekable();
            // The empty line that came with the block.
            if after.peek().is_some_and(|line| line.trim().is_empty()) {
                after.next();
            }
            Ok(before.chain(after).copied().collect())
        }
        _ => Err(format!(
            "the lines {BEGIN_MARK:?} and {END:?} don't enclose one block; take them and what spa-client wrote between them out by hand, and run this again"
        )),
    }
}

/// What changes, as `diff -u` shows it. The changes of ours are in one place, or few lines apart.
pub(super) fn difference(name: &str, before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| {
        pairs.take_while(|(old, new)| old == new).count()
    };
    let shorter = old.len().min(new.len());
    let head = same(&mut old.iter().zip(&new));
    let tail = same(&mut old.iter().rev().zip(new.iter().rev())).min(shorter.saturating_sub(head));
    if head == old.len() && head == new.len() {
        return String::new();
    }
    let from = head.saturating_sub(CONTEXT);
    let (old_end, new_end) = (old.len().saturating_sub(tail), new.len().saturating_sub(tail));
    let more = tail.min(CONTEXT);
    let place = |length: usize| {
        let count = length.saturating_sub(tail).saturating_add(more).saturating_sub(from);
        let first = if count == 0 { from } else { from.saturating_add(1) };
        format!("{first},{count}")
    };
    let mut text =
        format!("--- {name}\n+++ {name}\n@@ -{} +{} @@\n", place(old.len()), place(new.len()));
    let mut show = |mark: char, lines: &[&str], from: usize, to: usize| {
        for line in lines.get(from..to).unwrap_or_default() {
            let _ = writeln!(text, "{mark}{line}");
        }
    };
    show(' ', &old, from, head);
    show('-', &old, head, old_end);
    show('+', &new, head, new_end);
    show(' ', &old, old_end, old_end.saturating_add(more));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use spa_keys::PublicKey;

    fn block(way: Way) -> String {
        let server = |name: &str, host: &str| {
            let key = PublicKey::from_bytes([9; 32]);
            Server::new(name.parse().unwrap(), host.parse().unwrap(), key, "identity.key")
        };
        let (work, gw) = (server("work", "gw.example.org"), server("192.0.2.1", "192.0.2.1"));
        text(&[&work, &gw], "/usr/bin/spa-client", way)
    }

    #[test]
    fn the_block_knocks_by_one_of_the_ways() {
        assert_eq!(
            block(Way::HandedOver),
            "\
# >>> spa-client: written by `spa-client setup ssh`, which replaces it
Host work gw.example.org
    ProxyCommand /usr/bin/spa-client proxy --fdpass --server work %h %p
    ProxyUseFdpass yes
Host 192.0.2.1
    ProxyCommand /usr/bin/spa-client proxy --fdpass --server 192.0.2.1 %h %p
    ProxyUseFdpass yes
Match all
# <<< spa-client
"
        );
        assert_eq!(
            block(Way::Carried),
            "\
# >>> spa-client: written by `spa-client setup ssh`, which replaces it
Host work gw.example.org
    ProxyCommand /usr/bin/spa-client proxy --server work %h %p
Host 192.0.2.1
    ProxyCommand /usr/bin/spa-client proxy --server 192.0.2.1 %h %p
Match all
# <<< spa-client
"
        );
        assert_eq!(
            block(Way::MatchExec),
            "\
# >>> spa-client: written by `spa-client setup ssh`, which replaces it
Host work
    HostName gw.example.org
Match originalhost work,gw.example.org exec \"/usr/bin/spa-client open ssh@work --quiet --wait\"
Match originalhost 192.0.2.1 exec \"/usr/bin/spa-client open ssh@192.0.2.1 --quiet --wait\"
Match all
# <<< spa-client
"
        );
    }

    #[test]
    fn all_hosts_are_in_it_and_the_scope_of_an_address_is_no_token_of_ssh() {
        let key = PublicKey::from_bytes([9; 32]);
        let host = "fe80::1%eth0".parse().unwrap();
        let mut server = Server::new("work".parse().unwrap(), host, key, "identity.key");
        server.more_hosts = vec!["WORK".parse().unwrap(), "gw2".parse().unwrap()];
        let proxied = text(&[&server], "spa-client", Way::HandedOver);
        assert!(proxied.contains("\nHost work fe80::1%eth0 gw2\n"), "{proxied}");
        let text = text(&[&server], "spa-client", Way::MatchExec);
        assert!(text.contains("\n    HostName fe80::1%%eth0\n"), "{text}");
        assert!(text.contains("originalhost work,fe80::1%eth0,gw2 exec"), "{text}");
    }

    #[test]
    fn the_block_is_put_at_the_top_once_and_taken_out_without_a_trace() {
        let ours = block(Way::HandedOver);
        for before in ["", "Host a\n  Port 1\n", "ForwardAgent no", "\n\nHost *\r\n\tPort 2\r\n"] {
            let after = changed(before, Some(&ours)).unwrap();
            assert!(after.starts_with(&ours));
            assert_eq!(changed(&after, Some(&ours)).unwrap(), after, "a second time");
            assert_eq!(changed(&after, None).unwrap(), before);
            let other = changed(&after, Some(&block(Way::MatchExec))).unwrap();
            assert_eq!(other.matches(END).count(), 1);
            assert_eq!(changed(&other, None).unwrap(), before);
        }
        // One that was moved goes back to where it counts.
        let moved = format!("Host a\n\n{ours}\nHost b\n");
        assert_eq!(changed(&moved, Some(&ours)).unwrap(), format!("{ours}\nHost a\n\nHost b\n"));
    }

    #[test]
    fn a_block_that_somebody_has_cut_is_left_alone() {
        let ours = block(Way::HandedOver);
        let cut = ours.lines().take(3).collect::<Vec<_>>().join("\n");
        for text in [cut.clone(), format!("{END}\n{cut}\n"), format!("{ours}{ours}")] {
            assert!(changed(&text, Some(&ours)).is_err() && changed(&text, None).is_err());
        }
    }

    #[test]
    fn the_difference_is_shown_as_diff_shows_it() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\n";
        assert_eq!(difference("x", before, before), "");
        assert_eq!(
            difference("x", before, "a\nb\nc\nd\n1\n2\nf\ng\nh\n"),
            "--- x\n+++ x\n@@ -2,7 +2,8 @@\n b\n c\n d\n-e\n+1\n+2\n f\n g\n h\n"
        );
        assert_eq!(
            difference("x", before, &format!("0\n{before}")),
            "--- x\n+++ x\n@@ -1,3 +1,4 @@\n+0\n a\n b\n c\n"
        );
        assert_eq!(difference("x", "", "a\n"), "--- x\n+++ x\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(difference("x", "a\na\n", "a\n"), "--- x\n+++ x\n@@ -1,2 +1,1 @@\n a\n-a\n");
    }
}
