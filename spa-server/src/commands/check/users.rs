//! What the users that the units run the daemon as need of its files.

use super::Findings;
use crate::commands::hand_over::CREDENTIALS;
use crate::config::{STATE_DIRECTORY, Settings, secret_files};
use crate::gate::Backend;
use crate::users::Users;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Is there where systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// Where both users get in.
const USUAL: &str = "/etc/spa";
/// The worker's unit, to which systemd may hand over what it reads.
const UNIT: &str = "spa-server.service";

/// What the users that the units run the daemon as can't do, and root, who runs this, can.
pub(super) fn look_at(config: &Path, settings: &Settings, findings: &mut Findings) {
    let check = "users";
    let Some(users) = Users::of_this_host().filter(|_| Path::new(SYSTEMD).exists()) else { return };
    let (own, clients) = (config.parent().unwrap_or(Path::new("/")), &settings.clients_directory);
    let previous = settings.previous_key.iter().map(|previous| &previous.private_key_file);
    let keys = [&settings.private_key_file].into_iter().chain(previous).cloned();
    let files = keys.chain(secret_files(config)).chain([config.into(), clients.clone()]);
    let handed_over = Path::new(CREDENTIALS).join(UNIT);
    let is_handed_over = |file: &Path| {
        file.starts_with(&handed_over)
            || file == config && file.file_name().is_some_and(|it| handed_over.join(it).exists())
    };
    let mut is_well = true;
    for file in files.filter(|file| !is_handed_over(file)) {
        let barred = users.worker.is_barred_by(&file, &[users.helper.group], &[own, clients]);
        if let Some(directory) = barred {
            is_well = false;
            findings.error(
                check,
                format!(
                    "the daemon runs as the user spa, who does not get into {}, to {}; move the file to {}",
                    directory.display(),
                    file.display(),
                    if file.starts_with(own) { Path::new(USUAL) } else { own }.display()
                ),
            );
        }
    }
    let state = &settings.state_directory;
    let owner = fs::metadata(state).map(|metadata| metadata.uid());
    // That one its unit gives it.
    if state != Path::new(STATE_DIRECTORY) && owner.is_ok_and(|it| it != users.worker.user.as_raw())
    {
        is_well = false;
        let state = state.display();
        findings.error(
            check,
            format!(
                "the daemon runs as the user spa, who can't write {state}; chown -R spa:spa {state}"
            ),
        );
    }
    for (directory, account) in [(state, users.worker), (&settings.gate_directory(), users.helper)]
    {
        // What is root's, all of it, its unit gives away at its next start.
        let owner = fs::metadata(directory).map(|it| it.uid());
        if owner.is_ok_and(|it| it == account.user.as_raw())
            && let Some(path) = somebody_else_s(directory, account.user.as_raw())
        {
            is_well = false;
            let (path, directory) = (path.display(), directory.display());
            findings.error(
                check,
                format!("{path} is not the daemon's; chown -R --reference={directory} {directory}"),
            );
        }
    }
    if settings.gate.backend == Backend::Hook {
        findings.warning(
            check,
            "hook commands run as the user spa-gate; for one that has to be root: systemctl edit spa-helper@.service spa-gate, with User=root below [Service]",
        );
    }
    if is_well {
        findings.ok(check, "spa and spa-gate get to their files");
    }
}

/// A file in this directory that another user has, as a backup that root has put back.
fn somebody_else_s(directory: &Path, user: u32) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let mut others = entries.filter(|entry| entry.metadata().is_ok_and(|it| it.uid() != user));
    others.next().map(|entry| entry.path())
}
