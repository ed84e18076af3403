//! The audit trail: one line for each accepted knock, and few for what was refused.
//!
//! A line is `key=value` pairs, in one order, so that people and programs read it alike. It goes
//! where the log goes, under the target `audit`. What an attacker sends without a key never
//! writes a line; what a client's key refuses writes one a minute at most, for each reason.

pub(crate) mod journal;
pub mod trail;

use crate::clock::BootMicros;
use crate::gate::Element;
use crate::grants::RequestId;
use crate::source::Source;
use spa_keys::PublicKey;
use spa_proto::{ClientId, Item, PortRange, ServerKey, UnixMicros};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::Duration;

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The kernel admits the source, new or for longer.
    Opened {
        /// For how long.
        lifetime: Duration,
        /// Until when, by the clock on the wall.
        until: UnixMicros,
    },
    /// The client closed what it had.
    Closed,
    /// An administrator, or a new policy, closed it; why.
    Revoked(&'a str),
    /// What was for one connection let it in; or somebody took it from the kernel, which can't be
    /// told apart, and it is not put back.
    Used(&'a [PortRange]),
    /// The knock was accepted and nothing changed; why.
    Failed(&'a str),
}

/// Who, from where, what: one line of the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// What happened.
    pub event: Event<'a>,
    /// The client's name.
    pub client: &'a str,
    /// Who was admitted, or would have been.
    pub source: Source,
    /// What was asked for.
    pub items: &'a [Item],
    /// The knock that it is about.
    pub id: RequestId,
    /// To which of the server's keys it was sealed: who still uses the previous one has to be told
    /// of the present one.
    pub server_key: ServerKey,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.event {
            Event::Opened { .. } => "opened",
            Event::Closed => "closed",
            Event::Revoked(_) => "revoked",
            Event::Used(_) => "used",
            Event::Failed(_) => "failed",
        };
        write!(f, "event={name} client={} source={} services=", Value(self.client), self.source)?;
        for (at, item) in self.items.iter().enumerate() {
            if at > 0 {
                f.write_char(',')?;
            }
            write!(f, "{item}")?;
        }
        match &self.event {
            Event::Opened { lifetime, until } => {
                write!(f, " lifetime={} until={}", lifetime.as_secs(), Instant(*until))?;
            }
            Event::Closed => {}
            Event::Used(ports) => {
                let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                write!(f, " ports={}", ports.join(","))?;
            }
            Event::Revoked(why) | Event::Failed(why) => write!(f, " reason={}", Value(why))?,
        }
        if self.server_key == ServerKey::Previous {
            f.write_str(" server-key=previous")?;
        }
        write!(f, " id={}", self.id)
    }
}

/// Writes a line of the trail.
pub fn write(line: &Line<'_>) {
    if let Event::Failed(_) = line.event {
        tracing::error!(target: "audit", "{line}");
    } else {
        tracing::info!(target: "audit", "{line}");
    }
}

/// What became of a client's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEvent {
    /// The client was invited, and has brought it.
    Enrolled,
    /// The client has announced it as its next one.
    RotationAnnounced {
        /// The one that it has.
        old: PublicKey,
    },
    /// The client has knocked with it, and has no other key any more.
    Rotated {
        /// The one that it had.
        old: PublicKey,
    },
}

/// Writes a line about a client's key.
pub fn write_key(event: KeyEvent, client: &str, source: IpAddr, key: &PublicKey, id: RequestId) {
    tracing::info!(target: "audit", "{}", key_line(event, client, source, key, id));
}

fn key_line(
    event: KeyEvent,
    client: &str,
    source: IpAddr,
    key: &PublicKey,
    id: RequestId,
) -> String {
    let (name, old) = match event {
        KeyEvent::Enrolled => ("enrolled", String::new()),
        KeyEvent::RotationAnnounced { old } => ("rotation-announced", format!(" old={old}")),
        KeyEvent::Rotated { old } => ("rotated", format!(" old={old}")),
    };
    format!("event={name} client={} source={source} key={key}{old} id={id}", Value(client))
}

/// Writes a line about an announcement that was accepted and of which nothing comes.
pub fn write_key_failed(client: &str, source: IpAddr, key: &PublicKey, why: &str, id: RequestId) {
    tracing::error!(
        target: "audit",
        "event=failed client={} source={source} key={key} reason={} id={id}",
        Value(client),
        Value(why),
    );
}

