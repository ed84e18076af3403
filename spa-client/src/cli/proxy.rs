//! `spa-client proxy`: knocks, connects, and carries the bytes or hands the connection over. Its
//! probe is its connection.

use super::CliError;
use super::args::timeout;
use super::open::{NO_TIME_FOR_OTHERS, Voice};
use super::passphrase::Prompt;
use super::report::{self, Report, ServerReport};
use crate::asking::{Asking, First, Reuse, Visited};
use crate::carry::{carry, hand_over};
use crate::config::Config;
use crate::duration::spoken;
use crate::knock::{Asked, Family, Options, Sent, plain};
use crate::probe::{Door, Known, Probe, Progress, watch};
use crate::record::Moment;
use crate::server::{Connections, Host, Server, ServerName};
use clap::Args;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU16;
use core::time::Duration;
use spa_proto::{Item, MessageType, Port, Transport};
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Instant;

#[derive(Debug, Args)]
#[command(after_help = "\
Example, in ~/.ssh/config (`spa-client setup ssh` writes it there):
  Host gateway.example.org
      ProxyCommand spa-client proxy --fdpass %h %p
      ProxyUseFdpass yes

Knocks where no knock of the last seconds still holds, connects as soon as the port is open, and
carries standard input and output; with --fdpass it hands the connection to ssh instead, and ends.
Nothing else is ever written to standard output.")]
pub(super) struct ProxyArgs {
    /// The host to connect to: the host or the name of a configured server.
    #[arg(value_name = "HOST")]
    host: String,
    /// The TCP port to connect to.
    #[arg(value_name = "PORT")]
    port: NonZeroU16,
    /// The server to knock on, where HOST does not say it.
    #[arg(long, value_name = "NAME")]
    server: Option<ServerName>,
    /// Use IPv4 only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use IPv6 only.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// How long to try.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Knock also where a knock of before still holds.
    #[arg(long)]
    fresh: bool,
    /// Hand the connection to ssh, which says `ProxyUseFdpass yes`, instead of carrying its bytes.
    /// Whoever gives pipes, or talks right away, has them carried.
    #[arg(long)]
    fdpass: bool,
    /// Say what is sent where, on standard error.
    #[arg(short, long)]
    verbose: bool,
}

impl ProxyArgs {
    const fn family(&self) -> Family {
        Family::of_flags(self.ipv4, self.ipv6)
    }

    /// Whether no knock of before is relied on.
    fn is_fresh(&self) -> bool {
        self.fresh || self.timeout < NO_TIME_FOR_OTHERS
    }
}

pub(super) fn run(directory: &Path, args: &ProxyArgs) -> Result<(), CliError> {
    let began = Moment::now();
    let config = Config::load(directory)?;
    let server = server(&config, args)?;
    let port = Port { transport: Transport::Tcp, number: args.port };
    let item = item_at(server, port);
    let options = Options { family: args.family(), ..Options::default() };
    let asked = Asked::open([item.clone()])?;
    let mut prompt = Prompt::default();
    let mut asking = if args.is_fresh() {
        Asking::new(server, &asked, &options, &mut prompt, began)?
    } else {
        Asking::by_keys_at_hand(server, &asked, &options, began)?
    };
    let probe = Probe { item, port: args.port };
    let start = Instant::now();
    let stream = loop {
        match connect(&mut asking, &probe, args)? {
            Visited::Done(stream) => break stream,
            Visited::NotOpen if start.elapsed() < args.timeout => {}
            Visited::NotOpen | Visited::NoKey => asking.unlock(&mut prompt)?,
        }
    };
    let ended = |error: io::Error| {
        CliError::Failed(format!("the connection to {} ended: {}", args.host, plain(&error)))
    };
    if args.fdpass && hand_over(&stream).map_err(ended)? {
        return Ok(());
    }
    carry(stream).map_err(ended)
}

