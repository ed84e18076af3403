//! `spa-server hand-over`: what root has written of the configuration becomes readable for the users that
//! the daemon runs as, and for nobody else.

use super::{CommandError, Done};
use crate::config::{Settings, client_files, secret_files};
use crate::users::{Users, placed_by_root};
use nix::fcntl::OFlag;
use nix::unistd::{Gid, fchown, geteuid};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What the legacy variant of iptables locks; it has to be there to be let through.
const XTABLES_LOCK: &str = "/run/xtables.lock";
/// What systemd has handed over itself (`LoadCredential=`), and nobody can change.
pub(super) const CREDENTIALS: &str = "/run/credentials";
/// How files end that hold secrets of clients.
const SECRETS: [&str; 2] = ["psk", "invitation"];

/// A group, and what it is to read.
#[derive(Debug, Clone, Copy)]
struct Reader {
    group: Gid,
    /// As in a mode, for others.
    right: u32,
}

pub(crate) fn run(config: &Path) -> Done {
    let Some(users) = Users::of_this_host() else {
        return Err(CommandError::Failed(
            "this host has not the users spa and spa-gate, so the daemon runs as root and needs none of this; systemd-sysusers makes them where packaging/sysusers.conf is installed".into(),
        ));
    };
    let failures = hand_over(config, Path::new(XTABLES_LOCK), &users);
    if failures.is_empty() {
        return Ok(());
    }
    Err(CommandError::Failed(failures.join("\n")))
}

/// The same before the daemon is told to read anew. What can't be done is told; the daemon then says what
/// it can't read.
pub(super) fn before_it_reads(config: &Path) {
    let Some(users) = Users::of_this_host().filter(|_| geteuid().is_root()) else { return };
    // Another daemon may have been started by hand.
    let socket = std::fs::metadata(Settings::control_socket_of(config));
    if socket.is_ok_and(|socket| socket.uid() == users.worker.user.as_raw()) {
        for failure in hand_over(config, Path::new(XTABLES_LOCK), &users) {
            eprintln!("warning: {failure}");
        }
    }
}

fn hand_over(config: &Path, lock: &Path, users: &Users) -> Vec<String> {
    let directory = |group| Reader { group, right: 0o5 };
    let file = |group| Reader { group, right: 0o4 };
    let (all, keys) = (users.helper.group, users.worker.group);
    let clients = Settings::clients_directory_of(config);
    let mut to_lend: Vec<(PathBuf, Reader)> = Vec::new();
    to_lend.extend(config.parent().map(|parent| (parent.into(), directory(all))));
    to_lend.push((config.into(), file(all)));
    to_lend.push((clients.clone(), directory(all)));
    to_lend
        .extend(client_files(config).unwrap_or_default().into_iter().map(|path| (path, file(all))));
    // Those of a file that makes no sense as well.
    let secrets = secrets_in(&clients).into_iter().chain(secret_files(config));
    to_lend.extend(secrets.map(|path| (path, file(keys))));
    if let Ok(settings) = Settings::load(config) {
        let previous = settings.previous_key.map(|previous| previous.private_key_file);
        let own = [settings.private_key_file].into_iter().chain(previous);
        to_lend.extend(own.map(|path| (path, file(keys))));
    }
    // What systemd hands over it gives to whom it is for.
    to_lend.retain(|(path, _)| !path.starts_with(CREDENTIALS));
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock);
    let lent = made.and_then(|_| lend(lock, file(all)));
    let failed = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(format!("{} can't be handed over: {error}", path.display()))
        }
        _ => None,
    };
    let others = to_lend.iter().filter_map(|(path, reader)| failed(path, lend(path, *reader)));
    failed(lock, lent).into_iter().chain(others).collect()
}

fn secrets_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| SECRETS.contains(&extension))
        })
        .collect()
}

/// Gives a group a right to what is root's, if it has it not already.
fn lend(path: &Path, Reader { group, right }: Reader) -> io::Result<()> {
    // What is not there needs nothing.
    std::fs::symlink_metadata(path)?;
    let path = placed_by_root(path).map_err(io::Error::other)?;
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = opened.metadata()?;
    let mode = metadata.mode() & 0o7777;
    let is_ours = metadata.gid() == group.as_raw();
    let has = mode & right == right || is_ours && (mode >> 3) & right == right;
    // What is somebody else's, or no file, is for whoever reads it to judge.
    if has || metadata.uid() != 0 || !(metadata.is_file() || metadata.is_dir()) {
        return Ok(());
    }
    if metadata.is_file() && metadata.nlink() > 1 {
        return Err(io::Error::other("it has another name elsewhere"));
    }
    let only_owner = mode & !0o070;
    if !is_ours {
        // Before it is another group's, nothing is that group's.
        set_mode(&opened, only_owner)?;
        fchown(&opened, None, Some(group))?;
    }
    set_mode(&opened, only_owner | right << 3)
}

fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::{Account, NotRoots};
    use nix::unistd::Uid;
    use std::fs;

    const USERS: Users = Users {
        worker: Account { user: Uid::from_raw(4711), group: Gid::from_raw(4711) },
        helper: Account { user: Uid::from_raw(4712), group: Gid::from_raw(4712) },
    };

    fn of(path: &Path) -> (u32, u32) {
        let metadata = fs::metadata(path).unwrap();
        (metadata.gid(), metadata.mode() & 0o7777)
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Tests run as root.
    #[test]
    fn keys_are_the_worker_s_to_read_and_all_else_both_s() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(path("clients.d")).unwrap();
        fs::set_permissions(path("clients.d"), Permissions::from_mode(0o700)).unwrap();
        let server = format!(
            "knock-ports = [62201]\nprevious-private-key-file = {:?}\nprevious-key-until = 2027-01-31T18:00:00Z\n[services.ssh]\nports = [\"tcp/22\"]\n",
            path("old.key")
        );
        let files = [
            ("server.toml", 0o600, 4712),
            ("clients.d/a.toml", 0o600, 4712),
            ("server.key", 0o600, 4711),
            ("old.key", 0o600, 4711),
            ("clients.d/a-1.psk", 0o600, 4711),
            ("clients.d/a.invitation", 0o400, 4711),
            ("elsewhere/b", 0o600, 4711),
            // Not ours, or for all to read.
            ("notes", 0o600, 0),
            ("clients.d/b.toml", 0o644, 0),
        ];
        let client = format!("pre-shared-key-file = {:?}\n", path("elsewhere/b"));
        fs::create_dir(path("elsewhere")).unwrap();
        for (name, mode, _) in files {
            let text = match name {
                "server.toml" => &server,
                "clients.d/b.toml" => &client,
                _ => "",
            };
            write(&path(name), text, mode);
        }
        for _ in 0..2 {
            assert!(hand_over(&path("server.toml"), &path("lock"), &USERS).is_empty());
            for (name, mode, group) in files {
                let mode = if group == 0 { mode } else { mode | 0o040 };
                assert_eq!(of(&path(name)), (group, mode), "{name}");
            }
            for directory in [directory.path(), &path("clients.d")] {
                assert_eq!(of(directory), (4712, 0o750));
            }
            assert_eq!(of(&path("lock")), (4712, 0o640));
        }
    }

    #[test]
    fn what_others_could_have_put_there_is_lent_to_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (secret, reader) = (path("secret"), Reader { group: Gid::from_raw(4711), right: 0o4 });
        write(&secret, "", 0o600);
        fs::create_dir(path("theirs")).unwrap();
        std::os::unix::fs::chown(path("theirs"), Some(4711), None).unwrap();
        std::os::unix::fs::symlink(&secret, path("theirs/link")).unwrap();
        std::os::unix::fs::symlink(path("theirs/link"), path("link")).unwrap();
        fs::hard_link(&secret, path("theirs/name")).unwrap();
        for name in ["theirs/link", "theirs/name", "secret"] {
            lend(&path(name), reader).unwrap_err();
        }
        // Whoever wonders why is told where to look.
        let whose = placed_by_root(&path("link")).unwrap_err();
        assert_eq!(whose, NotRoots(path("theirs")));
        fs::remove_file(path("theirs/name")).unwrap();
        fs::rename(&secret, path("theirs/secret")).unwrap();
        lend(&path("theirs/secret"), reader).unwrap_err();
        // The control: root's own link to root's own file.
        fs::rename(path("theirs/secret"), &secret).unwrap();
        fs::remove_file(path("link")).unwrap();
        std::os::unix::fs::symlink(&secret, path("link")).unwrap();
        assert_eq!(of(&secret), (0, 0o600));
        lend(&path("link"), reader).unwrap();
        assert_eq!(of(&secret), (4711, 0o640));
        // And a directory of root's by a link of root's.
        fs::create_dir(path("own")).unwrap();
        write(&path("own/file"), "", 0o600);
        std::os::unix::fs::symlink("own", path("by-link")).unwrap();
        lend(&path("by-link/file"), reader).unwrap();
        assert_eq!(of(&path("own/file")), (4711, 0o640));
        write(&path("own/file"), "", 0o600);
        std::os::unix::fs::lchown(path("by-link"), Some(4711), None).unwrap();
        lend(&path("by-link/file"), reader).unwrap_err();
        std::os::unix::fs::symlink("circle", path("circle")).unwrap();
        lend(&path("circle"), reader).unwrap_err();
        assert_eq!(lend(&path("none"), reader).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn another_group_loses_what_it_had_and_others_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        write(&path, "nonsense", 0o660);
        std::os::unix::fs::chown(&path, None, Some(4713)).unwrap();
        assert!(hand_over(&path, &directory.path().join("lock"), &USERS).is_empty());
        assert_eq!(of(&path), (4712, 0o640));
        write(&path, "", 0o600);
        std::os::unix::fs::chown(&path, Some(4713), Some(4713)).unwrap();
        assert!(hand_over(&path, &directory.path().join("lock"), &USERS).is_empty());
        assert_eq!(of(&path), (4713, 0o600), "the daemon says whose it is");
    }
}
