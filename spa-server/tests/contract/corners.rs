//! Ways around the gate, and into the way of others, that are not there.

use crate::lab::{BOTH, CLIENT, INNER, Lab, SERVER, STRANGER, admit, plan};
use crate::probe::Seen::{At, Open, Refused, Silent};
use crate::probe::{Flow, PATIENCE, Session, both, probe, until};
use crate::subject::Host;
use spa_server::gate::{Plan, Refusal};
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::thread;

/// What nmap says of two ports of the server's, by kind of scan: state and reason.
fn scanned(lab: &Lab, family: usize, scans: &[&str], ports: [u16; 2]) -> [Vec<String>; 2] {
    let version = if family == 0 { "" } else { " -6" };
    let scan = |scan: &&str| {
        let [one, other] = ports;
        let to = SERVER[family];
        let options = "-Pn -n --reason --max-retries 1";
        lab.clients.run(&format!("nmap{version} {scan} {options} -p {one},{other} {to}"))
    };
    let all = thread::scope(|scope| {
        let running: Vec<_> = scans.iter().map(|s| scope.spawn(move || (s, scan(s)))).collect();
        running.into_iter().map(|scan| scan.join().unwrap()).collect::<Vec<_>>()
    });
    ports.map(|port| {
        let of_port = |(scan, text): &(&&str, String)| {
            let line = text.lines().find(|line| line.starts_with(&format!("{port}/")));
            let words: Vec<_> =
                line.unwrap_or_else(|| panic!("{text}")).split_whitespace().collect();
            // Port, state, the port's usual service, reason.
            format!("{scan}: {} {}", words[1], words[3..].join(" "))
        };
        all.iter().map(of_port).collect()
    })
}

pub(crate) fn no_scan_tells_a_guarded_port_from_a_closed_one(lab: &Lab) {
    let looks = |alike: bool| {
        let check = |family| {
            for (scans, pairs) in [
                (&["-sS", "-sA", "-sF", "-sN", "-sX", "-sW"][..], vec![[22, 23], [7001, 23]]),
                (&["-sU"], vec![[5000, 5001], [62201, 62202]]),
            ] {
                for pair in pairs {
                    let [guarded, closed] = scanned(lab, family, scans, pair);
                    // Without a gate, the knock port is closed.
                    assert_eq!(
                        guarded == closed,
                        alike || pair[0] == 62201,
                        "{guarded:?} {closed:?}"
                    );
                }
            }
        };
        thread::scope(|scope| {
            for family in BOTH {
                scope.spawn(move || check(family));
            }
        });
    };
    let reject = Plan { refusal: Refusal::Reject, ..plan(&["tcp/22", "tcp/7001", "udp/5000"]) };
    looks(false);
    let gate = lab.installed(&reject);
    looks(true);
    gate.install(&Plan { refusal: Refusal::Drop, ..reject }).unwrap();
    Host::Drops.prepare(lab);
    looks(true);
}

pub(crate) fn broadcasts_and_multicasts_are_no_way_in(lab: &Lab) {
    let link = lab.clients.inside(|| nix::net::if_::if_nametoindex("up").unwrap());
    let arrives = |to: SocketAddr| {
        let from = CLIENT[usize::from(to.is_ipv6())];
        let sender = lab.clients.inside(|| UdpSocket::bind((from, 0)).unwrap());
        sender.set_broadcast(true).unwrap();
        sender.send_to(b"anybody there?", to).unwrap();
        thread::sleep(PATIENCE / 2);
        lab.at_server.datagrams(5000, sender.local_addr().unwrap()) > 0
    };
    let broadcast: SocketAddr = "192.0.2.255:5000".parse().unwrap();
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 5000, 0, link).into();
    let both = || [arrives(broadcast), arrives(all_nodes)];
    until("arrived", || both() == [true; 2]);
    let gate = lab.installed(&plan(&["udp/5000"]));
    assert_eq!(both(), [false; 2]);
    gate.remove();
    until("arrived", || both() == [true; 2]);
}

