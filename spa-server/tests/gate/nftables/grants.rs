//! What a grant lets through, and what it does not.

use super::*;

#[test]
fn networks_and_ranges_are_granted_as_wholes_and_in_part() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded.push(guarded("tcp/20-25"));
    install(&lab, &plan);
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    apply(&lab, &plan, &admit([CLIENT[0], CLIENT[1]], "tcp/80", 1).split_off(2));
    // One port of the range, and the range.
    let wide = [NETWORKS[0], NETWORKS[1]];
    for (sources, ports) in
        [(wide, "tcp/22"), (wide, "tcp/20-25"), (["192.0.2.0/31", CLIENT[1]], "tcp/20-25")]
    {
        apply(&lab, &plan, &admit(sources, ports, 600));
        assert_eq!(lab.both(CLIENT, 22), OPEN, "{ports}");
        let of_stranger = if sources == wide { OPEN } else { SILENT };
        assert_eq!(lab.both(STRANGER, 22), of_stranger, "{ports}");
        // Nobody listens: the host says so itself, if anything gets through.
        let whole = ports != "tcp/22";
        for port in [20, 25] {
            assert_eq!(lab.both(CLIENT, port) == REFUSED, whole, "{port} of {ports}");
        }
        assert_eq!(admitted(&lab, &plan), sources.map(|source| element(source, ports)));
        apply(&lab, &plan, &withdraw(sources, ports));
        assert_eq!(lab.both(CLIENT, 22), SILENT);
        assert_eq!(admitted(&lab, &plan), []);
    }
    // Networks in one another: each lives for itself.
    apply(&lab, &plan, &admit(["192.0.0.0/16", "2001:db8::/32"], "tcp/22", 600));
    apply(&lab, &plan, &admit(wide, "tcp/22", 600));
    apply(&lab, &plan, &withdraw(wide, "tcp/22"));
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    apply(&lab, &plan, &withdraw(["192.0.0.0/16", "2001:db8::/32"], "tcp/22"));
    assert_eq!(lab.both(STRANGER, 22), SILENT);
}

#[test]
fn what_is_granted_is_forwarded_and_nothing_else_is() {
    let lab = lab();
    // Whoever comes to the inner host is counted there.
    lab.on("i", "nft add table inet seen");
    lab.on("i", "nft add chain inet seen in { type filter hook input priority 0; }");
    let rule = |source: &str| {
        lab.on("i", &format!("nft add rule inet seen in {source} tcp flags syn counter accept"));
    };
    for (family, source) in ["ip saddr 192.0.2.3", "ip6 saddr 2001:db8:1::3"].iter().enumerate() {
        rule(source);
        assert_eq!(lab.tcp(STRANGER[family], INNER[family], 22), Seen::Open, "a way is there");
    }
    let strangers = || lab.on("i", "nft list chain inet seen in").matches("packets 1 ").count();
    assert_eq!(strangers(), 2);
    // Once: while another test starts a program, that has it open too, and nobody can bind it again.
    let listener = lab.inside("i", || TcpListener::bind("[::]:23").unwrap());
    for masquerade in [false, true] {
        let mut plan = plan();
        plan.guarded = vec![
            forward("tcp/2222", [Some(INNER[0]), Some(INNER[1])], Some(23), masquerade),
            forward("tcp/20-22", [Some(INNER[0]), None], None, masquerade),
        ];
        install(&lab, &plan);
        assert_eq!(lab.both(CLIENT, 2222), SILENT);
        apply(&lab, &plan, &admit(CLIENT, "tcp/2222", 600));
        apply(&lab, &plan, &admit([CLIENT[0]; 2], "tcp/20-22", 600));
        assert_eq!(lab.both(STRANGER, 2222), SILENT);
        assert_eq!(lab.both(STRANGER, 22), SILENT);
        assert_eq!(strangers(), 2, "nothing of the stranger's came through");
        assert_eq!(lab.both(CLIENT, 2222), OPEN);
        (0..2).for_each(|_| drop(listener.accept().unwrap()));
        // The range keeps the port, and isn't there over IPv6, for nobody.
        assert_eq!(lab.both(CLIENT, 22), [Seen::Open, Seen::Silent]);
        plan.always_admit = vec!["2001:db8::/32".parse().unwrap()];
        install(&lab, &plan);
        assert_eq!(lab.both(CLIENT, 22), [Seen::Open, Seen::Silent]);
        plan.always_admit.clear();
        install(&lab, &plan);
        // Whom the inner host sees: this host, if so asked; and whom it merely routes, always.
        for (family, through) in ["198.51.100.1", "2001:db8:2::1"].into_iter().enumerate() {
            let seen = |to: &str, port: u16| {
                assert_eq!(lab.tcp(CLIENT[family], to, port), Seen::Open);
                listener.accept().unwrap().1.ip().to_canonical().to_string()
            };
            let source = if masquerade { through } else { CLIENT[family] };
            assert_eq!(seen(SERVER[family], 2222), source);
            assert_eq!(seen(INNER[family], 23), CLIENT[family]);
        }
        apply(&lab, &plan, &withdraw(CLIENT, "tcp/2222"));
        assert_eq!(lab.both(CLIENT, 2222), SILENT);
        apply(&lab, &plan, &withdraw([CLIENT[0]; 2], "tcp/20-22"));
    }
}

