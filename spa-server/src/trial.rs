//! The trial of a gate, as a file in the state directory remembers it: over a restart of the daemon,
//! between daemon and commands, and, once it has lapsed, over a reboot.
//!
//! It touches no gate and reads no clock. That a gate on trial refuses nothing any more when its time is
//! over is the kernel's doing; the file is what keeps everybody from putting it back.

use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::Settings;
use crate::gate::Plan;
use crate::replay_store::BootId;
use crate::state_file::{StateFile, StateFileError};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// What a refusal to confirm begins with.
pub const NOT_CONFIRMED: &str = "the gate is not confirmed";

const FILE: &str = "trial";

/// The shortest trial: time to open a connection, and to confirm.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// The longest trial.
pub const LONGEST: Duration = Duration::from_secs(86_400);

/// Whether the gate is on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialState {
    /// It is not: it stands for good, if it stands.
    None,
    /// It is.
    Running(Trial),
    /// It was, and nobody has confirmed it: there is to be no gate until somebody installs it.
    Lapsed,
}

/// A trial that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Since when its gate stands, as the kernel was found afterwards: who comes in later has come
    /// in through it. `None` while it is being put up: nobody has.
    pub stands_since: Option<BootMicros>,
    /// When it ends.
    pub deadline: BootMicros,
}

impl Trial {
    /// One that begins now.
    pub fn of(length: Duration, now: BootMicros) -> Self {
        Self { stands_since: None, deadline: now.saturating_add(length) }
    }

    /// How many seconds are left, rounded up; `None` if it is over.
    pub fn seconds_left(&self, now: BootMicros) -> Option<u32> {
        let left = self.deadline.since(now);
        let whole = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
        u32::try_from(whole).ok().filter(|seconds| *seconds > 0)
    }
}

/// What the gate is to guard by these settings, on trial or for good.
pub fn plan_of(settings: &Settings, trial: Option<Trial>, now: BootMicros) -> Plan {
    // When it is over nothing is installed any more; and what is on trial is never for good.
    let trial_seconds = trial.map(|trial| trial.seconds_left(now).unwrap_or(1));
    Plan { trial_seconds, ..settings.gate_plan() }
}

/// The file of one server.
#[derive(Debug, Clone)]
pub struct TrialFile {
    file: StateFile,
    boot: BootId,
}

/// What the file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Record {
    #[serde(rename_all = "kebab-case")]
    Running {
        boot_id: String,
        stands_since: Option<BootMicros>,
        deadline: BootMicros,
    },
    Lapsed,
}

impl TrialFile {
    /// The file in this state directory, as seen in this boot.
    pub fn new(state_directory: &Path, boot: BootId) -> Self {
        Self { file: StateFile::new(state_directory, FILE), boot }
    }

    /// What it says. A file that makes no sense says that a trial has lapsed: it is there because
    /// there was one, and nobody is to be locked out by what can't be read.
    pub fn read(&self, now: BootMicros) -> TrialState {
        match self.file.read() {
            Ok(None) => TrialState::None,
            Ok(Some(text)) => judge(&text, &self.boot.to_string(), now),
            Err(error) => {
                tracing::error!("{} can't be read: {error}", self.file.path().display());
                TrialState::Lapsed
            }
        }
    }

    /// Records what a gate is going to be, on trial or for good, before the kernel has any of it:
    /// an order that can't be recorded is not begun. After a crash in between it is on trial for
    /// the rest of its time, and nobody can confirm it who came in before; or, where that was the
    /// order, for good.
    ///
    /// # Errors
    ///
    /// All is as it was.
    pub fn announce(
        &self,
        trial: Option<Trial>,
        now: BootMicros,
    ) -> Result<Announced, StateFileError> {
        let trial = trial.map(|trial| Trial { stands_since: None, ..trial });
        let announced = Announced { file: self.clone(), before: self.read(now), trial };
        match self.put(trial.map_or(TrialState::None, TrialState::Running)) {
            Ok(()) => Ok(announced),
            Err(error) => {
                // It may be there although it could not be synced. The first error is the one
                // that matters.
                let _ = announced.withdraw();
                Err(error)
            }
        }
    }

