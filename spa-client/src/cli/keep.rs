//! `spa-client open SERVICE --while -- COMMAND`: keeps open what was opened while a command runs.

use super::args::CommonArgs;
use super::open::{self, Settings, Voice};
use super::passphrase::Prompt;
use super::{CliError, complain, report};
use crate::asking::Asking;
use crate::config::Config;
use crate::knock::plain;
use crate::system::{self, SignalsOfChild};
use core::time::Duration;
use ring::rand::{SecureRandom as _, SystemRandom};
use spa_proto::MessageType;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

/// What a shell ends with when there is no such command.
const NOT_FOUND: u8 = 127;
/// The clock is looked at so often: a machine that wakes from suspend has lost its grant.
const LOOK: Duration = Duration::from_secs(2);
/// After a knock that could not be sent.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is to run meanwhile.
pub(super) struct Meanwhile {
    pub(super) command: Vec<OsString>,
    pub(super) close_after: bool,
}

/// Opens, runs the command, and ends as it does.
pub(super) fn run(
    directory: &Path,
    args: &CommonArgs,
    settings: &Settings,
    meanwhile: &Meanwhile,
) -> Result<ExitCode, CliError> {
    let config = Config::load(directory)?;
    let voice = Voice::of(args);
    let mut prompt = Prompt::default();
    let visits = open::visit_all(&config, MessageType::Open, args, settings, &mut prompt)?;
    let code = thread::scope(|scope| {
        let mut enders = Vec::new();
        for asking in visits {
            let (ender, ended) = channel::<()>();
            enders.push(ender);
            scope.spawn(move || keep(asking, &ended, voice));
        }
        let code = run_command(&meanwhile.command);
        drop(enders);
        code
    })?;
    if meanwhile.close_after {
        let settings = &Settings::default();
        open::visit_all(&config, MessageType::Close, args, settings, &mut prompt)?;
    }
    Ok(code)
}

fn run_command(words: &[OsString]) -> Result<ExitCode, CliError> {
    let Some((program, words)) = words.split_first() else {
        return Err(CliError::Usage("--while needs a command, after --".into()));
    };
    let failed = |error: io::Error| {
        CliError::Failed(format!("can't run {}: {}", program.display(), plain(&error)))
    };
    let signals = SignalsOfChild::taken().map_err(failed)?;
    match Command::new(program).args(words).spawn() {
        Ok(mut child) => {
            let status = signals.wait(&mut child).map_err(failed)?;
            Ok(ExitCode::from(system::exit_code(status)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            complain(&failed(error));
            Ok(ExitCode::from(NOT_FOUND))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Knocks again each time before the lifetime is over, until the other end of `ended` is gone.
fn keep(mut asking: Asking<'_>, ended: &Receiver<()>, voice: Voice) {
    let name = asking.route().server().name.clone();
    let mut has_failed = false;
    loop {
        let share = share();
        loop {
            let left = asking.until_due(share);
            if left.is_zero() {
                break;
            }
            if ended.recv_timeout(left.min(LOOK)) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
        asking.renew();
        match asking.again(None) {
            Ok(sent) => {
                has_failed = false;
                for datagram in &sent {
                    voice.detail(&format!("{name}: again, {}", report::datagram(datagram)));
                }
            }
            Err(error) => {
                if !has_failed {
                    voice.say(&format!("{name}: {error}; trying again"));
                }
                has_failed = true;
                if ended.recv_timeout(TRY_AGAIN) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        }
    }
}

/// After which share of a lifetime the next knock leaves. Not always the same: knocks by a clock
/// would be seen to be that. Two may be lost on the way.
fn share() -> f64 {
    let mut byte = [0];
    let _ = SystemRandom::new().fill(&mut byte);
    let [byte] = byte;
    0.3 + 0.15 * f64::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_three_knocks_may_be_lost_and_they_come_by_no_clock() {
        let shares: Vec<f64> = (0..100).map(|_| share()).collect();
        assert!(shares.iter().all(|share| (0.3..=0.45).contains(share)));
        assert!(shares.windows(2).any(|two| two[0].to_bits() != two[1].to_bits()));
    }
}