/// Writes that nothing is opened for this source for a time, and how many grants it had.
pub fn write_source_refused(source: Source, length: Duration, until: UnixMicros, grants: usize) {
    let (seconds, until) = (length.as_secs(), Instant(until));
    tracing::info!(
        target: "audit",
        "event=source-refused source={source} for={seconds} until={until} grants={grants}",
    );
}

/// Writes that this source is refused no more, before its time was over; why.
pub fn write_source_lifted(source: Source, why: &str) {
    let why = Value(why);
    tracing::info!(target: "audit", "event=source-lifted source={source} reason={why}");
}

/// Authentic knocks that were refused: one line for each client and reason at once, then one a
/// minute with a count. It holds no more than there are clients and reasons.
#[derive(Debug, Default)]
pub struct Refusals {
    open: HashMap<(ClientId, &'static str), Counted>,
}

#[derive(Debug)]
struct Counted {
    since: BootMicros,
    /// Those that no line has told yet.
    untold: u64,
    detail: String,
    source: IpAddr,
}

/// A line to write about refusals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalLine {
    /// Whose knocks.
    pub client: ClientId,
    /// Why.
    pub reason: &'static str,
    /// More about the last one.
    pub detail: String,
    /// Where the last one came from.
    pub source: IpAddr,
    /// How many.
    pub count: u64,
}

impl Refusals {
    const WINDOW: Duration = Duration::from_secs(60);

    /// Takes note of a refusal. `detail` is called only when its text will be used.
    pub fn note(
        &mut self,
        now: BootMicros,
        client: ClientId,
        reason: &'static str,
        source: IpAddr,
        detail: impl FnOnce() -> String,
    ) {
        let counted = self.open.entry((client, reason)).or_insert_with(|| Counted {
            // Told at the next call of `due`.
            since: BootMicros(0),
            untold: 0,
            detail: String::new(),
            source,
        });
        if counted.untold == 0 {
            counted.detail = detail();
            counted.source = source;
            if now.since(counted.since) >= Self::WINDOW {
                counted.since = BootMicros(0);
            }
        }
        counted.untold = counted.untold.saturating_add(1);
    }

    /// The lines that are due now; to be called every second or so.
    pub fn due(&mut self, now: BootMicros) -> Vec<RefusalLine> {
        let mut lines = Vec::new();
        self.open.retain(|(client, reason), counted| {
            let over = counted.since == BootMicros(0) || now.since(counted.since) >= Self::WINDOW;
            if !over {
                return true;
            }
            if counted.untold == 0 {
                return false;
            }
            lines.push(RefusalLine {
                client: *client,
                reason,
                detail: std::mem::take(&mut counted.detail),
                source: counted.source,
                count: std::mem::take(&mut counted.untold),
            });
            counted.since = now;
            true
        });
        lines
    }
}

/// Writes a line about refusals; `name` is the client's.
pub fn write_refusal(name: &str, line: &RefusalLine) {
    let RefusalLine { reason, detail, source, count, .. } = line;
    let detail =
        if detail.is_empty() { String::new() } else { format!(" detail={}", Value(detail)) };
    tracing::warn!(
        target: "audit",
        "event=refused client={} source={source} reason={reason} count={count}{detail}",
        Value(name),
    );
}

/// Somebody had changed parts of the gate, which is as it was again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    /// What was missing.
    pub missing: String,
    /// How many live grants the kernel had lost.
    pub grants: u64,
    /// What the kernel admitted that no live grant needs.
    pub surplus: Vec<Element>,
    /// What it admitted for another time than the live grants need.
    pub retimed: Vec<Element>,
    /// How many connections have slipped in meanwhile, and are ended.
    pub cut: u64,
    /// Who put back what was missing.
    pub by: By,
}

impl Restoration {
    /// What was wrong, in words.
    pub fn what(&self) -> String {
        let counted = [(self.surplus.len(), "too many"), (self.retimed.len(), "with another end")];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0);
        let counted = counted.map(|(count, what)| format!("elements {what}: {count}"));
        let missing = (self.missing != Self::NOTHING).then(|| self.missing.clone());
        missing.into_iter().chain(counted).collect::<Vec<_>>().join("; ")
    }

    /// One of which only some more is to be told.
    pub fn of_nothing() -> Self {
        Self {
            missing: Self::NOTHING.to_owned(),
            grants: 0,
            surplus: Vec::new(),
            retimed: Vec::new(),
            cut: 0,
            by: By::Us,
        }
    }

    /// What there is to say of missing parts, if there were none.
    pub const NOTHING: &str = "nothing";
}