    /// The gate of this trial was put up, or put back, and found in the kernel at this time.
    ///
    /// # Errors
    ///
    /// The file says what it said before.
    pub fn stands(&self, trial: Trial, now: BootMicros) -> Result<Trial, StateFileError> {
        let trial = Trial { stands_since: Some(now), ..trial };
        self.put(TrialState::Running(trial)).map(|()| trial)
    }

    /// It is over, and was not confirmed.
    pub fn lapse(&self) -> Result<(), StateFileError> {
        self.put(TrialState::Lapsed)
    }

    fn put(&self, state: TrialState) -> Result<(), StateFileError> {
        let record = match state {
            TrialState::None => return self.file.remove(),
            TrialState::Lapsed => Record::Lapsed,
            TrialState::Running(Trial { stands_since, deadline }) => {
                Record::Running { boot_id: self.boot.to_string(), stands_since, deadline }
            }
        };
        self.file.write_json(&record)
    }
}

/// A gate that is about to be put up, and what was recorded before.
#[derive(Debug)]
#[must_use]
pub struct Announced {
    file: TrialFile,
    before: TrialState,
    /// How it is going to be.
    pub trial: Option<Trial>,
}

impl Announced {
    /// It stands, and was found in the kernel at this time. If that can't be recorded it stands all
    /// the same.
    pub fn stands(self, now: BootMicros) -> (Option<Trial>, Result<(), StateFileError>) {
        let Some(trial) = self.trial else { return (None, Ok(())) };
        match self.file.stands(trial, now) {
            Ok(trial) => (Some(trial), Ok(())),
            Err(error) => (Some(trial), Err(error)),
        }
    }

    /// It could not be put up: what was recorded before holds.
    ///
    /// # Errors
    ///
    /// What was announced is recorded still.
    pub fn withdraw(self) -> Result<(), StateFileError> {
        self.file.put(self.before)
    }
}

/// What an administrator should know when it can't be recorded since when a trial's gate stands.
pub fn unconfirmable(error: &StateFileError) -> String {
    let why = with_causes(error);
    format!(
        "the trial can't be confirmed from a connection, and will be undone; begin another one: {why}"
    )
}

/// Why nobody is to confirm a gate that is not the one any more that he came in through.
pub fn stands_anew() -> String {
    format!(
        "{NOT_CONFIRMED}, since at this moment it was put up anew: open another connection, and confirm there"
    )
}