fn connect(
    asking: &mut Asking<'_>,
    probe: &Probe,
    args: &ProxyArgs,
) -> Result<Visited<TcpStream>, CliError> {
    let voice = Voice { quiet: false, verbose: args.verbose };
    let has_key = asking.knocker().is_some();
    let server = asking.route().server();
    let name = &server.name;
    let tell = |sent: &[Sent]| {
        for datagram in sent {
            voice.detail(&format!("{name}: {}", report::datagram(datagram)));
        }
    };
    let to = if is_meant_by(server, &args.host) {
        asking.route().sockets().to_vec()
    } else {
        addresses(&args.host, args.family())?
    };
    let is_server = to == asking.route().sockets();
    let service = server.service_of(&probe.item);
    let lets_one_in = service.is_some_and(|service| service.connections == Connections::One);
    let mut wait = asking.wait(Instant::now(), args.timeout, Known::Shut);
    let mut all_sent = Vec::new();
    if lets_one_in && is_server {
        if !has_key {
            return Ok(Visited::NoKey);
        }
        // An address that is never tried must not be opened for somebody else's connection.
        wait.rounds = 0;
    } else {
        let reuse = if args.is_fresh() { Reuse::Never } else { Reuse::Asked };
        match asking.first(reuse, Duration::ZERO, true)? {
            First::Knocked(sent) => {
                tell(&sent);
                all_sent = sent;
            }
            First::Reused(reused) => {
                wait.known = Known::Open;
                voice.detail(&format!("{name}: {}", report::reused(&reused)));
            }
            First::NoKey => return Ok(Visited::NoKey),
        }
    }
    let mut knock = |only| {
        let sent = asking.again(only)?;
        tell(&sent);
        Ok(sent)
    };
    let mut progress = |event: Progress<'_>| {
        if let Progress::Opened { address, after, .. } = event {
            voice.detail(&format!("{name}: connected to {address} after {}", spoken(after)));
        }
    };
    let ended = watch(&mut knock, vec![Door::new(probe, &to)], wait, &mut progress)?;
    let (probed, streams): (Vec<_>, Vec<_>) = ended.into_iter().map(Door::end).unzip();
    if let Some(stream) = streams.into_iter().flatten().next() {
        for probed in &probed {
            if let Ok((address, _)) = probed.result {
                asking.seen_open(&probe.item, address);
            }
        }
        return Ok(Visited::Done(stream.into()));
    }
    asking.not_open(&probe.item);
    if !has_key {
        return Ok(Visited::NotOpen);
    }
    let report = ServerReport::new(asking, all_sent, Some((args.timeout, probed)));
    let failure = Report::new(MessageType::Open, vec![report]).failure();
    Err(CliError::Failed(failure.unwrap_or_else(|| format!("{} did not open", probe.item))))
}

/// The server to knock on: the one that is named, else the one that has this host or this name.
fn server<'a>(config: &'a Config, args: &ProxyArgs) -> Result<&'a Server, CliError> {
    if let Some(name) = &args.server {
        return Ok(config.server(Some(name.as_str()))?);
    }
    let host = &args.host;
    let named = |server: &&Server| server.name.as_str().eq_ignore_ascii_case(host);
    if let Some(server) = config.servers().find(named) {
        return Ok(server);
    }
    let found: Vec<&Server> = config.servers().filter(|server| is_meant_by(server, host)).collect();
    match *found.as_slice() {
        [server] => Ok(server),
        [] => {
            let known: Vec<String> = config
                .servers()
                .map(|server| format!("{} ({})", server.name, server.host))
                .collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            Err(CliError::Usage(format!(
                "no server has the host or the name {host:?}; known are: {known}; name the one to knock on with --server NAME, or add it: spa-client server add NAME --host {host} --public-key KEY"
            )))
        }
        _ => {
            let names: Vec<&str> = found.iter().map(|server| server.name.as_str()).collect();
            Err(CliError::Usage(format!(
                "{} all have the host {host}; name the one to knock on with --server NAME",
                names.join(" and ")
            )))
        }
    }
}

