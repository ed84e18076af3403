//! `spa-server log`: the audit trail, as the journal or a file has it.

use super::output::print;
use super::{CommandError, Done};
use crate::audit::journal::{JOURNALCTL, Recorded, journalctl};
use crate::audit::trail::{Entry, Wanted};
use crate::cli::LogArgs;
use crate::clock::Now;
use crate::config::{parse_duration, parse_timestamp};
use serde_json::{Map, Value};
use spa_proto::UnixMicros;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &LogArgs) -> Done {
    let now = Now::realtime();
    let instant = |text: &Option<String>| text.as_deref().map(|text| when(text, now)).transpose();
    let (since, until) = (instant(&args.since)?, instant(&args.until)?);
    let wanted = Wanted { since, until, ..args.which.wanted() };
    let mut found = 0_u64;
    let show = |entry: &Entry| {
        if wanted.is(entry) {
            found = found.saturating_add(1);
            print(&if args.json { json(entry) } else { format!("{entry}\n") })?;
        }
        Ok(())
    };
    match &args.file {
        Some(path) => from_file(path, show)?,
        None => from_journal(&wanted, show)?,
    }
    if found == 0 {
        let hint = "; it was looked for in the journal of spa-server.service, a log elsewhere is read by --file FILE";
        let hint = if args.file.is_none() { hint } else { "" };
        eprintln!("nothing of that is in the audit trail{hint}");
    }
    Ok(())
}

/// A time ago, or a point in time.
fn when(text: &str, now: UnixMicros) -> Result<UnixMicros, CommandError> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(now.saturating_sub(ago));
    }
    parse_timestamp(text).map_err(|_| {
        CommandError::Usage(format!(
            "{text:?} is no time: write how long ago, as in 90s, 12h or 7d, or a date, as in 2027-01-31, or date, time and offset, as in 2027-01-31T18:00:00Z"
        ))
    })
}

/// One line for programs.
fn json(entry: &Entry) -> String {
    let fields = entry.fields.iter().map(|(key, value)| (key.clone(), value.clone().into()));
    let mut object: Map<_, _> = fields.collect();
    object.insert("time".into(), entry.at.0.into());
    format!("{}\n", Value::Object(object))
}

fn from_file(path: &Path, mut show: impl FnMut(&Entry) -> Done) -> Done {
    let failed = |source| CommandError::Read { path: path.into(), source };
    let log: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).map_err(failed)?))
    };
    for line in log.split(b'\n') {
        let line = line.map_err(failed)?;
        if let Some(entry) = Entry::parse_logged(&String::from_utf8_lossy(&line)) {
            show(&entry)?;
        }
    }
    Ok(())
}

fn from_journal(wanted: &Wanted, mut show: impl FnMut(&Entry) -> Done) -> Done {
    let mut command = journalctl();
    // It takes whole seconds; the rest is picked here.
    if let Some(since) = wanted.since {
        command.arg(format!("--since=@{}", since.as_secs()));
    }
    if let Some(until) = wanted.until {
        command.arg(format!("--until=@{}", until.as_secs().saturating_add(1)));
    }
    let no_journal = |error: io::Error| {
        CommandError::Failed(format!(
            "{JOURNALCTL} can't be run ({error}); where the log goes to a file, name it: spa-server log --file FILE"
        ))
    };
    let mut child = command.spawn().map_err(no_journal)?;
    let output = child.stdout.take().map(BufReader::new).into_iter();
    for line in output.flat_map(|output| output.split(b'\n')) {
        let failed = |source| CommandError::Read { path: PathBuf::from(JOURNALCTL), source };
        let line = line.map_err(failed)?;
        if let Some(entry) = Recorded::parse(&line).as_ref().and_then(Recorded::entry)
            && let Err(error) = show(&entry)
        {
            // Nobody reads on. It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    }
    let status = child.wait().map_err(no_journal)?;
    if status.success() {
        Ok(())
    } else {
        Err(CommandError::Failed(format!("{JOURNALCTL} failed ({status}); it said why above")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ago_or_points_in_time() {
        let now = UnixMicros::from_secs(1_800_000_000);
        assert_eq!(when("1d", now).unwrap(), UnixMicros::from_secs(1_800_000_000 - 86_400));
        assert_eq!(when("1970-01-02", now).unwrap(), UnixMicros::from_secs(86_400));
        let error = when("yesterday", now).unwrap_err().to_string();
        assert!(error.contains("yesterday") && error.contains("7d"), "{error}");
    }

    #[test]
    fn a_line_for_programs() {
        let entry = Entry::parse(UnixMicros(5), "event=closed client=a").unwrap();
        assert_eq!(json(&entry), "{\"client\":\"a\",\"event\":\"closed\",\"time\":5}\n");
    }
}
