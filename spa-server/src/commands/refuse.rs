//! `spa-server refuse`: nothing is opened for an address, or a network, for a time.

use super::daemon::{ask, count, judge_cut, render_cut, render_grants, seconds, unexpected};
use super::output::{print, print_json, table};
use super::{CommandError, Done, FAILED};
use crate::cli::RefuseArgs;
use crate::control::{ControlRequest, ControlResponse, CutView, GrantView, RefusedView};
use crate::source::Source;
use serde::Serialize;
use spa_proto::parse_duration;
use std::path::Path;

/// What `refuse --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct RefusedAndRevoked<'a> {
    source: Source,
    seconds: u64,
    revoked: &'a [GrantView],
    cut: Option<&'a CutView>,
}

pub(crate) fn run(config: &Path, args: &RefuseArgs) -> Done {
    match (args.source, args.lift) {
        (Some(source), _) => refuse(config, source, args),
        (None, Some(source)) => lift(config, source),
        (None, None) => list(config, args),
    }
}

fn refuse(config: &Path, source: Source, args: &RefuseArgs) -> Done {
    let length =
        parse_duration(&args.how_long).map_err(|error| CommandError::Usage(error.to_string()))?;
    let request = ControlRequest::Refuse { source, seconds: length.as_secs(), cut: !args.no_cut };
    let (left, grants, cut, trouble) = match ask(config, &request)? {
        ControlResponse::Refused { seconds, grants, cut, trouble } => {
            (seconds, grants, cut, trouble)
        }
        other => return Err(unexpected(&other)),
    };
    if args.output.json {
        let cut = cut.as_ref();
        print_json(&RefusedAndRevoked { source, seconds: left, revoked: &grants, cut })?;
    } else if !grants.is_empty() {
        print(&render_grants(&grants))?;
    }
    let revoked = count(u64::try_from(grants.len()).unwrap_or(u64::MAX), "grant");
    let ended = cut.as_ref().map_or_else(String::new, |cut| format!(", {}", render_cut(cut)));
    eprintln!("{source} is refused for {}: {revoked} revoked{ended}", seconds(left));
    if let Some(trouble) = trouble {
        eprintln!("spa-server: {trouble}");
        return Err(CommandError::Told { exit_code: FAILED });
    }
    cut.as_ref().map_or(Ok(()), judge_cut)
}

/// What is not refused is not an error: its time may just have ended.
fn lift(config: &Path, source: Source) -> Done {
    match ask(config, &ControlRequest::LiftRefusal { source })? {
        ControlResponse::Lifted { still: Some(still), .. } => Err(CommandError::Failed(format!(
            "{source} is refused still, by {still}; spa-server refuse --lift {still}"
        ))),
        ControlResponse::Lifted { trouble: Some(trouble), .. } => {
            Err(CommandError::Failed(trouble))
        }
        ControlResponse::Lifted { was_refused, .. } => {
            let was = if was_refused { "is refused no more" } else { "is not refused" };
            eprintln!("{source} {was}");
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn list(config: &Path, args: &RefuseArgs) -> Done {
    match ask(config, &ControlRequest::RefusedSources)? {
        ControlResponse::RefusedSources(refused) if args.output.json => print_json(&refused),
        ControlResponse::RefusedSources(refused) if refused.is_empty() => {
            eprintln!("nobody is refused");
            Ok(())
        }
        ControlResponse::RefusedSources(refused) => print(&render(&refused)),
        other => Err(unexpected(&other)),
    }
}

fn render(refused: &[RefusedView]) -> String {
    let mut rows = vec![["SOURCE", "LEFT"].map(String::from).to_vec()];
    let row = |one: &RefusedView| vec![one.source.to_string(), seconds(one.seconds_left)];
    rows.extend(refused.iter().map(row));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_is_a_table() {
        let refused = [("192.0.2.7", 90), ("2001:db8::/32", 86_400)].map(|(source, left)| {
            RefusedView { source: source.parse().unwrap(), seconds_left: left }
        });
        insta::assert_snapshot!(render(&refused), @"
        SOURCE         LEFT
        192.0.2.7      1m30s
        2001:db8::/32  1d
        ");
    }
}