fn judge(text: &str, boot: &str, now: BootMicros) -> TrialState {
    match serde_json::from_str(text.trim_end()) {
        // Of an earlier boot: the kernel of that one has forgotten the gate, unconfirmed.
        Ok(Record::Running { boot_id, stands_since, deadline })
            if boot_id == boot && deadline > now =>
        {
            TrialState::Running(Trial { stands_since, deadline })
        }
        _ => TrialState::Lapsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const BOOT: BootId = BootId([7; 16]);

    fn at(second: u64) -> BootMicros {
        BootMicros(second * 1_000_000)
    }

    fn file() -> (tempfile::TempDir, TrialFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = TrialFile::new(directory.path(), BOOT);
        (directory, file)
    }

    /// A trial of a minute whose gate stands two seconds later.
    fn begun(file: &TrialFile, now: BootMicros) -> Trial {
        let announced = file.announce(Some(Trial::of(Duration::from_secs(60), now)), now).unwrap();
        let (trial, recorded) = announced.stands(now.saturating_add(Duration::from_secs(2)));
        recorded.unwrap();
        trial.unwrap()
    }

    #[test]
    fn a_trial_runs_until_its_deadline_and_then_has_lapsed() {
        let (_directory, file) = file();
        assert_eq!(file.read(at(100)), TrialState::None);
        let trial = begun(&file, at(100));
        assert_eq!(trial, Trial { stands_since: Some(at(102)), deadline: at(160) });
        assert_eq!(file.read(at(159)), TrialState::Running(trial));
        assert_eq!(trial.seconds_left(at(100)), Some(60));
        assert_eq!(trial.seconds_left(BootMicros(159_999_999)), Some(1));
        assert_eq!(trial.seconds_left(at(160)), None);
        assert_eq!(file.read(at(160)), TrialState::Lapsed);
        assert_eq!(file.read(at(159)), TrialState::Running(trial), "nobody has written that yet");
        file.lapse().unwrap();
        assert_eq!(file.read(at(101)), TrialState::Lapsed);
        for _ in 0..2 {
            let announced = file.announce(None, at(101)).unwrap();
            assert_eq!(file.read(at(101)), TrialState::None);
            assert_eq!(announced.stands(at(102)).0, None);
        }
        assert_eq!(file.read(at(102)), TrialState::None);
    }

    #[test]
    fn a_crash_while_the_gate_is_put_up_leaves_a_trial_that_nobody_has_come_through() {
        let (_directory, file) = file();
        let first = begun(&file, at(100));
        // Another trial over that one: what was shown of the first gate says nothing of this one.
        let second = Trial::of(Duration::from_secs(60), at(110));
        drop(file.announce(Some(second), at(110)).unwrap());
        assert_eq!(file.read(at(111)), TrialState::Running(second));
        assert_eq!(second.stands_since, None);
        // The same trial under another configuration.
        drop(file.announce(Some(first), at(112)).unwrap());
        let TrialState::Running(trial) = file.read(at(112)) else { panic!("it goes on") };
        assert_eq!(trial, Trial { stands_since: None, ..first });
        assert_eq!(file.stands(trial, at(113)).unwrap().stands_since, Some(at(113)));
    }

    #[test]
    fn an_order_that_fails_leaves_what_was_recorded_before() {
        let (_directory, file) = file();
        let trial = Some(Trial::of(Duration::from_secs(9), at(100)));
        for wanted in [None, trial] {
            file.announce(wanted, at(100)).unwrap().withdraw().unwrap();
            assert_eq!(file.read(at(101)), TrialState::None);
        }
        let running = TrialState::Running(begun(&file, at(100)));
        for wanted in [None, trial] {
            file.announce(wanted, at(103)).unwrap().withdraw().unwrap();
            assert_eq!(file.read(at(103)), running);
        }
        file.lapse().unwrap();
        for wanted in [None, trial] {
            file.announce(wanted, at(103)).unwrap().withdraw().unwrap();
            assert_eq!(file.read(at(103)), TrialState::Lapsed);
        }
    }

    #[test]
    fn an_order_that_can_not_be_recorded_is_not_begun() {
        let (directory, file) = file();
        let running = TrialState::Running(begun(&file, at(100)));
        // A directory in the place of the file's successor: root may do all else.
        fs::create_dir(directory.path().join("trial.new")).unwrap();
        assert!(file.announce(Some(Trial::of(SHORTEST, at(100))), at(100)).is_err());
        assert_eq!(file.read(at(103)), running);
        fs::remove_file(directory.path().join(FILE)).unwrap();
        fs::create_dir(directory.path().join(FILE)).unwrap();
        assert!(file.announce(None, at(100)).is_err());
        assert_eq!(file.read(at(103)), TrialState::Lapsed);
    }

    #[test]
    fn a_reboot_ends_a_trial_unconfirmed_and_keeps_a_lapsed_one_lapsed() {
        let (directory, file) = file();
        let later = TrialFile::new(directory.path(), BootId([8; 16]));
        begun(&file, at(100));
        assert_eq!(later.read(at(1)), TrialState::Lapsed);
        file.lapse().unwrap();
        assert_eq!(later.read(at(1)), TrialState::Lapsed);
    }

    #[test]
    fn what_makes_no_sense_has_lapsed() {
        let (directory, file) = file();
        let path = directory.path().join(FILE);
        for text in ["", "{", "\"running\"", "\u{0}", "{\"running\":{}}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(file.read(at(1)), TrialState::Lapsed, "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(file.read(at(1)), TrialState::Lapsed);
    }
}
