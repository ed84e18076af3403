//! What a boot needs to know of the gate: whether one stands for good, how it stood, and whether one was
//! on trial. It lies in a directory that whoever changes the firewall writes, and no worker: who has
//! taken that over must not decide what a boot leaves open.

use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::{GateSettings, gate_directory_of};
use crate::gate::{InstallReport, Plan};
use crate::last_gate::LastGateFile;
use crate::replay_store::BootId;
use crate::state_file::StateFileError;
use crate::trial::{Announced, Trial, TrialFile, TrialState};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// What is to stand has been said, or could not be, which for a gate that stands for good is worth a
/// warning only.
pub type Announcement = Result<Announced, StateFileError>;

/// See the module's text.
#[derive(Debug)]
pub struct GateRecord {
    directory: PathBuf,
    /// How the gate last stood.
    pub last: LastGateFile,
    trial: TrialFile,
    /// The gate that is put back as it was needs no other word.
    stands: Mutex<Option<Plan>>,
}

impl GateRecord {
    /// That of the server with this state directory.
    pub fn of(state_directory: &Path, boot: BootId) -> Self {
        let directory = gate_directory_of(state_directory);
        Self {
            last: LastGateFile::new(&directory),
            trial: TrialFile::new(&directory, boot),
            directory,
            stands: Mutex::new(None),
        }
    }

    /// Whether a gate was on trial when something was last done to it.
    pub fn trial(&self, now: BootMicros) -> TrialState {
        self.trial.read(now)
    }

    /// Says what is about to be put up, so that a boot after a crash finds a gate on trial to be one.
    ///
    /// # Errors
    ///
    /// A gate is on trial, and a boot would take it for one that stands for good: it must not be put up.
    pub fn announce(&self, plan: &Plan, now: BootMicros) -> Result<Announcement, StateFileError> {
        let announced = self.write(plan, now);
        let is_known = || matches!(self.trial(now), TrialState::Running(_));
        match announced {
            Err(error) if plan.trial_seconds.is_some() && !is_known() => Err(error),
            announced => Ok(announced),
        }
    }

    fn write(&self, plan: &Plan, now: BootMicros) -> Announcement {
        // What can't be made is told by what is then to be written in it.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        let trial =
            plan.trial_seconds.map(|seconds| Trial::of(Duration::from_secs(seconds.into()), now));
        self.trial.announce(trial, now)
    }

    /// The gate stands by this plan; what could not be written of it is in the report's warnings.
    pub fn stands(
        &self,
        announced: Announcement,
        settings: &GateSettings,
        plan: &Plan,
        report: &mut InstallReport,
    ) {
        let recorded = announced.and_then(|announced| announced.stands(BootMicros::now()).1);
        report.warnings.extend(recorded.err().map(|error| {
            let why = with_causes(&error);
            format!("a boot does not know whether this gate is on trial: {why}")
        }));
        let mut stands = self.stands.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if stands.as_ref() != Some(plan) {
            let complaint = self.last.stands(settings, plan);
            *stands = complaint.is_none().then(|| plan.clone());
            report.warnings.extend(complaint);
        }
    }

    /// There is to be none, whatever happens.
    ///
    /// # Errors
    ///
    /// It can't be written: a boot may put it up again.
    pub fn removed(&self) -> Result<(), StateFileError> {
        *self.stands.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        let mut forgotten = self.last.forget();
        if let TrialState::Running(_) = self.trial(BootMicros::now()) {
            // Whoever takes it away in its trial has not confirmed it.
            forgotten = forgotten.and(self.trial.lapse());
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Backend, Mode, Refusal};

    fn plan(trial_seconds: Option<u32>) -> Plan {
        Plan {
            mode: Mode::Guard,
            refusal: Refusal::Drop,
            guarded: Vec::new(),
            knock_ports: vec![62201],
            always_admit: Vec::new(),
            max_elements: 100,
            trial_seconds,
        }
    }

    /// A server's directories, and what it does to the gate.
    struct Host(tempfile::TempDir);

    impl Host {
        fn record(&self, boot: u8) -> GateRecord {
            GateRecord::of(&self.0.path().join("state"), BootId([boot; 16]))
        }

        fn puts_up(record: &GateRecord, trial: Option<u32>) -> Vec<String> {
            let settings = GateSettings { backend: Backend::Nftables, ..GateSettings::default() };
            let (plan, mut report) = (plan(trial), InstallReport::default());
            let announced = match record.announce(&plan, BootMicros::now()) {
                Ok(announced) => announced,
                Err(error) => return vec![format!("not put up: {error}")],
            };
            record.stands(announced, &settings, &plan, &mut report);
            report.warnings
        }
    }

    #[test]
    fn a_boot_finds_the_gate_that_stood_for_good_and_none_that_was_on_trial() {
        let host = Host(tempfile::tempdir().unwrap());
        let state = |record: &GateRecord| (record.trial(BootMicros::now()), record.last.exists());
        let record = host.record(1);
        assert_eq!(state(&record), (TrialState::None, false));
        assert!(Host::puts_up(&record, None).is_empty());
        assert_eq!(state(&host.record(2)), (TrialState::None, true));
        assert!(Host::puts_up(&record, Some(60)).is_empty());
        assert!(matches!(state(&host.record(1)), (TrialState::Running(_), true)));
        assert_eq!(state(&host.record(2)).0, TrialState::Lapsed);
        // It was confirmed.
        assert!(Host::puts_up(&record, None).is_empty());
        assert_eq!(state(&host.record(2)), (TrialState::None, true));
        record.removed().unwrap();
        assert_eq!(state(&host.record(2)), (TrialState::None, false));
        assert!(Host::puts_up(&record, Some(60)).is_empty());
        record.removed().unwrap();
        assert_eq!(state(&host.record(1)), (TrialState::Lapsed, false));
        let entries = std::fs::read_dir(host.0.path()).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["state-gate"], "and nothing in the worker's");
    }

    #[test]
    fn a_gate_that_could_not_be_put_up_leaves_what_was_known_of_the_one_before() {
        let host = Host(tempfile::tempdir().unwrap());
        let record = host.record(1);
        Host::puts_up(&record, None);
        let announced = record.announce(&plan(Some(60)), BootMicros::now()).unwrap().unwrap();
        assert!(matches!(record.trial(BootMicros::now()), TrialState::Running(_)));
        announced.withdraw().unwrap();
        assert_eq!(record.trial(BootMicros::now()), TrialState::None);
    }

    #[test]
    fn what_a_boot_will_not_know_is_told_each_time_and_a_trial_not_begun() {
        let host = Host(tempfile::tempdir().unwrap());
        let record = host.record(1);
        std::fs::write(host.0.path().join("state-gate"), "").unwrap();
        for _ in 0..2 {
            let told = Host::puts_up(&record, None);
            assert!(told.len() == 1 && told[0].contains("a boot"), "{told:?}");
            let told = Host::puts_up(&record, Some(60));
            assert!(told.len() == 1 && told[0].starts_with("not put up"), "{told:?}");
        }
        std::fs::remove_file(host.0.path().join("state-gate")).unwrap();
        assert!(Host::puts_up(&record, None).is_empty());
        assert!(record.last.exists());
        // One that is known to be on trial may be put up anew.
        assert!(Host::puts_up(&record, Some(60)).is_empty());
        let in_the_way = host.0.path().join("state-gate/trial.new");
        std::fs::create_dir(&in_the_way).unwrap();
        let told = Host::puts_up(&record, Some(60));
        assert!(told.len() == 1 && told[0].contains("does not know"), "{told:?}");
    }
}