/// Who put the gate back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// This program did.
    Us,
    /// It stood again before this program could put it back.
    Others,
}

/// Restorations that are to be told: at once, but one line at most in a time.
#[derive(Debug, Default)]
pub struct Restorations {
    told: Option<BootMicros>,
    untold: Option<RestorationLine>,
}

/// A line to write about restorations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorationLine {
    /// The last one; `cut` is the sum of all, and `surplus` and `retimed` are of the last one that
    /// had any.
    pub last: Restoration,
    /// How many there were since the line before.
    pub count: u64,
}

impl Restorations {
    /// Takes note of one.
    pub fn note(&mut self, mut restoration: Restoration) {
        let mut count: u64 = 0;
        if let Some(RestorationLine { last: untold, count: before }) = self.untold.take() {
            count = before;
            restoration.cut = restoration.cut.saturating_add(untold.cut);
            if restoration.surplus.is_empty() {
                restoration.surplus = untold.surplus;
            }
            if restoration.retimed.is_empty() {
                restoration.retimed = untold.retimed;
            }
        }
        let line = RestorationLine { last: restoration, count: count.saturating_add(1) };
        self.untold = Some(line);
    }

    /// The line that is due now, if there is to be one in this time; to be called after each note,
    /// and every second.
    pub fn due(&mut self, now: BootMicros, every: Duration) -> Option<RestorationLine> {
        if self.told.is_some_and(|told| now.since(told) < every) {
            return None;
        }
        let line = self.untold.take()?;
        self.told = Some(now);
        Some(line)
    }
}

impl fmt::Display for RestorationLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Restoration { missing, grants, surplus, retimed, cut, by } = &self.last;
        let missing = Value(missing);
        write!(f, "event=gate-restored missing={missing} grants={grants} cut={cut}")?;
        for (key, elements) in [("surplus", surplus), ("retimed", retimed)] {
            if !elements.is_empty() {
                write!(f, " {key}={}", Value(&some_of(elements)))?;
            }
        }
        if *by == By::Others {
            write!(f, " by=others")?;
        }
        if self.count > 1 { write!(f, " count={}", self.count) } else { Ok(()) }
    }
}

/// The first ones, and how many more there are.
fn some_of(elements: &[Element]) -> String {
    const SOME: usize = 3;
    let more = elements.len().saturating_sub(SOME);
    let mut some: Vec<_> = elements.iter().take(SOME).map(ToString::to_string).collect();
    some.extend((more > 0).then(|| format!("and {more} more")));
    some.join(", ")
}

/// Writes a line about restorations.
pub fn write_restoration(line: &RestorationLine) {
    tracing::warn!(target: "audit", "{line}");
}

/// Writes that another program undoes the gate again and again; once, when that begins.
pub fn write_contest(restored: usize, missing: &str) {
    let missing = Value(missing);
    tracing::error!(target: "audit", "event=gate-contested restored={restored} missing={missing}");
}

