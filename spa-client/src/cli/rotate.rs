//! `spa-client rotate`: a new key in the place of the one that a server knows.
//!
//! The old key stays in use until a knock under the new one was seen to open something: then the
//! server has made the change, too. Whatever interrupts it, one of the two keys gets in.

use super::announcing::{self, Outcome, to_be_probed};
use super::args::timeout;
use super::open::Voice;
use super::passphrase::{Prompt, new_passphrase};
use super::{CliError, print_json};
use crate::announce::Announcement;
use crate::config::Config;
use crate::duration::spoken;
use crate::key_source::{KeyError, KeySource, SecretNameError, protected};
use crate::knock::{Asked, Family, KnockError, Knocker, Options};
use crate::server::{Server, ServerName};
use clap::Args;
use core::time::Duration;
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{ClientKeys, Overwrite, PrivateKey, PublicKey, StoredKeys};
use std::path::Path;

/// Names tried for a key of its own before giving up.
const MOST_PLACES: u32 = 64;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client rotate                 a new key for the default server
  spa-client rotate work --finish   after its log has said event=rotation-announced

The new key is announced under the old one and tried at once: what this client has open is
closed, and opened again by the new key. When that works the new key is the key; if not, the
old one stays it, and the same command goes on. --finish takes the new key without a trial,
for servers that offer nothing that could be probed.")]
pub(super) struct RotateArgs {
    /// The server [default: the default one].
    #[arg(value_name = "SERVER")]
    server: Option<ServerName>,
    /// Take the key that was announced without seeing it open anything.
    #[arg(long)]
    finish: bool,
    /// Give up the key that was announced, and keep the old one.
    #[arg(long, conflicts_with = "finish")]
    abandon: bool,
    /// How long to try.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = timeout)]
    timeout: Duration,
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
struct Rotated<'a> {
    server: &'a str,
    old_public_key: PublicKey,
    public_key: PublicKey,
    identity: String,
    /// Whether the new key is in use; else both are kept.
    done: bool,
}

pub(super) fn run(directory: &Path, args: &RotateArgs) -> Result<(), CliError> {
    let voice = Voice { quiet: args.quiet, verbose: args.verbose };
    let config = Config::load(directory)?;
    let server = config.server(args.server.as_ref().map(ServerName::as_str))?;
    let next = beside(&server.identity, "next")?;
    if args.abandon {
        return abandon(server, &next, voice);
    }
    if is_done(server, &next)? {
        next.remove()?;
        voice.say(&format!("{} has its new key already, in {}", server.name, server.identity));
        return Ok(());
    }
    let mut prompt = Prompt::default();
    let old = server.keys(&mut prompt)?;
    let (announcement, new, is_new) = new_key(server, &old, &next, args, &mut prompt)?;
    let (old_key, key) = (old.private.public(), new.private.public());
    if is_new && args.finish {
        return Err(CliError::Usage(format!(
            "no key was announced to {} yet; leave --finish out",
            server.name
        )));
    }
    let done = if args.finish {
        true
    } else {
        voice.say(&format!("the new key is {key}"));
        close(server, &old, voice)?;
        match announcing::announce(server, &announcement, &new, Family::Both, args.timeout, voice)?
        {
            Outcome::Opened { item, address, after } => {
                voice.say(&super::report::opened(&server.name, &item, address, after));
                true
            }
            Outcome::OpenAnyway { item } => {
                voice.say(&format!(
                    "the new key was sent, but {item} is open whatever is knocked, so nothing shows whether {name} has taken it; when its log says event=rotation-announced with that key: spa-client rotate {name} --finish",
                    name = server.name
                ));
                false
            }
            Outcome::NotProbed => {
                voice.say(&format!(
                    "the new key was sent several times; nothing of what {name} offers can be probed from here. When its log says event=rotation-announced with that key: spa-client rotate {name} --finish",
                    name = server.name
                ));
                false
            }
            Outcome::NotOpened { item, seen } => {
                return Err(CliError::Failed(not_opened(
                    server,
                    &item.to_string(),
                    &seen,
                    key,
                    args.timeout,
                )));
            }
        }
    };
    let identity = if done {
        let identity = take(directory, &config, server, &next)?;
        voice.say(&format!(
            "{} has the new key now, in {identity}; the old one is gone",
            server.name
        ));
        identity
    } else {
        next
    };
    if args.json {
        print_json(&Rotated {
            server: server.name.as_str(),
            old_public_key: old_key,
            public_key: key,
            identity: identity.to_string(),
            done,
        })?;
    }
    Ok(())
}

