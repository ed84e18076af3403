//! What can be wrong with a configuration, and what to do about it.

use super::client::ClientNameError;
use super::time::TimestampError;
use crate::gate::CommandLineError;
use crate::source::SourceError;
use spa_keys::{DeriveError, KeyFileError, KeyTextError};
use spa_proto::{DurationError, ItemError, PortRange, ServiceName, format_duration};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug)]
pub struct ConfigError {
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
}

/// One line for each problem.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = &*self.problems {
            return problem.fmt(f);
        }
        write!(f, "the configuration has {} errors", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file or directory.
///
/// The message is complete: a cause is part of it, and not its source as well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is not there.
    #[error("there is no such file; `spa-server init` writes a configuration")]
    Missing,
    /// It could not be read.
    #[error("can't be read: {0}")]
    Io(io::Error),
    /// A directory that is stated.
    #[error(
        "is not there, and clients-directory names it; mount it, or make it and add the clients' files"
    )]
    NoClientsDirectory,
    /// It is for other users.
    #[error(
        "is not for this user to read; what is of the configuration, `spa-server hand-over`, as root, lets the daemon's users read"
    )]
    Denied,
    /// Not there, or nothing that can be run.
    #[error("is no program; name an executable file")]
    NotAProgram,
    /// A directory, a pipe, a device.
    #[error("is no regular file")]
    NotAFile,
    /// It is too long to be a configuration.
    #[error("is longer than {max} bytes")]
    TooLong {
        /// The most bytes that are read.
        max: u64,
    },
    /// Its owner is neither root nor the user who runs the program.
    #[error(
        "belongs to user id {owner}, who could let anybody in; look through it, then: chown {user} {}",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the program.
        user: u32,
    },
    /// Its group or everybody can write it.
    #[error(
        "others than its owner can write it (mode {mode:04o}), and so let themselves in; look through it, then: chmod go-w {}",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not UTF-8.
    #[error("is not UTF-8 text")]
    NotText,
    /// Not TOML, an unknown key, a value of the wrong type.
    #[error("line {line}: {message}")]
    Syntax {
        /// Where, counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A value that can't be right.
    #[error("{key}: {error}")]
    Value {
        /// The key, with its tables.
        key: String,
        /// What is wrong with the value.
        error: ValueError,
    },
    /// The file's name is no client's name.
    #[error("{0}; rename the file, or let its name end in something else than .toml")]
    Name(ClientNameError),
    /// The keys that clients have announced can't be had.
    #[error("the keys that clients have brought are not known, so these clients are left out: {0}")]
    State(String),
    /// There is no service.
    #[error(
        "there is no service, so nothing could ever be opened; add [services.ssh] with ports = [\"tcp/22\"]"
    )]
    NoService,
}

impl Fault {
    pub(super) fn value(key: impl Into<String>, error: impl Into<ValueError>) -> Self {
        Self::Value { key: key.into(), error: error.into() }
    }

