//! What processes have used: processor time, memory, bytes in files.

use crate::bench::volley::leave_that_processor;
use crate::command::finish;
use crate::lab::Host;
use crate::programs::program;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// All processes of a namespace, as they are now.
pub(super) struct Processes(Vec<u32>);

impl Processes {
    pub(super) fn of(host: &Host) -> Result<Self> {
        let said = finish(Command::new(program("ip")?).args(["netns", "pids", host.namespace()]))?;
        Ok(Self(said.ok()?.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()))
    }

    /// Processor time of all their threads, in user space and in the kernel. Timer ticks would be
    /// too coarse; the scheduler counts nanoseconds.
    pub(super) fn cpu(&self) -> Duration {
        let run = |task: PathBuf| {
            // One may have ended meanwhile.
            let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().and_then(|run| run.parse::<u64>().ok())
        };
        Duration::from_nanos(self.tasks().filter_map(run).sum())
    }

    /// Leaves a processor to the sender. What they start from now on leaves it, too.
    pub(super) fn leave_that_processor(&self) -> Result<()> {
        let number = |task: PathBuf| task.file_name()?.to_str()?.parse().ok();
        leave_that_processor(self.tasks().filter_map(number))
    }

    /// The directories of all their threads.
    fn tasks(&self) -> impl Iterator<Item = PathBuf> {
        let of_one = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task"));
        let tasks = self.0.iter().flat_map(of_one).flatten().flatten();
        tasks.map(|task| task.path())
    }

    /// Resident memory, KiB. What several processes of a program share, its own code above all, is counted
    /// once: as in the one that has most of it.
    pub(super) fn resident(&self) -> Result<u64> {
        let mut own = 0;
        let mut shared = 0;
        for pid in &self.0 {
            let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let kib = |name: &str| -> Result<u64> {
                let line = maps.lines().find_map(|line| line.strip_prefix(name));
                let kib = line.and_then(|line| line.split_whitespace().next());
                kib.map_or(Ok(0), str::parse).with_context(|| format!("{name} is no number"))
            };
            own += kib("Private_Clean:")? + kib("Private_Dirty:")?;
            shared = shared.max(kib("Shared_Clean:")? + kib("Shared_Dirty:")?);
        }
        Ok(own + shared)
    }
}

/// Bytes in these files, and in all files of those that are directories. Missing ones have none.
pub(super) fn bytes(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| bytes_of(path)).sum()
}

fn bytes_of(path: &Path) -> u64 {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| bytes_of(&entry.path())).sum()
        }
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}
