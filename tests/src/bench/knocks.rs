//! How many valid knocks whole programs turn into grants: ours and those of others, one after the
//! other in the same kind of place.

use super::contenders::{self, Contender, Link};
use super::elements::to_f64;
use super::figures::Figure;
use super::results::{Execs, Outcome, ProgramFigures, ProgramResults, Saturated};
use super::sources::{Pool, source};
use super::station::new_host;
use super::{Extent, with_causes};
use crate::frames::Frame;
use crate::lab::{Family, Host, Lab};
use crate::programs::program;
use crate::wait::{eventually, eventually_within};
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a daemon looks after now and then must show in both halves of a trace.
const TRACED_FOR: Duration = Duration::from_secs(1);
/// For so long strace may take to let go of what it traces.
const LETS_GO: Duration = Duration::from_secs(5);

/// One program, its host, and what was found so far.
struct Entrant {
    contender: Box<dyn Contender>,
    host: Host,
    link: String,
    directory: PathBuf,
    levels: Vec<Level>,
    execs: Option<Execs>,
    failed: Option<String>,
}

struct Level {
    present: usize,
    knocks: usize,
    opened: usize,
    samples: Vec<f64>,
    note: Option<String>,
}

/// Measures all programs.
pub(super) fn measure(lab: &Lab, extent: &Extent) -> Result<Vec<ProgramResults>> {
    let mut entrants = Vec::new();
    for contender in contenders::all() {
        let (host, link) = new_host(lab)?;
        let knocks = contender.knocks().min(extent.knocks);
        let levels = contender.levels().iter().filter(|present| **present <= extent.knocked);
        let levels = levels.map(|present| Level {
            present: *present,
            knocks,
            opened: knocks,
            samples: Vec::new(),
            note: None,
        });
        entrants.push(Entrant {
            directory: lab.directory().join(&link),
            levels: levels.collect(),
            contender,
            host,
            link,
            execs: None,
            failed: None,
        });
    }
    for round in 0..extent.knock_rounds {
        for entrant in &mut entrants {
            for at in 0..entrant.levels.len() {
                if entrant.failed.is_none() {
                    entrant.round(lab, at, round == 0 && at == 0, extent)?;
                }
            }
        }
    }
    Ok(entrants.into_iter().map(Entrant::results).collect())
}

impl Entrant {
    /// One round with the grants of one level there. A program that can't even start with none
    /// there is not tried again.
    fn round(&mut self, lab: &Lab, at: usize, first: bool, extent: &Extent) -> Result<()> {
        let link = Link { from: lab.owner(), interface: &self.link };
        let Some(level) = self.levels.get_mut(at) else { return Ok(()) };
        if level.note.is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.directory)?;
        let before: Vec<_> =
            (0..level.present).map(|n| source(Pool::Present, Family::V4, n)).collect();
        let place = Place { host: &self.host, link: &link, directory: &self.directory };
        let contender = self.contender.as_mut();
        let one = place.blast(contender, &before, level.knocks, extent).and_then(|blast| {
            if first {
                self.execs = Some(place.executed(contender, before.len(), level.knocks, extent)?);
            }
            Ok(blast)
        });
        let stopped = self.contender.stop(&self.host);
        match one {
            Ok((ms, opened)) => {
                level.opened = level.opened.min(opened);
                if opened == level.knocks {
                    level.samples.push(ms);
                } else {
                    level.note = Some(format!("only {opened} of {} knocks opened", level.knocks));
                }
            }
            Err(error) if first => self.failed = Some(with_causes(&error)),
            Err(error) => level.note = Some(with_causes(&error)),
        }
        if let (Err(error), None) = (stopped, &self.failed) {
            self.failed = Some(format!("it did not stop: {}", with_causes(&error)));
        }
        Ok(())
    }

    fn results(self) -> ProgramResults {
        let (name, ours) = (self.contender.name(), self.contender.ours());
        let outcome = match self.failed {
            Some(why) => Outcome::NotRun(why),
            None => Outcome::Measured(ProgramFigures {
                execs: self.execs,
                saturated: self
                    .levels
                    .into_iter()
                    .map(|level| Saturated {
                        present: level.present,
                        knocks: level.knocks,
                        opened: level.opened,
                        note: level.note,
                        ms_per_grant: Figure::of(&level.samples),
                    })
                    .collect(),
            }),
        };
        ProgramResults { name, ours, outcome }
    }
}

/// Where a program runs.
struct Place<'a> {
    host: &'a Host,
    link: &'a Link<'a>,
    directory: &'a Path,
}

