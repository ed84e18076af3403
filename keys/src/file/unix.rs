//! What key files need from a Unix system: flags, owners, modes.

use super::{Audience, Daemon, KeyFileError};
use nix::fcntl::OFlag;
use nix::unistd::{Uid, geteuid};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::Path;

const ROOT: u32 = 0;
/// What an access list lets others read has its mode show as the group's (acl(5)), as systemd's
/// credentials do.
const ROOT_S_GROUP: u32 = 0;

/// Follows no link, waits for no writer of a pipe, becomes the terminal of no process. (`std`
/// sets `O_CLOEXEC` itself.)
pub(super) fn open_options() -> OpenOptions {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits());
    options
}

pub(super) fn check_owner_and_mode(
    path: &Path,
    file: &Metadata,
    daemon: Option<Daemon>,
) -> Result<(), KeyFileError> {
    let may_read = daemon.is_some_and(|Daemon { group, .. }| {
        file.uid() == ROOT && (file.gid() == group || file.gid() == ROOT_S_GROUP)
    });
    let user = geteuid();
    // To root it is as good as his own.
    let is_its_own = daemon.is_some_and(|daemon| file.uid() == daemon.user) && user.is_root();
    judge(path, if is_its_own { ROOT } else { file.uid() }, file.mode(), may_read, user)
}

fn judge(
    path: &Path,
    owner: u32,
    mode: u32,
    group_may_read: bool,
    user: Uid,
) -> Result<(), KeyFileError> {
    let owner = Uid::from_raw(owner);
    if owner != user && !owner.is_root() {
        let (owner, user) = (owner.as_raw(), user.as_raw());
        return Err(KeyFileError::Owner { path: path.into(), owner, user });
    }
    let mode = mode & 0o7777;
    let for_others = if group_may_read { 0o037 } else { 0o077 };
    if mode & for_others != 0 {
        return Err(KeyFileError::Mode { path: path.into(), mode });
    }
    Ok(())
}

pub(super) fn type_name(file: &Metadata) -> &'static str {
    let found = file.file_type();
    if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_char_device() || found.is_block_device() {
        "a device"
    } else {
        "something else"
    }
}

/// Creates a file that was not there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Sets the mode, whatever the umask took away.
pub(super) fn set_audience(file: &File, audience: Audience) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(match audience {
        Audience::Owner => 0o600,
        Audience::Everybody => 0o644,
    }))
}

/// Makes the names in a directory last through a power failure.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_s_own_files_and_root_s_are_trusted() {
        let as_user =
            |user, owner, mode| judge(Path::new("a"), owner, mode, false, Uid::from_raw(user));
        for (user, owner) in [(0, 0), (1000, 1000), (1000, 0)] {
            assert!(as_user(user, owner, 0o100_600).is_ok());
            assert!(as_user(user, owner, 0o100_400).is_ok());
            let refused = as_user(user, owner, 0o100_640);
            assert!(matches!(refused, Err(KeyFileError::Mode { mode: 0o640, .. })));
        }
        for (user, owner) in [(0, 1000), (1000, 1001)] {
            let refused = as_user(user, owner, 0o100_600);
            assert!(matches!(refused, Err(KeyFileError::Owner { .. })));
        }
    }

    /// Tests run as root.
    #[test]
    fn the_group_that_was_named_reads_root_s_files_and_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let judged = |owner, group, mode, group_of_daemon: Option<u32>| {
            let daemon = group_of_daemon.map(|group| Daemon { user: 4710, group });
            std::os::unix::fs::chown(file.path(), Some(owner), Some(group)).unwrap();
            file.as_file().set_permissions(Permissions::from_mode(mode)).unwrap();
            check_owner_and_mode(file.path(), &file.as_file().metadata().unwrap(), daemon)
        };
        for group in [ROOT_S_GROUP, 4711] {
            judged(ROOT, group, 0o640, Some(4711)).unwrap();
            judged(ROOT, group, 0o440, Some(4711)).unwrap();
            for mode in [0o660, 0o650, 0o644, 0o604] {
                let refused = judged(ROOT, group, mode, Some(4711));
                assert!(matches!(refused, Err(KeyFileError::Mode { .. })), "{mode:o}");
            }
            assert!(judged(ROOT, group, 0o640, None).is_err());
        }
        assert!(judged(ROOT, 4712, 0o640, Some(4711)).is_err());
        assert!(judged(4711, 4711, 0o640, Some(4711)).is_err(), "not root's");
        judged(4710, 4711, 0o400, Some(4711)).unwrap();
        assert!(judged(4710, 4711, 0o440, Some(4711)).is_err(), "who else is in it?");
        assert!(judged(4710, 4711, 0o400, None).is_err());
    }
}
