//! A small file in the state directory: written all at once or not at all, for nobody else to
//! read, and kept over a power failure. It knows nothing of what the file says.

use crate::large_list::with_room_for;
use crate::users::give_to_owner_of;
use nix::fcntl::OFlag;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A longer one is not ours.
const MAX_BYTES: usize = 1024 * 1024;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct StateFile {
    directory: PathBuf,
    name: &'static str,
}

/// Why a file could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}; is the disk full, or mounted read-only?", .path.display())]
pub struct StateFileError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateFile {
    /// The file of that name in this state directory.
    pub fn new(state_directory: &Path, name: &'static str) -> Self {
        Self { directory: state_directory.into(), name }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    /// Whether there is anything of that name.
    pub fn exists(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok()
    }

    /// What it says; `None` if it isn't there. Never through a link, and never waiting for a
    /// writer of a pipe.
    pub fn read(&self) -> io::Result<Option<String>> {
        let bytes = self.read_bytes(MAX_BYTES)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The same of a file that is no text, and may have so many bytes.
    pub fn read_bytes(&self, most: usize) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(self.path());
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        // One more, to find the end.
        let length = usize::try_from(metadata.len()).unwrap_or(most).min(most).saturating_add(1);
        let mut bytes = with_room_for(length);
        file.take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Has it say this; a power failure changes nothing of it.
    pub fn write(&self, text: &str) -> Result<(), StateFileError> {
        self.put(text.as_bytes(), File::sync_all)?;
        self.sync()
    }

    /// Has it say this, in one step, but without waiting for the disk: for what a power failure may
    /// damage, since whoever reads it sees that.
    pub fn replace(&self, bytes: &[u8]) -> Result<(), StateFileError> {
        self.put(bytes, |_| Ok(()))
    }

    fn put(
        &self,
        bytes: &[u8],
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), StateFileError> {
        let (path, new) = (self.path(), self.directory.join(format!("{}.new", self.name)));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &new)(error));
            }
            _ => {}
        }
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&new)
            .and_then(|mut file| {
                give_to_owner_of(&self.directory, &file)?;
                file.write_all(bytes).and_then(|()| sync(&file))
            });
        written.map_err(at("write", &new))?;
        fs::rename(&new, &path).map_err(at("replace", &path))
    }

    /// Has it say this, as a line of JSON.
    pub fn write_json(&self, value: &impl Serialize) -> Result<(), StateFileError> {
        self.write(&(self.json(value)? + "\n"))
    }

    /// Has it say this, as a line of JSON, but without waiting for the disk.
    pub fn replace_json(&self, value: &impl Serialize) -> Result<(), StateFileError> {
        self.replace((self.json(value)? + "\n").as_bytes())
    }

    fn json(&self, value: &impl Serialize) -> Result<String, StateFileError> {
        serde_json::to_string(value).map_err(|error| at("write", &self.path())(error.into()))
    }

    /// Has it be gone.
    pub fn remove(&self) -> Result<(), StateFileError> {
        // A file system that can't be written refuses even to remove what isn't there.
        if !self.exists() {
            return Ok(());
        }
        let path = self.path();
        fs::remove_file(&path).map_err(at("remove", &path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), StateFileError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(at("sync", &self.directory))
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    let path = path.to_path_buf();
    move |source| StateFileError { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_says_what_was_written_last_and_is_for_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path(), "it");
        assert_eq!(file.read().unwrap(), None);
        file.remove().unwrap();
        // A leftover of a crash.
        fs::write(directory.path().join("it.new"), "half").unwrap();
        for text in ["one", "two"] {
            file.write(text).unwrap();
            assert_eq!(file.read().unwrap().as_deref(), Some(text));
        }
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        file.remove().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path(), "it");
        fs::write(directory.path().join("other"), "text").unwrap();
        std::os::unix::fs::symlink("other", file.path()).unwrap();
        assert!(file.exists() && file.read().is_err());
        fs::remove_file(file.path()).unwrap();
        nix::unistd::mkfifo(&file.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(file.read().is_err());
        fs::remove_file(file.path()).unwrap();
        fs::create_dir(file.path()).unwrap();
        assert!(file.read().is_err());
        let error = file.remove().unwrap_err().to_string();
        assert!(error.starts_with("cannot remove"), "{error}");
    }

    #[test]
    fn a_file_that_can_not_be_written_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(&directory.path().join("gone"), "it");
        let error = file.write("text").unwrap_err().to_string();
        assert!(error.starts_with("cannot write"), "{error}");
        file.remove().unwrap();
    }
}
