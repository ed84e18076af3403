//! `spa-server notify`: a command for what happens.

use super::host::block_on;
use super::{CommandError, Done};
use crate::causes::with_causes;
use crate::cli::NotifyArgs;
use crate::config::{judge_program, parse_duration};
use crate::daemon;
use crate::notify::{self, Order, USUAL};
use std::path::PathBuf;

pub(crate) fn run(args: &NotifyArgs) -> Done {
    let order = order(args)?;
    let log = daemon::begin().map_err(|error| CommandError::Failed(format!("{error:#}")))?;
    let failed = |error: &dyn std::error::Error| CommandError::Failed(with_causes(error));
    let ended = block_on(notify::run(order, &log)).map_err(|error| failed(&error))?;
    ended.map_err(|error| failed(&error))
}

fn order(args: &NotifyArgs) -> Result<Order, CommandError> {
    let mut wanted = args.which.wanted();
    if wanted.events.is_empty() {
        wanted.events = USUAL.map(str::to_owned).to_vec();
    }
    let time_limit = parse_duration(&args.time_limit)
        .map_err(|error| CommandError::Usage(format!("--time-limit: {error}")))?;
    let (program, arguments) = args.command.split_first().ok_or_else(|| {
        CommandError::Usage("no command; write it behind --, with its full path".into())
    })?;
    let program = PathBuf::from(program);
    if !program.is_absolute() {
        return Err(CommandError::Usage(format!(
            "{} is no absolute path; nothing is looked up in a search path, so write it out from the root",
            program.display()
        )));
    }
    judge_program(&program).map_err(|problem| CommandError::Failed(with_causes(&problem)))?;
    Ok(Order {
        file: args.file.clone(),
        wanted,
        program,
        arguments: arguments.to_vec(),
        time_limit,
        per_minute: args.per_minute,
        tries: args.tries,
        // systemd may name several.
        state: args.state.clone().or_else(|| {
            let named = std::env::var_os("STATE_DIRECTORY")?.into_string().ok()?;
            named.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
        }),
    })
}
