//! `spa-client status`: what this client has asked for, and until when.

use super::{CliError, print, print_json};
use crate::record::{Entry, Moment, Record};
use clap::Args;
use core::fmt::Write as _;
use core::net::IpAddr;
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, Write as _};

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client status

A server never answers. So this is what this client asked for, and for how long that holds at
least if the server has granted it: not what is open. What was seen open was so at that moment.")]
pub(super) struct StatusArgs {
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), CliError> {
    let entries = Record::of_user().map(|record| record.entries()).unwrap_or_default();
    let now = Moment::now();
    let asked: Vec<Shown<'_>> = entries.iter().filter_map(|entry| Shown::of(entry, now)).collect();
    if args.json {
        return print_json(&Status { asked });
    }
    if asked.is_empty() {
        let _ = writeln!(io::stderr(), "this client has asked for nothing that still holds");
        return Ok(());
    }
    let texts: Vec<String> = asked.iter().map(Shown::text).collect();
    print(&texts.concat())?;
    let _ = writeln!(io::stderr(), "a server never answers: this was asked for, not what is open");
    Ok(())
}

#[derive(Serialize)]
struct Status<'a> {
    asked: Vec<Shown<'a>>,
}

/// One thing that was asked of one address.
#[derive(Serialize)]
struct Shown<'a> {
    server: &'a str,
    item: &'a str,
    address: IpAddr,
    from: IpAddr,
    asked_at: Timestamp,
    /// It may be open for longer: another knock does not shorten.
    until_at_least: Timestamp,
    seconds_left: u64,
    /// Whether the knock named its lifetime; else it is the usual one of servers.
    lifetime_known: bool,
    seen_open_seconds_ago: Option<u64>,
}

impl<'a> Shown<'a> {
    fn of(entry: &'a Entry, now: Moment) -> Option<Self> {
        let asked = i64::try_from(entry.asked.unix_milliseconds()).ok()?;
        let left = entry.left(now)?;
        let until = Timestamp::now().checked_add(left).ok()?;
        Some(Self {
            server: &entry.server,
            item: &entry.item,
            address: entry.to,
            from: entry.from,
            asked_at: Timestamp::from_millisecond(asked).ok()?,
            until_at_least: until.round(jiff::Unit::Second).ok()?,
            seconds_left: left.as_secs(),
            lifetime_known: entry.lifetime_asked,
            seen_open_seconds_ago: entry
                .seen_open
                .and_then(|seen| seen.age(now))
                .map(|age| age.as_secs()),
        })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} on {} ({} from {}): asked for, for {} s more at least",
            self.item, self.server, self.address, self.from, self.seconds_left
        );
        if !self.lifetime_known {
            text.push_str(" if the server's lifetime is the usual one");
        }
        if let Some(seconds) = self.seen_open_seconds_ago {
            let _ = write!(text, "; seen open {seconds} s ago");
        }
        text.push('\n');
        text
    }
}