pub(crate) fn an_address_that_only_a_policy_makes_local_is_guarded(lab: &Lab) {
    // One of this host that the routing table "local" doesn't know, as in a VRF.
    let addresses = ["203.0.114.7", "2001:db8:9::7"];
    for family in BOTH {
        let (version, address) = (["-4", "-6"][family], addresses[family]);
        lab.server.run(&format!("ip {version} route add local {address} dev lo table 100"));
        lab.server.run(&format!("ip {version} rule add pref 50 lookup 100"));
    }
    // Nobody answers from there by itself: what arrives is counted.
    let arrives = || {
        let flows = BOTH.map(|family| {
            let to = crate::lab::at(addresses[family], 5000);
            Flow::new(&lab.clients, CLIENT[family].parse().unwrap(), to)
        });
        for flow in &flows {
            flow.send(b"anybody there?");
        }
        thread::sleep(PATIENCE / 2);
        flows.map(|flow| lab.at_server.datagrams(5000, flow.near) > 0)
    };
    until("arrived", || arrives() == [true; 2]);
    let gate = lab.installed(&plan(&["udp/5000"]));
    assert_eq!(arrives(), [false; 2]);
    gate.apply(&[&admit(CLIENT, "udp/5000", 600)]);
    until("arrived", || arrives() == [true; 2]);
}

pub(crate) fn what_others_translate_and_mark_is_theirs(lab: &Lab) {
    // A port that the host sends to a guarded one is not guarded itself.
    lab.rules(&["-t nat -A PREROUTING -i ext -p tcp --dport 2222 -j REDIRECT --to-ports 22"]);
    for (refusal, closed) in [(Refusal::Drop, Silent), (Refusal::Reject, Refused)] {
        let gate = lab.installed(&Plan { refusal, ..plan(&["tcp/22"]) });
        let redirected = both(CLIENT, "tcp/2222", At("server", 22));
        let forwarded = BOTH.map(|f| probe(CLIENT[f], INNER[f], "tcp/22", At("inner", 22)));
        lab.see(&[&redirected, &forwarded, &both(CLIENT, "tcp/22", closed)]);
        // Marks that others give, or take off, open nothing and close nothing.
        for mark in ["MARK --set-xmark 0xffffffff", "MARK --set-mark 0"] {
            let rule = format!("-t mangle -A PREROUTING -p tcp -j {mark}");
            lab.rules(&[&rule]);
            lab.see(&[&forwarded, &both(CLIENT, "tcp/22", closed)]);
            lab.rules(&[&rule.replace("-A", "-D")]);
        }
        let restore = "table inet uplinks {\n chain entry {\n \
                       type filter hook prerouting priority -149\n meta mark set ct mark\n }\n}\n";
        lab.server.feed("nft -f -", restore);
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
        lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", closed)]);
        lab.server.run("nft delete table inet uplinks");
        gate.remove();
    }
}

pub(crate) fn a_mark_of_others_closes_nothing(lab: &Lab) {
    for (refusal, closed) in [(Refusal::Drop, Silent), (Refusal::Reject, Refused)] {
        let gate = lab.installed(&Plan { refusal, ..plan(&["tcp/22", "udp/5000"]) });
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
        let mut sessions: Vec<_> = BOTH
            .into_iter()
            .flat_map(|family| [22, 80].map(|port| lab.session(CLIENT, family, port)))
            .collect();
        // On every packet, as of a program that takes the whole mark for its own.
        let mark = "table inet uplinks {\n chain entry {\n \
                    type filter hook prerouting priority -160\n meta mark set 0xffffffff\n }\n}\n";
        lab.server.feed("nft -f -", mark);
        let forwarded = BOTH.map(|f| probe(STRANGER[f], INNER[f], "tcp/22", At("inner", 22)));
        lab.see(&[&both(STRANGER, "tcp/80", Open), &both(CLIENT, "tcp/22", Open), &forwarded]);
        assert!(sessions.iter_mut().all(Session::lives));
        // What is hidden is so all the same, the knock port too.
        let hidden = ["tcp/22", "udp/5000", "udp/62201"];
        lab.see(&[&hidden.map(|port| both(STRANGER, port, closed)).concat()]);
        lab.server.run("nft delete table inet uplinks");
        gate.remove();
    }
}
