//! The rules of a knock, said a second time and as plainly as can be: lists that are walked, nothing
//! that is forgotten. It shares no code with what it is compared with, and knows no bytes.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) const SECOND: u64 = 1_000_000;
/// The freshness window, and the longest that there can be.
pub(super) const WINDOW: u64 = 60 * SECOND;
pub(super) const WIDEST_WINDOW: u64 = 120 * SECOND;
const EPOCH: u64 = 60 * SECOND;
const LONGEST_WAIT: u64 = 5 * SECOND;
const TOGETHER: u64 = SECOND / 10;
const SKEWED_PER_SECOND: u32 = 4;
pub(super) const WINDOW_CAPACITY: usize = 3;
pub(super) const MAX_GRANTS: usize = 4;

/// Their ports, and whether they are there over IPv6.
pub(super) const SERVICES: [(&str, &[&str], bool); 4] = [
    ("ssh", &["tcp/22"], true),
    ("web", &["tcp/80", "tcp/443"], true),
    ("media", &["udp/10000-10100"], true),
    ("db", &["tcp/5432"], false),
];

#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) enabled: bool,
    pub(super) allow: Vec<&'static str>,
    pub(super) max_seconds: u64,
    pub(super) default_seconds: u64,
    pub(super) sources: Vec<IpNet>,
    pub(super) not_before: Option<u64>,
    pub(super) expires: Option<u64>,
    pub(super) must_be_bound: bool,
    pub(super) prefixes: (u8, u8),
    pub(super) per_minute: u64,
    pub(super) burst: u64,
    pub(super) max_sources: usize,
}

/// `None`: the policy does not know the client any more.
pub(super) type Rules = Vec<Option<Rule>>;

