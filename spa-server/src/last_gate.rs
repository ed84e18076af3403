//! The last gate that was put up for good, as a file in the state directory remembers it: for the
//! boot at which the configuration can't be used.
//!
//! A gate on trial is never remembered, and one that was taken away is forgotten. So the file also
//! tells whether there is to be a gate before there is a daemon.

use crate::causes::with_causes;
use crate::config::{GateSettings, Problem, judge_state_directory, read_state};
use crate::gate::{Backend, Plan, ToolOverrides};
use crate::state_file::{StateFile, StateFileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILE: &str = "last-gate";

/// What it takes to put it up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LastGate {
    backend: Backend,
    tools: ToolOverrides,
    plan: Plan,
}

/// Why there is none to put up again.
#[derive(Debug, thiserror::Error)]
pub enum LastGateError {
    /// No gate has been put up for good, or it was removed.
    #[error("no gate is remembered in {}", .0.display())]
    None(PathBuf),
    /// It can't be read, or others could have written it.
    #[error("what is remembered of the last gate can't be used")]
    Unusable(#[from] Problem),
    /// It was read, and is no gate for good.
    #[error("{} is damaged; the next start of the daemon writes it anew", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing, if it is of a gate on trial.
        source: Option<serde_json::Error>,
    },
}

/// The file of one server.
#[derive(Debug, Clone)]
pub struct LastGateFile(StateFile);

impl LastGate {
    /// How the back-end is to be chosen. Hook commands are not remembered: they hide nothing, and
    /// only the daemon closes what they open.
    pub fn settings(&self) -> GateSettings {
        let Self { backend, tools, plan } = self;
        GateSettings {
            mode: plan.mode,
            refuse: plan.refusal,
            backend: *backend,
            always_admit: plan.always_admit.clone(),
            tools: tools.clone(),
            hook: None,
        }
    }

    /// What it guards.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl LastGateFile {
    /// The file in this state directory.
    pub fn new(state_directory: &Path) -> Self {
        Self(StateFile::new(state_directory, FILE))
    }

    /// Whether a gate was put up for good, and has not been removed since.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// A gate stands by this plan; it is remembered, if it stands for good. Says what an
    /// administrator should know if it can't be: it stands all the same.
    pub fn stands(&self, settings: &GateSettings, plan: &Plan) -> Option<String> {
        // A dry run changes nothing, what stands beside it included.
        if plan.trial_seconds.is_some() || settings.backend == Backend::DryRun {
            return None;
        }
        let GateSettings { backend, ref tools, .. } = *settings;
        let gate = LastGate { backend, tools: tools.clone(), plan: plan.clone() };
        self.0.write_json(&gate).err().map(|error| {
            let why = with_causes(&error);
            format!("a boot at which the configuration is wrong does not know of this gate: {why}")
        })
    }

    /// It was taken away.
    pub fn forget(&self) -> Result<(), StateFileError> {
        self.0.remove()
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// There is none, it can't be trusted, or it makes no sense.
    pub fn read(&self) -> Result<LastGate, LastGateError> {
        let path = self.0.path();
        if !self.exists() {
            return Err(LastGateError::None(path));
        }
        if let Some(directory) = path.parent() {
            judge_state_directory(directory)?;
        }
        let text = read_state(&path)?;
        match serde_json::from_str::<LastGate>(text.trim_end()) {
            Ok(gate) if gate.plan.trial_seconds.is_none() => Ok(gate),
            Ok(_) => Err(LastGateError::Damaged { path, source: None }),
            Err(error) => Err(LastGateError::Damaged { path, source: Some(error) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Guarded, Mode, Refusal};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn settings(backend: Backend) -> GateSettings {
        let nft = Some("/opt/nft".into());
        GateSettings {
            mode: Mode::Guard,
            refuse: Refusal::Reject,
            backend,
            always_admit: vec!["192.0.2.7/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            tools: ToolOverrides { nft, ..ToolOverrides::default() },
            hook: None,
        }
    }

    fn plan() -> Plan {
        Plan {
            mode: Mode::Guard,
            refusal: Refusal::Reject,
            guarded: ["tcp/22", "udp/10000-10100"]
                .map(|ports| Guarded::plain(ports.parse().unwrap()))
                .to_vec(),
            knock_ports: vec![62201],
            always_admit: settings(Backend::Auto).always_admit,
            max_elements: 100,
            trial_seconds: None,
        }
    }

    fn file() -> (tempfile::TempDir, LastGateFile) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        let file = LastGateFile::new(directory.path());
        (directory, file)
    }

    #[test]
    fn what_stands_for_good_is_remembered_and_what_is_removed_forgotten() {
        let (_directory, file) = file();
        assert!(!file.exists() && matches!(file.read(), Err(LastGateError::None(_))));
        for backend in [Backend::Auto, Backend::Nftables] {
            assert_eq!(file.stands(&settings(backend), &plan()), None);
            let gate = file.read().unwrap();
            assert_eq!((gate.settings(), gate.plan()), (settings(backend), &plan()));
        }
        file.forget().unwrap();
        file.forget().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn neither_a_trial_nor_a_dry_run_is_remembered() {
        let (_directory, file) = file();
        let trial = Plan { trial_seconds: Some(60), ..plan() };
        for (settings, plan) in
            [(settings(Backend::Auto), trial), (settings(Backend::DryRun), plan())]
        {
            assert_eq!(file.stands(&settings, &plan), None);
            assert!(!file.exists());
        }
    }

    #[test]
    fn what_makes_no_sense_is_damaged_and_nothing_is_put_up_by_it() {
        let (directory, file) = file();
        let path = directory.path().join(FILE);
        file.stands(&settings(Backend::Auto), &plan());
        let whole = fs::read_to_string(&path).unwrap();
        let on_trial = whole.replace("\"trial-seconds\":null", "\"trial-seconds\":60");
        let unknown = whole.replacen('{', "{\"more\":1,", 1);
        assert!(on_trial != whole && unknown != whole);
        let half = &whole[..whole.len() / 2];
        for text in ["", "null", half, &on_trial, &unknown] {
            fs::write(&path, text).unwrap();
            let read = file.read();
            assert!(matches!(read, Err(LastGateError::Damaged { .. })), "{text}: {read:?}");
            assert!(file.exists());
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(file.read(), Err(LastGateError::Unusable(_))));
    }

    #[test]
    fn what_others_could_have_written_is_not_trusted() {
        let (directory, file) = file();
        file.stands(&settings(Backend::Auto), &plan());
        file.read().unwrap();
        for (path, mode) in [(directory.path(), 0o700), (&directory.path().join(FILE), 0o600)] {
            fs::set_permissions(path, Permissions::from_mode(mode | 0o022)).unwrap();
            let error = with_causes(&file.read().unwrap_err());
            assert!(error.contains("chmod go-w"), "{error}");
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            file.read().unwrap();
        }
    }

    #[test]
    fn a_gate_that_can_not_be_remembered_is_told() {
        let (directory, file) = file();
        fs::create_dir(directory.path().join(FILE)).unwrap();
        let told = file.stands(&settings(Backend::Auto), &plan()).unwrap();
        assert!(told.contains(FILE), "{told}");
    }
}
