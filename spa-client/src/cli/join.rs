//! `spa-client join`: from an invitation to a port that opens.

use super::announcing::{self, Outcome};
use super::args::timeout;
use super::key::place;
use super::open::Voice;
use super::passphrase::{Prompt, new_passphrase};
use super::{CliError, print_json};
use crate::announce::Announcement;
use crate::config::{Config, ConfigError, make_directory};
use crate::duration::spoken;
use crate::key_source::{KeyError, KeySource, protected};
use crate::knock::{Family, KnockError};
use crate::server::{Connections, Host, Server, ServerName, Service};
use clap::Args;
use core::net::IpAddr;
use core::time::Duration;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{ClientKeys, Invitation, Overwrite, PrivateKey, PublicKey};
use spa_proto::Item;
use std::io::{self, BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// More than an invitation comes to.
const MAX_LINE: u64 = 32 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client join spa1:...          the line that `spa-server invite` has printed
  spa-client join -                 the same, read from standard input
  spa-client join - --encrypt       keep the new key under a passphrase

The key is made here and never leaves this machine. Whoever sees the invitation before it
was used can take your place: with `-` it does not stand in the shell's history. When it
was interrupted, run it again with the same line.")]
pub(super) struct JoinArgs {
    /// The invitation, spa1:...; or - to read it from standard input.
    #[arg(value_name = "INVITATION")]
    invitation: Zeroizing<String>,
    /// What to call the server here [default: what the invitation calls it].
    #[arg(long, value_name = "NAME")]
    name: Option<ServerName>,
    /// Where to keep the key: a file, or secret-service:NAME [default: SERVER.key].
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Keep the key under a passphrase.
    #[arg(long)]
    encrypt: bool,
    /// Make it the default server.
    #[arg(long)]
    default: bool,
    /// How long to try.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = timeout)]
    timeout: Duration,
    /// Use the server's IPv4 addresses only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use the server's IPv6 addresses only.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Say what is sent where.
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Write the result to standard output as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Joined<'a> {
    server: &'a str,
    public_key: PublicKey,
    identity: String,
    /// What was opened to see whether it worked; none where nothing could be probed.
    opened: Option<Opened>,
}

#[derive(Serialize)]
struct Opened {
    item: Item,
    address: IpAddr,
}

pub(super) fn run(directory: &Path, args: &JoinArgs) -> Result<(), CliError> {
    let voice = Voice { quiet: args.quiet, verbose: args.verbose };
    let invitation = invitation(args)?;
    let now = Timestamp::now();
    let ends = ends(&invitation);
    if ends.is_some_and(|ends| ends <= now) {
        return Err(CliError::Failed(format!(
            "this invitation ended at {}; ask for a new one (this machine's clock says {now:.0}; if that is wrong, set it)",
            ends.unwrap_or_default()
        )));
    }
    let server = server(directory, args, &invitation)?;
    let (server, announcement, keys) = keep(directory, args, server, &invitation, voice)?;
    let family = Family::of_flags(args.ipv4, args.ipv6);
    let outcome = announcing::announce(&server, &announcement, &keys, family, args.timeout, voice)?;
    let (name, key) = (&server.name, keys.private.public());
    let opened = match outcome {
        Outcome::Opened { item, address, after } => {
            voice.say(&super::report::opened(name, &item, address, after));
            voice.say(&format!(
                "joined {name}; next: spa-client ssh USER@{}, or let plain ssh do it: spa-client setup ssh",
                server.host
            ));
            Some(Opened { item, address })
        }
        Outcome::OpenAnyway { item } => {
            voice.say(&format!(
                "the key was sent to {name}; but {item} was open before, so nothing shows whether it has come: close what others have open from here and run this again, or look for event=enrolled with {key} in the server's log"
            ));
            None
        }
        Outcome::NotProbed => {
            voice.say(&format!(
                "the key was sent to {name} several times; a server never answers, and nothing of what it offers can be probed from here. Its log has event=enrolled with {key} if it has come"
            ));
            None
        }
        Outcome::NotOpened { item, seen } => {
            return Err(CliError::Failed(not_opened(&server, &item, &seen, key, args.timeout)));
        }
    };
    if args.json {
        let identity = server.identity.to_string();
        print_json(&Joined { server: name.as_str(), public_key: key, identity, opened })?;
    }
    Ok(())
}

fn not_opened(
    server: &Server,
    item: &Item,
    seen: &str,
    key: PublicKey,
    timeout: Duration,
) -> String {
    format!(
        "\
{item} on {name} did not open within {timeout} ({seen})
the key is kept ({identity}); run the same line again to go on. A server never answers, but its log tells what
became of it, and `spa-server client list` whether the key has come; likely reasons:
  - event=refused reason=invitation-used there: another key came by this line, so somebody else may have had it
  - event=refused reason=invitation-expired or invitation-void there: ask for a new invitation
  - event=enrolled with {key} there, but {item} stays shut: does it run, and is it reached at {host}?
  - nothing there: the clocks differ by more than the server allows; this one says {now:.0}
  - nothing there: a firewall on the way drops {ports}; try another network",
        name = server.name,
        timeout = spoken(timeout),
        identity = server.identity,
        host = server.host,
        now = Timestamp::now(),
        ports = super::report::knock_ports(server),
    )
}

fn ends(invitation: &Invitation) -> Option<Timestamp> {
    let seconds = i64::try_from(invitation.expires.as_secs()).ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The invitation, from the command line or from standard input. Whoever has copied the whole
/// command meant what is in it.
fn invitation(args: &JoinArgs) -> Result<Invitation, CliError> {
    let mut text = Zeroizing::new(String::new());
    let given = if args.invitation.as_str() == "-" {
        io::stdin().lock().take(MAX_LINE).read_line(&mut text).map_err(|error| {
            CliError::Failed(format!("the invitation can't be read from standard input: {error}"))
        })?;
        &text
    } else {
        &args.invitation
    };
    let last = given.split_whitespace().next_back().unwrap_or_default();
    last.parse().map_err(|error: spa_keys::InvitationTextError| CliError::Usage(error.to_string()))
}

/// The server as the invitation describes it.
fn server(directory: &Path, args: &JoinArgs, invitation: &Invitation) -> Result<Server, CliError> {
    let unusable = |what: &str| {
        CliError::Usage(format!(
            "{what} in this invitation can't be used here; ask for another one"
        ))
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => invitation.name.parse().map_err(|_| unusable("the server's name"))?,
    };
    let mut hosts = Vec::new();
    for host in &invitation.hosts {
        hosts.push(host.parse::<Host>().map_err(|_| unusable("a host"))?);
    }
    let mut hosts = hosts.into_iter();
    let host = hosts.next().ok_or_else(|| unusable("the host"))?;
    let identity = match &args.identity {
        Some(path) => place(path)?,
        None => KeySource::File(directory.join(format!("{name}.key"))),
    };
    let mut server = Server::new(name, host, invitation.server, identity);
    server.more_hosts = hosts.collect();
    server.knock_ports.clone_from(&invitation.knock_ports);
    server.length = invitation.length;
    for invited in &invitation.services {
        let connections = if invited.once { Connections::One } else { Connections::Any };
        let service = Service { ports: invited.ports.clone(), connections };
        // The usual ones as well: so it is known what this client may open.
        server.services.insert(invited.name.clone(), service);
    }
    Ok(server)
}

/// Makes the key and notes the server, before anything is sent; or takes those up that an earlier
/// try has left.
fn keep(
    directory: &Path,
    args: &JoinArgs,
    server: Server,
    invitation: &Invitation,
    voice: Voice,
) -> Result<(Server, Announcement, ClientKeys), CliError> {
    let derive = |private: &PrivateKey| {
        Announcement::enrolment(invitation, private)
            .map_err(|source| KnockError::Derive { server: server.name.to_string(), source })
    };
    let present = match Config::load(directory) {
        Ok(config) => config.server(Some(server.name.as_str())).ok().cloned(),
        Err(ConfigError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(present) = &present
        && present.public_key != server.public_key
    {
        return Err(CliError::Failed(format!(
            "another server is called {name} here; give this one another name: --name NAME",
            name = server.name
        )));
    }
    let identity = present.as_ref().map_or(&server.identity, |present| &present.identity);
    match identity.keys(&mut Prompt::default()) {
        Ok(keys) => {
            let announcement = derive(&keys.private)?;
            let own = announcement.keys(keys.private);
            let is_same = keys.pre_shared.as_ref().zip(own.pre_shared.as_ref());
            if !is_same.is_some_and(|(one, other)| one.is(other)) {
                return Err(CliError::Failed(format!(
                    "there is a key in {identity} already, and it is not one of this invitation; keep both: --name NAME --identity FILE"
                )));
            }
            voice.say(&format!("going on with the key in {identity}"));
            let server = match present {
                Some(present) => present,
                None => add(directory, server, args.default, voice)?,
            };
            return Ok((server, announcement, own));
        }
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(present) = present {
        return Err(CliError::Failed(format!(
            "{name} stands in the configuration, but its key is not in {}; remove it first: spa-client server remove {name}",
            present.identity,
            name = present.name
        )));
    }
    let to = &server.identity;
    let passphrase = args.encrypt.then(|| new_passphrase(&to.to_string(), None)).transpose()?;
    make_directory(directory)
        .map_err(|source| ConfigError::Write { path: directory.into(), source })?;
    let private = PrivateKey::generate(&SystemRandom::new())?;
    let announcement = derive(&private)?;
    let again = announcement.keys(private.again());
    let stored = protected(announcement.keys(private), passphrase.as_ref());
    to.store(&stored.map_err(KeyError::from)?, Overwrite::Refuse)?;
    voice.say(&format!("the key was made and is in {to}; it stays there"));
    let server = add(directory, server, args.default, voice)?;
    Ok((server, announcement, again))
}

fn add(directory: &Path, server: Server, default: bool, voice: Voice) -> Result<Server, CliError> {
    let config = Config::add_server(directory, &server, default)?;
    let is_default = config.default_server().is_some_and(|it| it.name == server.name);
    let mark = if is_default { ", the default server," } else { "" };
    let path = Config::path(directory);
    voice.say(&format!("added {}{mark} to {}", server.name, path.display()));
    Ok(server)
}
