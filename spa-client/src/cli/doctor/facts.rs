//! What was found out, and the lines that tell it. Pure: it knows no socket and no clock.

use core::net::IpAddr;
use serde::Serialize;

/// Everything that the diagnosis goes by.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// What the user calls the server.
    pub(super) server: String,
    /// Its name or address.
    pub(super) host: String,
    /// The service that was looked at, and its TCP port.
    pub(super) service: String,
    pub(super) port: u16,
    /// The client's public key.
    pub(super) key: String,
    /// What made everything after it impossible.
    pub(super) early: Option<Early>,
    /// The server's addresses and what came of them.
    pub(super) ways: Vec<Way>,
    /// By how many seconds the clock is ahead, where a server could be asked.
    pub(super) ahead: Option<f64>,
    /// Whether the system says that it keeps its clock.
    pub(super) synchronised: Option<bool>,
    /// What a STUN server sees, family by family.
    pub(super) seen: Vec<SeenBy>,
}

/// What ends the examination before a packet leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Early {
    Configuration(String),
    Key(String),
    Clock(String),
    Name(String),
}

/// One address of the server.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) to: IpAddr,
    /// The address that this machine would send from, or why it can't.
    pub(super) route: Result<IpAddr, String>,
    /// The service's port before any knock.
    pub(super) before: Option<Answer>,
    pub(super) trials: Vec<Trial>,
}

impl Way {
    /// The trial after which the port was open.
    pub(super) fn opened(&self) -> Option<&Trial> {
        self.trials.iter().find(|trial| matches!(trial.answer, Answer::Open { .. }))
    }

    /// Whether one gets in by it now.
    pub(super) fn is_open(&self) -> bool {
        self.opened().is_some() || matches!(self.before, Some(Answer::Open { .. }))
    }

    pub(super) const fn family(&self) -> &'static str {
        if self.to.is_ipv4() { "IPv4" } else { "IPv6" }
    }
}

/// One knock, and what became of the port after it.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) knock_port: u16,
    pub(super) bound: Option<IpAddr>,
    /// Why it did not leave.
    pub(super) not_sent: Option<String>,
    /// What came back for it: nothing, when all is well.
    pub(super) rejected: Option<Rejection>,
    pub(super) answer: Answer,
}

/// How a TCP port looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Open {
        milliseconds: u64,
    },
    Refused,
    /// What the system says.
    Unreachable(String),
    Silent,
}

/// An ICMP error that came back for a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    Port,
    Forbidden,
}

/// The addresses that a STUN server sees in one family.
#[derive(Debug, Clone)]
pub(super) struct SeenBy {
    pub(super) v4: bool,
    pub(super) udp: Result<IpAddr, String>,
    pub(super) tcp: Result<IpAddr, String>,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Ok,
    Trouble,
    NotChecked,
}

impl Line {
    pub(super) fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Ok, text: text.into() }
    }

    pub(super) fn trouble(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Trouble, text: text.into() }
    }

    pub(super) fn not_checked(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::NotChecked, text: text.into() }
    }
}

impl core::fmt::Display for Line {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Trouble => "trouble",
            State::NotChecked => "not checked",
        };
        write!(f, "{state:<12} {:<14} {}", self.check, self.text)
    }
}

impl core::fmt::Display for Answer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Open { milliseconds } => write!(f, "open after {milliseconds} ms"),
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable(why) => f.write_str(why),
            Self::Silent => f.write_str("no answer"),
        }
    }
}

/// The line of the route to one address.
pub(super) fn route(way: &Way) -> Line {
    match &way.route {
        Ok(own) => Line::ok("route", format!("{} from {own}", way.to)),
        Err(why) => Line::trouble("route", format!("{}: {why}", way.to)),
    }
}

/// The line of the port before a knock.
pub(super) fn before(facts: &Facts, way: &Way, answer: &Answer) -> Line {
    let text = format!("tcp/{} at {} before a knock: ", facts.port, way.to);
    match answer {
        Answer::Silent => Line::ok("hidden", text + "no answer, as it should be"),
        Answer::Open { .. } => Line::not_checked(
            "hidden",
            text + "open already, so that it can't be seen whether a knock opens it",
        ),
        // A gate may answer for a hidden port as other closed ports of the host do.
        Answer::Refused => Line::ok("hidden", text + "connection refused"),
        Answer::Unreachable(why) => Line::trouble("hidden", text + why),
    }
}

/// The line of a knock and the probe after it.
pub(super) fn trial(facts: &Facts, to: IpAddr, trial: &Trial) -> Line {
    let bound = match trial.bound {
        Some(address) => format!("bound to {address}"),
        None => "source as observed".into(),
    };
    let text = format!("udp/{} at {to}, {bound}: ", trial.knock_port);
    if let Some(why) = &trial.not_sent {
        return Line::trouble("knock", format!("{text}it could not be sent: {why}"));
    }
    let rejected = match trial.rejected {
        None => "",
        Some(Rejection::Port) => "; for the knock came back: port unreachable",
        Some(Rejection::Forbidden) => "; for the knock came back: administratively prohibited",
    };
    let text = format!("{text}tcp/{}: {}{rejected}", facts.port, trial.answer);
    match trial.answer {
        Answer::Open { .. } => Line::ok("knock", text),
        _ => Line::trouble("knock", text),
    }
}
