//! A gate on trial.

use super::*;

#[test]
fn a_gate_on_trial() {
    let mut plan = plan(Mode::Guard, Refusal::Reject, &[guarded("tcp/22")]);
    plan.trial_seconds = Some(60);
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -m set --match-set spa4-armed src -j CONNMARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -m set --match-set spa4-armed src -j MARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -m set --match-set spa4-armed src -j ACCEPT
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    :SPA-FORWARD - [0:0]
    :SPA-MARKED - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m set --match-set spa4-armed src -m mark --mark 0x20000000/0x20000000 -j SPA-MARKED
    -A SPA-INPUT -m set --match-set spa4-armed src -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-INPUT -p tcp -m tcp --dport 22 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -m set --match-set spa4-armed src -j SPA-REJECT
    -A SPA-FORWARD -m set --match-set spa4-armed src -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -m set --match-set spa4-armed src -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-MARKED -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-MARKED -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 62201 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 22 -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp-port-unreachable
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn the_end_of_a_trial_is_read_back() {
    let text = "*mangle\n:SPA-REFUSE - [0:0]\n-A SPA-REFUSE -m time --datestop 2026-11-21T10:00:00 -j DROP\nCOMMIT\n";
    let saved = Saved::parse(text).unwrap();
    assert_eq!(armed_until(saved.table("mangle")), Some(1_795_255_200));
    assert_eq!(armed_until(Saved::default().table("mangle")), None);
}