/// A value; in quotation marks when it has spaces or signs of its own.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+,".contains(c);
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// RFC 3339, in UTC, to the second.
struct Instant(UnixMicros);

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = i64::try_from(self.0.as_secs()).ok();
        match second.and_then(|second| jiff::Timestamp::from_second(second).ok()) {
            Some(timestamp) => timestamp.fmt(f),
            None => write!(f, "@{}", self.0.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spa_proto::Nonce;

    const CLIENT: ClientId = ClientId([1; 32]);

    fn at(second: u64) -> BootMicros {
        BootMicros((1_000 + second) * 1_000_000)
    }

    fn source() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    fn line<'a>(event: Event<'a>, items: &'a [Item]) -> Line<'a> {
        Line {
            event,
            client: "laptop",
            source: source().into(),
            items,
            id: Nonce([0xab; 24]).into(),
            server_key: ServerKey::Present,
        }
    }

    #[test]
    fn a_line_tells_who_from_where_what_and_until_when() {
        let items = ["ssh".parse().unwrap(), "tcp/8022".parse().unwrap()];
        let opened = Event::Opened {
            lifetime: Duration::from_secs(30),
            until: UnixMicros::from_secs(1_800_000_000),
        };
        assert_eq!(
            line(opened, &items).to_string(),
            "event=opened client=laptop source=192.0.2.7 services=ssh,tcp/8022 lifetime=30 until=2027-01-15T08:00:00Z id=abababababababab"
        );
        assert_eq!(
            line(Event::Used(&["tcp/22".parse().unwrap()]), &items[..1]).to_string(),
            "event=used client=laptop source=192.0.2.7 services=ssh ports=tcp/22 id=abababababababab"
        );
        assert_eq!(
            line(Event::Failed("ipset: it is \"full\""), &items[..1]).to_string(),
            r#"event=failed client=laptop source=192.0.2.7 services=ssh reason="ipset: it is \"full\"" id=abababababababab"#
        );
    }

    fn restoration() -> Restoration {
        Restoration {
            missing: "set spa4".into(),
            grants: 0,
            surplus: Vec::new(),
            retimed: Vec::new(),
            cut: 1,
            by: By::Us,
        }
    }

    #[test]
    fn a_restoration_tells_what_was_wrong_and_who_mended_it() {
        let told = |last: Restoration| RestorationLine { last, count: 1 }.to_string();
        let by_others = Restoration { by: By::Others, ..restoration() };
        assert_eq!(
            told(by_others),
            r#"event=gate-restored missing="set spa4" grants=0 cut=1 by=others"#
        );
        let element = |port: u16| Element {
            source: source().into(),
            ports: format!("tcp/{port}").parse().unwrap(),
        };
        let missing = "nothing".into();
        let surplus = [22, 80, 81, 82, 83].map(element).to_vec();
        let retimed = vec![element(443)];
        assert_eq!(
            told(Restoration { missing, surplus, retimed, cut: 0, ..restoration() }),
            r#"event=gate-restored missing=nothing grants=0 cut=0 surplus="tcp/22 from 192.0.2.7, tcp/80 from 192.0.2.7, tcp/81 from 192.0.2.7, and 2 more" retimed="tcp/443 from 192.0.2.7""#
        );
    }

    #[test]
    fn a_gate_that_is_flushed_again_and_again_is_told_once_a_second() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut restorations = Restorations::default();
        let mut lines = Vec::new();
        for tenth in 0..30 {
            let now = BootMicros(at(0).0 + tenth * 100_000);
            restorations.note(Restoration { grants: tenth, ..restoration() });
            lines.extend(restorations.due(now, SECOND).map(|line| line.to_string()));
        }
        assert_eq!(
            lines,
            [
                r#"event=gate-restored missing="set spa4" grants=0 cut=1"#,
                r#"event=gate-restored missing="set spa4" grants=10 cut=10 count=10"#,
                r#"event=gate-restored missing="set spa4" grants=20 cut=10 count=10"#,
            ]
        );
        assert_eq!(restorations.due(at(9), SECOND).map(|line| line.count), Some(9));
        assert_eq!(restorations.due(at(99), SECOND), None);
    }

    #[test]
    fn a_value_can_not_forge_another_line_or_key() {
        assert_eq!(Value("a b=c\nevent=opened").to_string(), r#""a b=c\nevent=opened""#);
        assert_eq!(Value("").to_string(), r#""""#);
    }

    #[test]
    fn a_flood_of_refusals_is_told_at_once_and_then_once_a_minute() {
        let mut refusals = Refusals::default();
        let mut lines = Vec::new();
        for second in 0..180 {
            for _ in 0..1_000 {
                refusals.note(at(second), CLIENT, "too-old", source(), || "150 s behind".into());
            }
            lines.extend(refusals.due(at(second)).into_iter().map(|line| (second, line.count)));
        }
        assert_eq!(lines, [(0, 1_000), (60, 60_000), (120, 60_000)]);
        // The rest is told when its minute is over, and then nothing is left.
        assert_eq!(refusals.due(at(180)).first().map(|line| line.count), Some(59_000));
        assert_eq!(refusals.due(at(240)), []);
        assert!(refusals.open.is_empty());
    }

    #[test]
    fn clients_and_reasons_are_told_apart() {
        let mut refusals = Refusals::default();
        refusals.note(at(0), CLIENT, "too-old", source(), String::new);
        refusals.note(at(0), CLIENT, "lifetime", source(), String::new);
        refusals.note(at(0), ClientId([2; 32]), "too-old", source(), String::new);
        assert_eq!(refusals.due(at(0)).len(), 3);
    }
}
