//! Reads configuration files, and refuses those that somebody else could have written.

use super::error::{Fault, Problem};
use crate::users::is_trusted_with_state;
use nix::fcntl::OFlag;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The longest file that is read, in bytes.
const MAX_LENGTH: u64 = 1024 * 1024;

/// Reads a file that belongs to root or to this user and that nobody else can write. It is judged
/// by what was opened; a link that leads to it is followed.
pub(crate) fn read(path: &Path) -> Result<String, Problem> {
    read_opened(path, judge).map_err(|fault| Problem { path: path.into(), fault })
}

/// The same for what the daemon keeps, which may belong to its users.
pub(crate) fn read_state(path: &Path) -> Result<String, Problem> {
    read_opened(path, judge_state).map_err(|fault| Problem { path: path.into(), fault })
}

fn read_opened(
    path: &Path,
    judge: fn(&Path, &Metadata) -> Result<(), Fault>,
) -> Result<String, Fault> {
    let file = open(path, OFlag::O_NONBLOCK)?;
    let metadata = file.metadata().map_err(Fault::Io)?;
    if !metadata.is_file() {
        return Err(Fault::NotAFile);
    }
    judge(path, &metadata)?;
    text_of(file)
}

/// Reads a file whoever can write it: for what gives nobody anything.
pub(super) fn read_unjudged(path: &Path) -> Result<String, Fault> {
    let file = open(path, OFlag::O_NONBLOCK)?;
    if file.metadata().map_err(Fault::Io)?.is_file() { text_of(file) } else { Err(Fault::NotAFile) }
}

fn text_of(file: File) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH.saturating_add(1)).read_to_end(&mut bytes).map_err(Fault::Io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_LENGTH {
        return Err(Fault::TooLong { max: MAX_LENGTH });
    }
    String::from_utf8(bytes).map_err(|_| Fault::NotText)
}

/// Refuses a directory in which somebody else could put files.
pub(crate) fn judge_directory(path: &Path) -> Result<(), Problem> {
    open(path, OFlag::O_DIRECTORY)
        .and_then(|directory| directory.metadata().map_err(Fault::Io))
        .and_then(|metadata| judge(path, &metadata))
        .map_err(|fault| Problem { path: path.into(), fault })
}

/// The same for a directory in which the daemon keeps what it knows: it may belong to its users.
pub(crate) fn judge_state_directory(path: &Path) -> Result<(), Problem> {
    open(path, OFlag::O_DIRECTORY)
        .and_then(|directory| directory.metadata().map_err(Fault::Io))
        .and_then(|metadata| judge_state(path, &metadata))
        .map_err(|fault| Problem { path: path.into(), fault })
}

/// Refuses a program that is none, or that somebody else could have written: it runs as root.
pub(crate) fn judge_program(path: &Path) -> Result<(), Problem> {
    let judged = open(path, OFlag::O_NONBLOCK).and_then(|file| {
        let metadata = file.metadata().map_err(Fault::Io)?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            return Err(Fault::NotAProgram);
        }
        judge(path, &metadata)
    });
    judged.map_err(|fault| {
        let fault = if matches!(fault, Fault::Missing) { Fault::NotAProgram } else { fault };
        Problem { path: path.into(), fault }
    })?;
    // Links are followed: it counts where the file is.
    let place = path.canonicalize().unwrap_or_else(|_| path.into());
    place.parent().map_or(Ok(()), judge_directory)
}

fn open(path: &Path, flags: OFlag) -> Result<File, Fault> {
    let flags = (flags | OFlag::O_NOCTTY).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => Fault::Missing,
            io::ErrorKind::PermissionDenied => Fault::Denied,
            _ => Fault::Io(error),
        }
    })
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), Fault> {
    let user = nix::unistd::geteuid().as_raw();
    let owner = metadata.uid();
    if owner != 0 && owner != user {
        return Err(Fault::Owner { path: path.into(), owner, user });
    }
    judge_mode(path, metadata)
}

fn judge_state(path: &Path, metadata: &Metadata) -> Result<(), Fault> {
    if is_trusted_with_state(metadata.uid()) {
        judge_mode(path, metadata)
    } else {
        judge(path, metadata)
    }
}

fn judge_mode(path: &Path, metadata: &Metadata) -> Result<(), Fault> {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Fault::Mode { path: path.into(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn error(path: &Path) -> String {
        let directory = path.parent().unwrap();
        let error = read(path).unwrap_err().to_string();
        error.replace(&*directory.to_string_lossy(), "DIR")
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        fs::write(&path, "x = 1").unwrap();
        for mode in [0o600, 0o644, 0o444, 0o755] {
            set_mode(&path, mode);
            assert_eq!(read(&path).unwrap(), "x = 1");
        }
        for mode in [0o664, 0o646, 0o620, 0o666] {
            set_mode(&path, mode);
            assert_eq!(
                error(&path),
                format!(
                    "DIR/server.toml: others than its owner can write it (mode {mode:04o}), and so \
                    let themselves in; look through it, then: chmod go-w DIR/server.toml"
                )
            );
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        fs::write(&path, "x = 1").unwrap();
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        assert_eq!(
            error(&path),
            "DIR/server.toml: belongs to user id 4711, who could let anybody in; look through it, \
            then: chown 0 DIR/server.toml"
        );
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        judge_directory(directory.path()).unwrap();
        set_mode(directory.path(), 0o775);
        let error = judge_directory(directory.path()).unwrap_err().to_string();
        assert!(error.contains("(mode 0775)") && error.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn a_program_that_others_could_have_written_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        let path = directory.path().join("open-port");
        let refused = |message: &str| {
            let error = judge_program(&path).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused("open-port: is no program; ");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        set_mode(&path, 0o644);
        refused("is no program; ");
        set_mode(&path, 0o755);
        judge_program(&path).unwrap();
        set_mode(&path, 0o775);
        refused("chmod go-w");
        set_mode(&path, 0o700);
        set_mode(directory.path(), 0o777);
        refused("chmod go-w");
        set_mode(directory.path(), 0o755);
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        refused("belongs to user id 4711");
        judge_program(Path::new("/bin/sh")).unwrap();
        assert!(judge_program(Path::new("/dev/null")).is_err());
        assert!(judge_program(directory.path()).is_err());
    }

    #[test]
    fn what_is_no_readable_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        assert_eq!(
            error(&path),
            "DIR/server.toml: there is no such file; `spa-server init` writes a configuration"
        );
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(error(&path), "DIR/server.toml: is no regular file");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(error(&path), "DIR/server.toml: is no regular file");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, b"caf\xe9").unwrap();
        assert_eq!(error(&path), "DIR/server.toml: is not UTF-8 text");
        let most = usize::try_from(MAX_LENGTH).unwrap();
        fs::write(&path, "#".repeat(most)).unwrap();
        assert_eq!(read(&path).unwrap().len(), most);
        fs::write(&path, "#".repeat(most + 1)).unwrap();
        assert_eq!(error(&path), "DIR/server.toml: is longer than 1048576 bytes");
    }
}