fn not_opened(
    server: &Server,
    item: &str,
    seen: &str,
    key: PublicKey,
    timeout: Duration,
) -> String {
    format!(
        "\
{item} on {name} did not open under the new key within {timeout} ({seen}); the old key stays in use, the new one is kept
run the same again to go on. The server's log tells what became of it:
  - event=rotation-announced with {key}: it has the new key; was the knock under it lost, or does {item} not run?
  - event=refused reason=rotation-pending: another key was announced before, by whoever has a copy of the old one? There: spa-server client show NAME
  - event=refused reason=previous-server-key: first give this client the server's new key
  - nothing: see spa-client doctor {name}; or give the new key up: spa-client rotate {name} --abandon",
        name = server.name,
        timeout = spoken(timeout),
    )
}

/// Whether an earlier run was interrupted when all but its last step was done.
fn is_done(server: &Server, next: &KeySource) -> Result<bool, CliError> {
    match next.stored() {
        Ok(stored) => {
            Ok(*next != server.identity && server.identity.stored()?.public() == stored.public())
        }
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Where the new key waits until it is in use (`next`), and the old one stays behind (`old`).
fn beside(identity: &KeySource, what: &str) -> Result<KeySource, CliError> {
    match identity {
        KeySource::File(path) => {
            let mut beside = path.clone().into_os_string();
            beside.push(format!(".{what}"));
            Ok(KeySource::File(beside.into()))
        }
        KeySource::SecretService(name) => {
            format!("{name}.{what}").parse().map(KeySource::SecretService).map_err(|_| {
                CliError::Usage(format!(
                    "the name {name} leaves no room for a second key beside it; copy the key to a shorter one: spa-client key copy"
                ))
            })
        }
        KeySource::Command(_) => Err(CliError::Usage(
            "the key comes from a command, which can't be given another one; copy it to a file first: spa-client key copy".into(),
        )),
    }
}

/// The key that was made by an earlier try, or a new one.
fn new_key(
    server: &Server,
    old: &ClientKeys,
    next: &KeySource,
    args: &RotateArgs,
    prompt: &mut Prompt,
) -> Result<(Announcement, ClientKeys, bool), CliError> {
    let derive = |private: &PrivateKey| {
        Announcement::rotation(old, private, &server.public_key)
            .map_err(|source| KnockError::Derive { server: server.name.to_string(), source })
    };
    match next.keys(prompt) {
        Ok(keys) => {
            let announcement = derive(&keys.private)?;
            let derived = announcement.keys(keys.private.again());
            let same = keys.pre_shared.as_ref().zip(derived.pre_shared.as_ref());
            if !same.is_some_and(|(kept, derived)| kept.is(derived)) {
                return Err(CliError::Failed(format!(
                    "{next} holds a key that was made for another one than the present; give it up first: spa-client rotate {} --abandon",
                    server.name
                )));
            }
            Ok((announcement, keys, false))
        }
        Err(error) if error.is_absent() => {
            let private = PrivateKey::generate(&SystemRandom::new())?;
            let announcement = derive(&private)?;
            let keys = announcement.keys(private);
            if args.finish {
                return Ok((announcement, keys, true));
            }
            let is_encrypted = server.identity.stored().is_ok_and(|stored| stored.is_encrypted());
            let passphrase = match (is_encrypted, prompt.take()) {
                (false, _) => None,
                (true, Some(known)) => Some(known),
                (true, None) => Some(new_passphrase(&next.to_string(), None)?),
            };
            let again = ClientKeys {
                private: keys.private.again(),
                pre_shared: keys.pre_shared.as_ref().map(spa_keys::PreSharedKey::again),
            };
            let stored = protected(again, passphrase.as_ref()).map_err(KeyError::from)?;
            next.store(&stored, Overwrite::Refuse)?;
            Ok((announcement, keys, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// Closes what is to be opened by the new key: what is open shows nothing.
fn close(server: &Server, old: &ClientKeys, voice: Voice) -> Result<(), CliError> {
    let Some(item) = to_be_probed(server) else { return Ok(()) };
    let asked = Asked::close([item])?;
    let mut knocker = Knocker::prepare_with_keys(server, &asked, &Options::default(), old)?;
    for datagram in knocker.send()? {
        voice.detail(&format!("{}: close, {}", server.name, super::report::datagram(&datagram)));
    }
    Ok(())
}

/// Puts the new key in the place of the old one. Other servers may know the old one: then the new
/// key has a place of its own. Whatever interrupts it, it can be done again.
fn take(
    directory: &Path,
    config: &Config,
    server: &Server,
    next: &KeySource,
) -> Result<KeySource, CliError> {
    let new = next.stored()?;
    let is_shared = config
        .servers()
        .any(|other| other.name != server.name && other.identity == server.identity);
    let place = if is_shared {
        own_place(directory, server, &new)?
    } else {
        // What was seen may deceive, and a key that is gone is a lock-out.
        beside(&server.identity, "old")?.store(&server.identity.stored()?, Overwrite::Replace)?;
        server.identity.clone()
    };
    if server.pre_shared_key.is_some() && !is_shared {
        // The new key has its pre-shared key with it: until both are in one place, it is named
        // where it waits.
        Config::set_keys(directory, server, next)?;
    }
    place.store(&new, Overwrite::Replace)?;
    if is_shared || server.pre_shared_key.is_some() {
        Config::set_keys(directory, server, &place)?;
    }
    next.remove()?;
    Ok(place)
}

/// A place that nobody else's key is in.
fn own_place(directory: &Path, server: &Server, new: &StoredKeys) -> Result<KeySource, CliError> {
    for number in 1..=MOST_PLACES {
        let name = match number {
            1 => server.name.to_string(),
            more => format!("{}-{more}", server.name),
        };
        let place = match &server.identity {
            KeySource::SecretService(_) => name
                .parse()
                .map(KeySource::SecretService)
                .map_err(|error: SecretNameError| CliError::Usage(error.to_string()))?,
            _ => KeySource::File(directory.join(format!("{name}.key"))),
        };
        match place.stored() {
            Err(error) if error.is_absent() => return Ok(place),
            // Left by a try that was interrupted.
            Ok(stored) if stored.public() == new.public() => return Ok(place),
            _ => {}
        }
    }
    Err(CliError::Failed(format!(
        "no free name for the new key of {} is left in {}",
        server.name,
        directory.display()
    )))
}

fn abandon(server: &Server, next: &KeySource, voice: Voice) -> Result<(), CliError> {
    match next.stored() {
        Ok(stored) => {
            next.remove()?;
            voice.say(&format!(
                "the key {key} is given up; if {name} has it (event=rotation-announced in its log), it has to be told before another can be announced, there: spa-server client withdraw-key NAME",
                key = stored.public(),
                name = server.name
            ));
            Ok(())
        }
        Err(error) if error.is_absent() => Err(CliError::Failed(format!(
            "no key was announced to {}, so there is none to give up",
            server.name
        ))),
        Err(error) => Err(error.into()),
    }
}