    /// What the TOML parser found; its own message quotes lines of the file, in which there may
    /// be a key that was pasted in the wrong place.
    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count().saturating_add(1);
        let message = error.message().trim_end();
        let message = if ["spa-private-", "spa-psk-", "spa-invitation-"]
            .iter()
            .any(|it| message.contains(it))
        {
            "a secret key stands where it does not belong"
        } else {
            message
        };
        Self::Syntax { line, message: message.replace('\n', "; ") }
    }
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// A list without anything in it.
    #[error("the list is empty; {advice}")]
    Empty {
        /// What to write instead.
        advice: &'static str,
    },
    /// A list with too much in it.
    #[error("{count} are listed; {most} is the most there can be")]
    TooMany {
        /// How many.
        count: usize,
        /// How many there can be.
        most: usize,
    },
    /// The same thing again.
    #[error("{0} is listed twice")]
    Twice(String),
    /// No name of an interface.
    #[error("{0:?} is no interface name; `ip link` lists them, and \"any\" stands for all")]
    Interface(String),
    /// All interfaces, and some.
    #[error("\"any\" stands for all interfaces; it can't be listed with others")]
    AnyAndOthers,
    /// No port.
    #[error("{0} is no port; a port is a number from 1 to 65535")]
    Port(i64),
    /// A number that is too small or too large.
    #[error("{value} is out of range; it lies between {min} and {max}")]
    Range {
        /// What was found.
        value: i64,
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
    /// No duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// A duration that is too short or too long.
    #[error(
        "{} is out of range; it lies between {} and {}",
        format_duration(*value), format_duration(*min), format_duration(*max)
    )]
    DurationRange {
        /// What was found.
        value: Duration,
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// No point in time.
    #[error(transparent)]
    Timestamp(#[from] TimestampError),
    /// A path that depends on where the daemon is started.
    #[error("{0:?} is a relative path; write it out from the root, beginning with /")]
    RelativePath(PathBuf),
    /// No command.
    #[error(transparent)]
    Command(#[from] CommandLineError),
    /// A back-end that needs to be told what to run.
    #[error("backend = \"hook\" needs it; write the program and its arguments, as in {0}")]
    NoCommand(&'static str),
    /// No name of a service, or no port.
    #[error(transparent)]
    Item(#[from] ItemError),
    /// A port both to knock on and to open.
    #[error("{ports} is a knock port already; take another knock port")]
    IsKnockPort {
        /// The port, or the ports that it is one of.
        ports: PortRange,
    },
    /// Two services that mean different things by one port.
    #[error(
        "{ports} is part of service {other} too, with another local-port, forward, masquerade or connections; a packet can go one way only, so make these equal"
    )]
    Conflict {
        /// The ports of this service.
        ports: PortRange,
        /// The other service.
        other: String,
    },
    /// Two ports of one service that overlap.
    #[error("{ports} and {other} overlap; write one range")]
    Overlap {
        /// The ports.
        ports: PortRange,
        /// The others.
        other: PortRange,
    },
    /// A service that goes two ways.
    #[error("a service has either a local-port or a forward; make two services of it")]
    TwoTargets,
    /// What only a forward can have.
    #[error("masquerade says how packets are forwarded; it needs a forward beside it")]
    NothingToMasquerade,
    /// No host to forward to.
    #[error(
        "{0:?} is no host to forward to; write its address, with or without a port, as in 10.0.0.5, 10.0.0.5:443 or [fd00::5]:443"
    )]
    ForwardTo(String),
    /// Two hosts of one family.
    #[error("{0} is a second host of its family; a service is forwarded to one, of each family")]
    SecondForward(String),
    /// A limit of connections that there isn't.
    #[error("{0} is not possible; 1 lets one connection in, and without the line as many as come")]
    Connections(i64),
    /// Neither an address nor a network.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No network.
    #[error(
        "{0:?} is no network; write an address, as in 192.0.2.7, or a network, as in 192.0.2.0/24 or 2001:db8::/32"
    )]
    Network(String),
    /// A network with bits set behind its prefix.
    #[error(
        "{given} is an address in the network {network}; write {network}, or the address alone"
    )]
    HostBits {
        /// What was found.
        given: String,
        /// The network that it lies in.
        network: String,
    },
    /// IPv4 in the clothes of IPv6.
    #[error("{0} stands for IPv4 addresses; write it as an IPv4 network")]
    MappedNetwork(String),
    /// A network around the client, and a service that lets one connection in.
    #[error(
        "a network is never let in for one connection, as service {service} has it (connections = 1); leave out source-prefix, take {service} out of allow, or connections out of [services.{service}]"
    )]
    NetworkForOne {
        /// The service.
        service: ServiceName,
    },
    /// There is no such service.
    #[error("there is no service {name}; {}", known(known_services))]
    UnknownService {
        /// What was found.
        name: ServiceName,
        /// What there is.
        known_services: Vec<ServiceName>,
    },
    /// Nothing by which the client could be known.
    #[error(
        "is missing; write the client's public key, or let it bring one: spa-server invite NAME"
    )]
    NoKey,
    /// A key and an invitation to bring one.
    #[error("stands beside public-key; a client is known by one of the two")]
    KeyAndInvitation,
    /// A previous key without an end, or an end without one.
    #[error("needs {0} beside it")]
    Needs(&'static str),
    /// No public key.
    #[error(transparent)]
    Key(#[from] KeyTextError),
    /// A public key that no secret can be shared with.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// A key file that can't be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// Two clients with one key.
    #[error(
        "client {other} has the same one; a key or an invitation is for one client, so give each its own"
    )]
    SameKey {
        /// The other client.
        other: String,
    },
    /// Valid until before it is valid.
    #[error("lies at or before not-before, so the client could never get in")]
    ExpiresFirst,
    /// The default is more than is allowed.
    #[error(
        "{} is longer than max-lifetime, which is {}",
        format_duration(*default), format_duration(*max)
    )]
    DefaultOverMaximum {
        /// default-lifetime.
        default: Duration,
        /// max-lifetime.
        max: Duration,
    },
}

fn known(services: &[ServiceName]) -> String {
    let names: Vec<_> = services.iter().map(ServiceName::as_str).collect();
    format!("server.toml has {}", names.join(", "))
}
