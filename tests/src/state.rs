//! A disk that a test can fill: a small tmpfs that only one mount namespace sees.

use crate::command::finish;
use crate::lab::Host;
use crate::programs::program;
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// See the module's text. It goes with the value.
pub struct TinyDisk {
    directory: PathBuf,
    /// Keeps the mount namespace.
    keeper: Child,
}

impl TinyDisk {
    /// Mounts a tmpfs of so many KiB on `directory`.
    pub(crate) fn mount(directory: &Path, kib: u32) -> Result<Self> {
        let mut keeper = Command::new(program("unshare")?)
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(format!("mount -t tmpfs -o size={kib}k,mode=0700 tiny \"$0\" && exec sleep 3600"))
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mounts = format!("/proc/{}/mounts", keeper.id());
        let mounted = format!("tiny {} tmpfs", directory.display());
        eventually("the tiny disk is to be mounted", || {
            if let Some(status) = keeper.try_wait()? {
                bail!("no tmpfs can be mounted here ({status})");
            }
            Ok(fs::read_to_string(&mounts)?.contains(&mounted).then_some(()))
        })?;
        Ok(Self { directory: directory.to_owned(), keeper })
    }

    /// Where a path of the mount namespace is found from outside.
    pub fn path_of(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Writes until nothing more fits.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(self.filler())?;
        for size in [4096, 1] {
            let block = vec![0x5a; size];
            while file.write_all(&block).is_ok() {}
        }
        ensure!(
            fs::write(self.path_of(&self.directory.join("one-more")), "x").is_err(),
            "the disk is not full"
        );
        Ok(())
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("the disk was not filled")
    }

    /// Mounts it read-only, or writable again. Nobody may have a file of it open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let mut command = Command::new(program("nsenter")?);
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command.arg(program("mount")?).arg("-o");
        command.arg(if read_only { "remount,ro" } else { "remount,rw" }).arg(&self.directory);
        finish(&mut command)?.ok().map(|_| ())
    }

    fn filler(&self) -> PathBuf {
        self.path_of(&self.directory.join("filler"))
    }

    /// A command that sees the disk, in the network namespace of `host`.
    pub(crate) fn command(&self, host: &Host, program_path: PathBuf) -> Result<Command> {
        let inner = host.command(program_path)?;
        let mut command = Command::new(program("nsenter")?);
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command.arg(inner.get_program()).args(inner.get_args());
        Ok(command)
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn a_full_disk_is_full_and_can_be_freed() {
        let lab = Lab::new().unwrap();
        let directory = lab.directory().join("disk");
        fs::create_dir(&directory).unwrap();
        let disk = TinyDisk::mount(&directory, 64).unwrap();
        let write = || {
            let mut command = disk.command(lab.server(), "/bin/sh".into()).unwrap();
            command.args(["-c", "echo hello > \"$0/file\""]).arg(&directory);
            finish(&mut command).unwrap()
        };
        disk.fill().unwrap();
        assert!(!write().success());
        disk.free().unwrap();
        assert!(write().success());
        disk.set_read_only(true).unwrap();
        assert!(!write().success());
        disk.set_read_only(false).unwrap();
        assert!(write().success());
        assert!(disk.path_of(&directory.join("file")).exists());
        assert!(!directory.join("file").exists(), "only its own mount namespace sees it");
    }
}
