//! A cgroup of a test: whatever becomes of the test, all that runs in it ends. A guard kills it
//! when the test is gone, and after [`LIMIT`] in any case.

use crate::lab::{names, stale};
use crate::programs::program;
use crate::wait::DEADLINE;
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No test takes this long.
const LIMIT: Duration = Duration::from_secs(600);
/// Waits for the end of its standard input, which is that of the test, and kills the cgroup.
const GUARD: &str = r#"timeout "$1" cat >/dev/null; echo 1 >"$0/cgroup.kill""#;
/// Goes into the cgroup, and becomes the program that follows.
const ENTER: &str = r#"echo $$ >"$0/cgroup.procs"; exec "$@""#;

/// See the module's text. It goes with the value.
pub(crate) struct Cgroup {
    path: PathBuf,
    guard: Child,
}

impl Cgroup {
    /// Makes one of this name, which is to begin like those of the lab.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = cgroups()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let guard = Command::new(program("sh")?)
            .args(["-c", GUARD])
            .arg(&path)
            .arg(LIMIT.as_secs().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A Ctrl-C is not for the guard.
            .process_group(0)
            .spawn()?;
        Ok(Self { path, guard })
    }

    /// A command that runs in it; its arguments are to be added.
    pub(crate) fn command(&self, program_path: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program("sh")?);
        command.args(["-eu", "-c", ENTER]).arg(&self.path).arg(program_path).process_group(0);
        Ok(command)
    }

    /// Where it is.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends all that runs in it.
    pub(crate) fn end(&mut self) {
        // The guard, whose input ends, kills what is left of the cgroup.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }

    /// As it happens when the process of the test is killed.
    #[cfg(test)]
    pub(crate) fn abandon(&mut self) {
        drop(self.guard.stdin.take());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.end();
        remove(&self.path);
    }
}

/// Where the cgroups (version 2) are mounted.
fn cgroups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| path.into())
    });
    found.context("the tests need cgroups of version 2, and none are mounted here")
}

/// Removes the cgroups that killed tests have left behind.
pub(crate) fn sweep() {
    let Ok(cgroups) = cgroups() else { return };
    for name in names(&cgroups).filter(|name| stale(name)) {
        remove(&cgroups.join(name));
    }
}

/// Ends the processes in the cgroup, and removes it. A clean-up has nobody to report to.
fn remove(cgroup: &Path) {
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let start = Instant::now();
    while cgroup.exists() && start.elapsed() < DEADLINE {
        remove_directories(cgroup);
        sleep(Duration::from_millis(5));
    }
}

/// The files in a cgroup's directory are none: it goes as soon as it has no process and no child.
fn remove_directories(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directories(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}