#[test]
fn a_port_leads_to_another_one_of_this_host() {
    let lab = lab();
    let mut plan = plan();
    let target = Target::LocalPort(NonZeroU16::new(80).unwrap());
    plan.guarded = vec![Guarded { target, ..guarded("tcp/8080") }];
    let report = install(&lab, &plan);
    let warned = |report: &InstallReport| report.warnings.iter().any(|one| one.contains("tcp/80 "));
    assert!(warned(&report), "{report:?}");
    assert_eq!(lab.both(CLIENT, 8080), SILENT);
    assert_eq!(lab.both(CLIENT, 80), OPEN);
    // The port that it leads to may itself be guarded.
    plan.guarded.push(guarded("tcp/80"));
    assert!(!warned(&install(&lab, &plan)));
    apply(&lab, &plan, &admit(CLIENT, "tcp/8080", 600));
    assert_eq!(lab.both(CLIENT, 8080), OPEN);
    assert_eq!(lab.both(CLIENT, 80), SILENT);
    assert_eq!(lab.both(STRANGER, 8080), SILENT);
}

#[test]
fn some_networks_need_no_grant() {
    let lab = lab();
    let mut plan = plan();
    plan.always_admit = [CLIENT[0], "192.0.2.0/31", "2001:db8:1::1/128"]
        .map(|net| net.parse().unwrap_or_else(|_| format!("{net}/32").parse().unwrap()))
        .to_vec();
    install(&lab, &plan);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    assert_eq!(at_once(|family| lab.udp(family, 62201, None)), SILENT, "knock ports stay hidden");
}

#[test]
fn a_hundred_thousand_grants_cost_each_what_the_first_did() {
    let lab = lab();
    let mut plan = plan();
    plan.max_elements = 200_000;
    with_gate(&lab, |gate| async move {
        gate.install(&plan).await.unwrap();
        let source = |n: u32| std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let grant = |n: u32| Change::Admit {
            element: Element { source: source(n).into(), ports: "tcp/22".parse().unwrap() },
            seconds: 3600,
        };
        let mut held = 0;
        while held < 100_000 {
            let some: Vec<_> = (held..held + 10_000).map(grant).collect();
            gate.apply(&some).await.unwrap();
            held += 10_000;
        }
        assert_eq!(gate.look(Doubt::Elements).await.unwrap().elements, u64::from(held));
        assert_eq!(gate.snapshot().await.unwrap().len(), usize::try_from(held).unwrap());
    });
}

#[test]
fn sets_are_resized_without_losing_an_element() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded.push(guarded("udp/7-9"));
    let mut changes = admit(CLIENT, "tcp/22", 600);
    changes.extend(admit(NETWORKS, "udp/7-9", 600));
    apply(&lab, &plan, &changes);
    let sizes = |size: u32| ruleset(&lab).matches(&format!("size {size}\n")).count();
    assert_eq!(sizes(1024), 6);
    plan.max_elements = 7;
    assert_eq!(admitted(&lab, &plan).len(), 4);
    assert_eq!((sizes(1024), sizes(7)), (0, 6));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    // Smaller than what is in it: it stays as large until that is over.
    plan.max_elements = 1;
    assert_eq!(admitted(&lab, &plan).len(), 4);
    assert_eq!(sizes(7), 6);
}