impl Place<'_> {
    /// Starts the program and sends it knocks of as many sources, all at once. Milliseconds for
    /// each grant, and how many there were of them.
    fn blast(
        &self,
        contender: &mut dyn Contender,
        before: &[IpAddr],
        knocks: usize,
        extent: &Extent,
    ) -> Result<(f64, usize)> {
        contender.start(self.host, self.link, self.directory, before)?;
        let packets = contender.packets(self.host, &addresses(0, knocks))?;
        let (opened, took) =
            self.send_and_wait(contender, &packets, before.len(), knocks, extent.drain)?;
        Ok((took.as_secs_f64() * 1e3 / to_f64(knocks), opened))
    }

    /// Sends, and waits until the kernel has so many grants more. How many it has in the end, and
    /// after which time they were found.
    fn send_and_wait(
        &self,
        contender: &mut dyn Contender,
        packets: &[Frame],
        before: usize,
        knocks: usize,
        limit: Duration,
    ) -> Result<(usize, Duration)> {
        let start = Instant::now();
        self.link.send(packets)?;
        // What the program says costs less to ask than what the kernel has, but only that counts.
        while contender.heard()? < before + knocks && start.elapsed() < limit {
            sleep(Duration::from_millis(1));
        }
        loop {
            // Reading takes its time, which is not the program's.
            let asked = start.elapsed();
            let granted = contender.granted(self.host)?.saturating_sub(before);
            if granted >= knocks || asked > limit {
                return Ok((granted, asked));
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Counts what the running program executes for some more grants, where so many are there.
    fn executed(
        &self,
        contender: &mut dyn Contender,
        present: usize,
        knocks: usize,
        extent: &Extent,
    ) -> Result<Execs> {
        let grants = extent.traced;
        let packets = contender.packets(self.host, &addresses(knocks, grants))?;
        let trace = Trace::of(contender.pid()?, &self.directory.join("trace"))?;
        let start = Instant::now();
        let there = present + knocks;
        let (opened, _) = self.send_and_wait(contender, &packets, there, grants, extent.drain)?;
        ensure!(opened == grants, "only {opened} of {grants} knocks opened while it was traced");
        sleep(TRACED_FOR.saturating_sub(start.elapsed()));
        let took = start.elapsed();
        let executed = trace.count()?;
        // What it does now and then anyway is not for the grants.
        sleep(took);
        let idle = trace.count()? - executed;
        Ok(Execs { grants, executed, idle })
    }
}

/// The programs that a process and its children execute, as `strace` sees them.
struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    fn of(pid: u32, file: &Path) -> Result<Self> {
        let strace = program("strace")
            .map_err(|_| anyhow::anyhow!("strace is not installed; `make bench` installs it"))?;
        let mut command = Command::new(strace);
        command.args(["-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o"]).arg(file);
        command.args(["-p", &pid.to_string()]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let trace = Self { strace: command.spawn()?, file: file.to_owned() };
        eventually("strace is to be attached", || {
            let mut tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
            let all = tasks.all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
            });
            Ok(all.then_some(()))
        })?;
        Ok(trace)
    }

    /// How many were executed so far.
    fn count(&self) -> Result<usize> {
        let text = fs::read_to_string(&self.file)?;
        Ok(text.lines().filter(|line| is_executed(line)).count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It lets go of the traced process before it ends; but not of a thread that waits for its child
        // to execute something, while the child waits for strace. Then the kernel lets go of both.
        let asked = i32::try_from(self.strace.id()).is_ok_and(|pid| {
            kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
                && eventually_within(LETS_GO, "strace is to end", || Ok(self.strace.try_wait()?))
                    .is_ok()
        });
        if !asked {
            let _ = self.strace.kill();
            let _ = self.strace.wait();
        }
    }
}

/// Whether a line of strace's is a successful `execve`.
fn is_executed(line: &str) -> bool {
    line.contains("execve") && line.ends_with("= 0")
}

/// Those who knock.
fn addresses(first: usize, count: usize) -> Vec<IpAddr> {
    (first..first + count).map(|n| source(Pool::Measured, Family::V4, n)).collect()
}

#[cfg(test)]
mod tests {
    use super::is_executed;

    #[test]
    fn every_program_is_counted_once() {
        let lines = [
            r#"77 execve("/bin/sh", ["sh", "-c", "x"], 0x7f /* 3 vars */) = 0"#,
            r#"78 execve("/sbin/x", ["x"], 0x7f /* 3 vars */ <unfinished ...>"#,
            "78 <... execve resumed>)          = 0",
            r#"79 execve("/usr/bin/x", ["x"], 0x7f /* 3 vars */) = -1 ENOENT (No such file or directory)"#,
            "77 +++ exited with 0 +++",
        ];
        assert_eq!(lines.map(is_executed), [true, false, true, false, false]);
    }
}