/// Whether this is the host or the name of the server.
fn is_meant_by(server: &Server, host: &str) -> bool {
    let without_dot = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let theirs = without_dot(host);
    let is_same = |ours: &Host| {
        let ours = without_dot(ours.as_str());
        let is_same_address = match (ours.parse::<IpAddr>(), theirs.parse::<IpAddr>()) {
            (Ok(ours), Ok(theirs)) => ours.to_canonical() == theirs.to_canonical(),
            _ => false,
        };
        ours == theirs || is_same_address
    };
    server.hosts().any(is_same) || server.name.as_str().eq_ignore_ascii_case(host)
}

/// What to ask for: the service with this port, the one with the fewest ports; else the port.
fn item_at(server: &Server, port: Port) -> Item {
    let services = server.known_services().into_iter().filter_map(|(name, service)| {
        let is_there = service.ports.iter().any(|ports| ports.contains(port));
        let size = |first: u16, last: u16| usize::from(last.abs_diff(first)).saturating_add(1);
        let sizes = service.ports.iter().map(|it| size(it.first().get(), it.last().get()));
        is_there.then(|| (sizes.fold(0, usize::saturating_add), name))
    });
    services.min().map_or(Item::Port(port), |(_, name)| Item::Service(name))
}

/// The addresses of a host that is none of the server's own.
fn addresses(host: &str, family: Family) -> Result<Vec<SocketAddr>, CliError> {
    let failed = |why: String| {
        CliError::Failed(format!("{host:?} can't be connected to ({why}); check its name"))
    };
    let found = (host, 0).to_socket_addrs().map_err(|error| failed(plain(&error)))?;
    let is_meant = |address: &SocketAddr| match family {
        Family::Both => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    };
    let mut found: Vec<SocketAddr> = found.filter(is_meant).collect();
    found.dedup();
    if found.is_empty() { Err(failed(format!("it has no {family} address"))) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Service;
    use spa_keys::PublicKey;

    fn server() -> Server {
        let key = PublicKey::from_bytes([9; 32]);
        Server::new("Work".parse().unwrap(), "gw.example.org".parse().unwrap(), key, "identity.key")
    }

    #[test]
    fn a_server_is_meant_by_its_host_and_by_its_name() {
        let mut server = server();
        for host in ["gw.example.org", "GW.Example.org.", "work", "Work"] {
            assert!(is_meant_by(&server, host), "{host}");
        }
        for host in ["gw", "example.org", "gw.example.org.evil", "", "192.0.2.1"] {
            assert!(!is_meant_by(&server, host), "{host}");
        }
        server.host = "2001:db8::1".parse().unwrap();
        assert!(is_meant_by(&server, "2001:0db8:0::1"));
        assert!(!is_meant_by(&server, "2001:db8::2"));
    }

    #[test]
    fn a_port_is_asked_for_by_the_narrowest_service_that_has_it() {
        let mut server = server();
        for (name, ports) in [("all", vec!["tcp/1-65535"]), ("mail", vec!["tcp/465", "tcp/993"])] {
            let ports = ports.into_iter().map(|ports| ports.parse().unwrap());
            server.services.insert(name.parse().unwrap(), Service::plain(ports));
        }
        let item = |server: &Server, number: u16| {
            let number = NonZeroU16::new(number).unwrap();
            item_at(server, Port { transport: Transport::Tcp, number }).to_string()
        };
        assert_eq!(item(&server, 22), "ssh");
        assert_eq!(item(&server, 993), "mail");
        assert_eq!(item(&server, 5000), "all");
        server.services.clear();
        assert_eq!(item(&server, 993), "tcp/993");
        let elsewhere = Service::plain(["tcp/2222".parse().unwrap()]);
        server.services.insert("ssh".parse().unwrap(), elsewhere);
        assert_eq!((item(&server, 22), item(&server, 2222)), ("tcp/22".into(), "ssh".into()));
    }
}