/// A knock, as who sent it meant it, and what has become of it on the way.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) client: usize,
    pub(super) nonce: u8,
    pub(super) stamp: u64,
    pub(super) is_open: bool,
    pub(super) items: Vec<&'static str>,
    pub(super) bound: Option<IpAddr>,
    pub(super) seconds: Option<u64>,
    pub(super) harm: Option<Harm>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Harm {
    /// The frame holds no datagram, and why.
    Frame(&'static str),
    Length,
    /// In what is needed to find out whose it is.
    Tag,
    /// In that part of the tag which the sieve does not look at.
    TagEnd,
    /// Behind that.
    Body,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Granted {
    pub(super) client: usize,
    pub(super) source: IpNet,
    pub(super) item: String,
    pub(super) ports: Vec<String>,
    pub(super) end: u64,
}

pub(super) struct Model {
    pub(super) now: u64,
    pub(super) boot: u64,
    pub(super) barrier: u64,
    pub(super) rules: Rules,
    pub(super) refused: Vec<(IpNet, u64)>,
    pub(super) grants: Vec<Granted>,
    accepted: Vec<(usize, u8, u64)>,
    closed: Vec<(usize, String, u64)>,
    /// Tokens that were taken, since the start.
    taken: Vec<(usize, u64)>,
    /// What was agreed to on an interface.
    seen: Vec<(u8, u32, u64)>,
    last_look: (u64, u64),
    /// Around which epoch the tags are known.
    tags: Option<u64>,
    skewed: (u64, u32),
}

type Verdict = Result<(), &'static str>;

impl Model {
    pub(super) fn new(now: u64, boot: u64, rules: Rules) -> Self {
        Self {
            now,
            boot,
            barrier: 0,
            rules,
            refused: Vec::new(),
            grants: Vec::new(),
            accepted: Vec::new(),
            closed: Vec::new(),
            taken: Vec::new(),
            seen: Vec::new(),
            last_look: (now, boot),
            tags: None,
            skewed: (0, 0),
        }
    }

    /// What is due every second.
    pub(super) fn tick(&mut self) {
        self.look_at_clock();
        self.tags = Some(self.now / EPOCH);
        self.grants.retain(|grant| grant.end > self.boot);
    }

    fn look_at_clock(&mut self) {
        let expected = self.last_look.0 + (self.boot - self.last_look.1);
        self.last_look = (self.now, self.boot);
        if self.now >= expected + SECOND {
            self.barrier = self.barrier.max(self.now + WINDOW);
        } else if self.now + SECOND <= expected {
            self.barrier = self.barrier.min(self.now + WIDEST_WINDOW);
        }
    }

    fn knows_tags(&self) -> bool {
        self.tags.is_some_and(|tags| tags.abs_diff(self.now / EPOCH) <= 1)
    }

    /// What the sieve says, which has no lock and no secrets.
    pub(super) fn sift(&self, letter: &Letter) -> Verdict {
        match letter.harm {
            Some(Harm::Frame(_)) => Ok(()),
            Some(Harm::Length) => Err("length"),
            Some(Harm::TagEnd) if self.knows_tags() => self.find(letter, None),
            harm if self.knows_tags() => self.find(letter, harm),
            _ => Ok(()),
        }
    }

    fn find(&self, letter: &Letter, harm: Option<Harm>) -> Verdict {
        let (tags, epoch) = (self.tags.unwrap_or(0), letter.stamp / EPOCH);
        let is_known = epoch + 4 >= tags && epoch <= tags + 3;
        if is_known && !matches!(harm, Some(Harm::Tag | Harm::TagEnd)) {
            Ok(())
        } else {
            Err("unknown-tag")
        }
    }

    /// What the capture side says.
    pub(super) fn judge(&mut self, letter: &Letter, source: IpAddr, interface: u32) -> Verdict {
        self.receive(letter, source).map_err(|reason| {
            let is_twin = reason == "replay" && self.is_twin(letter, interface);
            if is_twin { "duplicate" } else { reason }
        })?;
        if self.is_twin(letter, interface) {
            return Err("duplicate");
        }
        self.look_at_clock();
        self.permit(letter, source)?;
        self.seen.push((letter.nonce, interface, self.boot));
        Ok(())
    }

    fn is_twin(&self, letter: &Letter, interface: u32) -> bool {
        self.seen.iter().any(|(nonce, on, at)| {
            *nonce == letter.nonce && *on != interface && self.boot - at <= TOGETHER
        })
    }

    fn receive(&mut self, letter: &Letter, source: IpAddr) -> Verdict {
        match letter.harm {
            Some(Harm::Frame(why)) => return Err(why),
            Some(Harm::Length) => return Err("length"),
            _ => {}
        }
        if !self.knows_tags() {
            self.tags = Some(self.now / EPOCH);
        }
        self.find(letter, letter.harm)?;
        let epoch = letter.stamp / EPOCH;
        if epoch < (self.now - WINDOW) / EPOCH || epoch > (self.now + WINDOW) / EPOCH {
            let second = self.now / SECOND;
            let before = if self.skewed.0 == second { self.skewed.1 } else { 0 };
            if before == SKEWED_PER_SECOND {
                return Err("skew-unexamined");
            }
            self.skewed = (second, before + 1);
        }
        if letter.harm.is_some() {
            return Err("mac");
        }
        self.is_new(letter)?;
        if letter.stamp.abs_diff(self.now) > WINDOW {
            return Err(if letter.stamp < self.now { "too-old" } else { "too-new" });
        }
        self.is_above_barrier(letter)?;
        self.is_above_floor(letter)?;
        if letter.bound.is_some_and(|bound| bound != source) {
            return Err("bound-source");
        }
        Ok(())
    }

    fn floor(&self, client: usize) -> u64 {
        let highest = self.accepted.iter().filter(|(of, ..)| *of == client).map(|(.., at)| *at);
        highest.max().map_or(0, |highest| highest - 2 * WINDOW)
    }

    fn is_new(&self, letter: &Letter) -> Verdict {
        let floor = self.floor(letter.client);
        let is_it = |(client, nonce, stamp): &(usize, u8, u64)| {
            *client == letter.client && *nonce == letter.nonce && *stamp > floor
        };
        if self.accepted.iter().any(is_it) { Err("replay") } else { Ok(()) }
    }

    fn is_above_barrier(&self, letter: &Letter) -> Verdict {
        if letter.stamp > self.barrier { Ok(()) } else { Err("barrier") }
    }

    fn is_above_floor(&self, letter: &Letter) -> Verdict {
        if letter.stamp > self.floor(letter.client) { Ok(()) } else { Err("floor") }
    }

    fn permit(&self, letter: &Letter, source: IpAddr) -> Verdict {
        let rule = self.rules[letter.client].as_ref().ok_or("unknown-client")?;
        self.stands(rule, source)?;
        if rule.must_be_bound && letter.bound.is_none() {
            return Err("bound-source-required");
        }
        for item in &letter.items {
            ports_of(rule, item, source)?;
        }
        if !letter.is_open {
            return Ok(());
        }
        if seconds_of(rule, letter) > rule.max_seconds {
            return Err("lifetime");
        }
        if self.is_refused(admitted(rule, source)) { Err("source-refused") } else { Ok(()) }
    }

    fn stands(&self, rule: &Rule, source: IpAddr) -> Verdict {
        if !rule.enabled {
            Err("disabled")
        } else if rule.not_before.is_some_and(|from| self.now < from) {
            Err("not-yet-valid")
        } else if rule.expires.is_some_and(|end| self.now >= end) {
            Err("expired")
        } else if !rule.sources.is_empty() && !rule.sources.iter().any(|net| net.contains(&source))
        {
            Err("source-not-allowed")
        } else {
            Ok(())
        }
    }

    fn is_refused(&self, source: IpNet) -> bool {
        self.refused.iter().any(|(net, until)| {
            *until > self.boot && (net.contains(&source) || source.contains(net))
        })
    }

    /// What comes of those that have waited together.
    pub(super) fn settle(&mut self, waiting: &[(Letter, IpAddr)]) -> Vec<Verdict> {
        let (mut coming, mut new) = (Vec::new(), 0);
        let verdicts: Vec<_> = waiting
            .iter()
            .map(|(letter, source)| self.agree(letter, *source, &mut coming, &mut new))
            .collect();
        for ((letter, source), verdict) in waiting.iter().zip(&verdicts) {
            if verdict.is_ok() {
                self.carry_out(letter, *source);
            }
        }
        verdicts
    }

    fn agree(
        &mut self,
        letter: &Letter,
        source: IpAddr,
        coming: &mut Vec<(usize, IpNet)>,
        new: &mut usize,
    ) -> Verdict {
        self.permit(letter, source)?;
        if letter.stamp + WINDOW + LONGEST_WAIT < self.now {
            return Err("too-old");
        }
        let rule = self.rules[letter.client].clone().ok_or("unknown-client")?;
        if !self.has_token(letter.client, &rule) {
            return Err("rate");
        }
        let net = admitted(&rule, source);
        let mut is_new = 0;
        if letter.is_open {
            let had = self.grants.iter().map(|grant| (grant.client, grant.source));
            let all: BTreeSet<_> = had.chain(coming.iter().copied()).collect();
            let of_client = all.iter().filter(|(client, _)| *client == letter.client);
            if !all.contains(&(letter.client, net)) && of_client.count() >= rule.max_sources {
                return Err("max-sources");
            }
            let is_open = |item: &str| {
                self.grants.iter().any(|grant| {
                    (grant.client, grant.source, &*grant.item) == (letter.client, net, item)
                })
            };
            is_new = letter.items.iter().filter(|item| !is_open(item)).count();
            if self.grants.len() + *new + is_new > MAX_GRANTS {
                return Err("max-grants");
            }
        }
        self.enter(letter, &rule, source)?;
        self.taken.push((letter.client, self.boot));
        if letter.is_open {
            coming.push((letter.client, net));
            *new += is_new;
        }
        Ok(())
    }

    /// Units of 1/60,000,000 token, from the first that was taken on.
    fn has_token(&self, client: usize, rule: &Rule) -> bool {
        const TOKEN: u64 = 60 * SECOND;
        let (mut level, mut at) = (rule.burst * TOKEN, 0);
        for (_, taken) in self.taken.iter().filter(|(of, _)| *of == client) {
            level = (level + (taken - at) * rule.per_minute).min(rule.burst * TOKEN) - TOKEN;
            at = *taken;
        }
        (level + (self.boot - at) * rule.per_minute).min(rule.burst * TOKEN) >= TOKEN
    }

    fn enter(&mut self, letter: &Letter, rule: &Rule, source: IpAddr) -> Verdict {
        let client = letter.client;
        let mut ports = Vec::new();
        for item in &letter.items {
            ports.extend(ports_of(rule, item, source)?);
        }
        self.is_above_barrier(letter)?;
        self.is_new(letter)?;
        self.is_above_floor(letter)?;
        let is_closed_later = |(of, closed, stamp): &(usize, String, u64)| {
            let overlap = ports.iter().any(|port| do_overlap(port, closed));
            *of == client && letter.stamp <= *stamp && overlap
        };
        if letter.is_open && self.closed.iter().any(is_closed_later) {
            return Err("superseded");
        }
        let floor = self.floor(client).max(letter.stamp - 2 * WINDOW);
        let kept = self.accepted.iter().filter(|(of, _, stamp)| *of == client && *stamp > floor);
        if kept.count() >= WINDOW_CAPACITY {
            return Err("window-full");
        }
        self.accepted.push((client, letter.nonce, letter.stamp));
        if !letter.is_open {
            self.closed.extend(ports.into_iter().map(|port| (client, port, letter.stamp)));
        }
        Ok(())
    }

    fn carry_out(&mut self, letter: &Letter, source: IpAddr) {
        let Some(rule) = &self.rules[letter.client] else { return };
        let net = admitted(rule, source);
        let left = rule.expires.map_or(u64::MAX, |end| end - self.now);
        let lasts = left.min(seconds_of(rule, letter) * SECOND);
        for item in &letter.items {
            let Ok(ports) = ports_of(rule, item, source) else { continue };
            let is_it = |grant: &Granted| {
                (grant.client, grant.source, &*grant.item) == (letter.client, net, *item)
            };
            let had = self.grants.iter().find(|grant| is_it(grant)).map_or(0, |grant| grant.end);
            self.grants.retain(|grant| !is_it(grant));
            if letter.is_open {
                self.grants.push(Granted {
                    client: letter.client,
                    source: net,
                    item: (*item).to_owned(),
                    ports,
                    end: had.max(self.boot + lasts),
                });
            }
        }
    }

    /// Another process begins, by these rules. If what was written is lost, a barrier stands for it.
    pub(super) fn restart(&mut self, rules: Rules, is_lost: bool) {
        self.rules = rules;
        self.barrier = self.barrier.min(self.now + WIDEST_WINDOW);
        if is_lost {
            self.barrier = self.now + WINDOW;
            self.accepted.clear();
            self.closed.clear();
        }
        self.taken.clear();
        self.seen.clear();
        self.last_look = (self.now, self.boot);
        self.tags = None;
        self.skewed = (0, 0);
        let grants = std::mem::take(&mut self.grants);
        self.grants = grants.into_iter().filter_map(|grant| self.upheld(grant)).collect();
    }

    fn upheld(&self, grant: Granted) -> Option<Granted> {
        let rule = self.rules[grant.client].as_ref()?;
        let address = grant.source.addr();
        self.stands(rule, address).ok()?;
        ports_of(rule, &grant.item, address).ok()?;
        let may = admitted(rule, address).contains(&grant.source);
        let end = grant.end.min(self.boot + rule.max_seconds * SECOND);
        let is_live = may && end > self.boot && !self.is_refused(grant.source);
        is_live.then_some(Granted { end, ..grant })
    }

    /// What the kernel admits, and for how many seconds more.
    pub(super) fn kernel(&self) -> BTreeMap<String, u64> {
        let mut admits = BTreeMap::new();
        for grant in &self.grants {
            for port in &grant.ports {
                let seconds = (grant.end - self.boot).div_ceil(SECOND);
                let held = admits.entry(format!("{port} from {}", written(grant.source)));
                let held = held.or_insert(0);
                *held = seconds.max(*held);
            }
        }
        admits
    }
}

fn written(source: IpNet) -> String {
    let is_host = source.prefix_len() == source.max_prefix_len();
    if is_host { source.addr().to_string() } else { source.to_string() }
}

fn seconds_of(rule: &Rule, letter: &Letter) -> u64 {
    letter.seconds.unwrap_or(rule.default_seconds)
}

/// Around the address, but nothing that it may not knock from.
fn admitted(rule: &Rule, source: IpAddr) -> IpNet {
    let mut prefix = if source.is_ipv4() { rule.prefixes.0 } else { rule.prefixes.1 };
    let widest = rule.sources.iter().filter(|net| net.contains(&source)).map(IpNet::prefix_len);
    if let Some(widest) = widest.min() {
        prefix = prefix.max(widest);
    }
    IpNet::new(source, prefix).unwrap().trunc()
}

fn ports_of(rule: &Rule, item: &str, source: IpAddr) -> Result<Vec<String>, &'static str> {
    let mut allowed: Vec<_> =
        SERVICES.iter().filter(|(name, ..)| rule.allow.contains(name)).collect();
    allowed.sort_unstable();
    let is_port = item.contains('/');
    let is_meant = |(name, ports, _): &(&str, &[&str], bool)| {
        if is_port { ports.iter().any(|range| do_overlap(range, item)) } else { *name == item }
    };
    let (_, ports, over_v6) =
        allowed.into_iter().find(|it| is_meant(it)).ok_or("service-not-allowed")?;
    if source.is_ipv6() && !over_v6 {
        return Err("family-not-served");
    }
    Ok(if is_port {
        vec![item.to_owned()]
    } else {
        ports.iter().map(|port| (*port).to_owned()).collect()
    })
}

fn do_overlap(one: &str, other: &str) -> bool {
    let ((transport, first, last), (with, from, to)) = (range(one), range(other));
    transport == with && first <= to && from <= last
}

fn range(text: &str) -> (&str, u16, u16) {
    let (transport, ports) = text.split_once('/').unwrap();
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    (transport, first.parse().unwrap(), last.parse().unwrap())
}
