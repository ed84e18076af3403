//! Writes configuration files so that nobody ever sees half of one.

use super::CommandError;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Writes a file that must not be there yet, mode 0600.
pub(super) fn create(path: &Path, text: &str) -> Result<(), CommandError> {
    write(path, text, 0o600, |temporary| fs::hard_link(temporary, path))
}

/// Puts `text` in the place of a file's content; its permissions stay.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), CommandError> {
    let failed = |source| CommandError::Write { path: path.into(), source };
    // What a link leads to is replaced, not the link.
    let path = &fs::canonicalize(path).map_err(failed)?;
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    write(path, text, mode & 0o7777, |temporary| fs::rename(temporary, path))
}

/// Makes a directory and those above it, unless they are there: this one with mode 0700.
pub(super) fn directory(path: &Path) -> Result<(), CommandError> {
    let failed = |source| CommandError::Write { path: path.into(), source };
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(failed)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(failed),
    }
}

fn write(
    path: &Path,
    text: &str,
    mode: u32,
    publish: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), CommandError> {
    let failed = |source| CommandError::Write { path: path.into(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Begins with a dot: no client's file.
    let temporary = Temporary(path.with_file_name(format!(".{name}.{}", std::process::id())));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary.0)
        .map_err(failed)?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| publish(&temporary.0))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all())
        .map_err(failed)
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after a rename.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_takes_nobodys_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.toml");
        create(&path, "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(create(&path, "two").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_replaced_keeps_its_mode_and_its_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.toml");
        assert!(replace(&path, "one").is_err());
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, "two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_is_made_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("etc/spa");
        directory(&path).unwrap();
        directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(directory(&file).is_err());
    }
}
