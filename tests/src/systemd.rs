//! A machine that the real systemd has booted, for what only shows under it: the unit, its
//! sandbox, the watchdog, the journal.
//!
//! The machine has namespaces of its own and a file system that is made for it: Debian as it is
//! installed here, or a clean one, with everything that is written to it in memory (see
//! `machine.sh`, `clean.sh` and `boot.sh`). Its network is that of the lab's server. Whatever becomes of the test, the machine ends ([`Cgroup`]).

use crate::cgroup::Cgroup;
use crate::command::{Finished, finish};
use crate::lab::{Host, Lab};
use crate::programs::{our_binary, program, workspace};
use crate::wait::{eventually, eventually_within};
use anyhow::{Context, Result, bail, ensure};
use spa_server::control::{ControlRequest, ControlResponse, GrantView, Status, call};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const INSTALLED: &str =
    concat!(include_str!("systemd/machine.sh"), include_str!("systemd/boot.sh"));
const CLEAN: &str = concat!(include_str!("systemd/clean.sh"), include_str!("systemd/boot.sh"));
/// A boot takes a fraction of a second.
const BOOT: Duration = Duration::from_secs(60);
/// Where the tests find the control socket, as `spa-server init` has it.
const CONTROL_SOCKET: &str = "/run/spa/control.sock";

/// See the module's text. It goes with the value.
pub struct Machine {
    host: Host,
    cgroup: Cgroup,
    console: PathBuf,
    /// `unshare`: the parent of the machine's first process. It is in all of the machine's
    /// namespaces but that of the processes.
    keeper: Child,
}

impl Machine {
    /// Boots a machine with the network of the lab's server. `spa-server` and its units are
    /// installed, and nothing is configured.
    pub fn boot(lab: &Lab) -> Result<Self> {
        let nothing = lab.directory().join("nothing");
        fs::create_dir(&nothing)?;
        Self::boot_with(lab, &nothing)
    }

    /// Boots a machine that has the files below `seed` from the beginning.
    pub fn boot_with(lab: &Lab, seed: &Path) -> Result<Self> {
        let systemd = Path::new("/lib/systemd/systemd");
        ensure!(
            systemd.is_file(),
            "the tests need {}; install it with: apt-get install systemd (`make test` does)",
            systemd.display()
        );
        let packaging = workspace()?.join("packaging");
        Self::start(lab, INSTALLED, &[&our_binary("spa-server")?, &packaging, seed])
    }

    /// Boots the Debian that is in the directory `debian`, with the files below `seed`. Nothing of
    /// ours is there.
    pub fn boot_clean(lab: &Lab, debian: &Path, seed: &Path) -> Result<Self> {
        Self::start(lab, CLEAN, &[debian, seed])
    }

    fn start(lab: &Lab, script: &str, arguments: &[&Path]) -> Result<Self> {
        let host = lab.server().clone();
        let root = lab.directory().join("machine");
        // A machine that was there before is gone, with its root.
        fs::create_dir_all(&root)?;
        let cgroup = Cgroup::new(host.namespace()).context("systemd needs a cgroup of its own")?;

        let console = lab.directory().join("console");
        let log = File::create(&console)?;
        let inside = host.command("unshare")?;
        let keeper = cgroup
            .command(inside.get_program())?
            .args(inside.get_args())
            .args(["--mount", "--propagation", "private", "--uts", "--ipc", "--cgroup"])
            .args(["--pid", "--fork", "--kill-child"])
            .arg(program("sh")?)
            .args(["-eu", "-c", script])
            .arg(&root)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut machine = Self { host, cgroup, console, keeper };
        machine.await_boot()?;
        Ok(machine)
    }

    fn await_boot(&mut self) -> Result<()> {
        eventually_within(BOOT, "systemd is to boot", || {
            if let Some(status) = self.keeper.try_wait()? {
                bail!("the machine has ended ({status}): {}", fs::read_to_string(&self.console)?);
            }
            // Before the root is the machine's own, this would ask another systemd.
            if !self.path_of("/etc/systemd/system/machine.target").exists() {
                return Ok(None);
            }
            let state = self.run("systemctl is-system-running")?;
            Ok(matches!(state.stdout.trim(), "running" | "degraded").then_some(()))
        })
        .with_context(|| fs::read_to_string(&self.console).unwrap_or_default())?;
        let target = self.run("systemctl is-active machine.target")?;
        ensure!(target.success(), "{target}{}", self.journal("*")?);
        Ok(())
    }

    /// A command in the machine.
    pub fn command(&self, program_name: &str) -> Result<Command> {
        let path = match program_name {
            "spa-server" => "/usr/sbin/spa-server".into(),
            "spa-client" => "/usr/bin/spa-client".into(),
            name => program(name)?,
        };
        let keeper = self.keeper.id();
        let mut command = Command::new(program("nsenter")?);
        command
            .args(["--mount", "--uts", "--ipc", "--net", "--cgroup", "--target"])
            .arg(keeper.to_string())
            .arg(format!("--pid=/proc/{keeper}/ns/pid_for_children"))
            .arg(path)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin"), ("LC_ALL", "C.UTF-8"), ("HOME", "/root")]);
        Ok(command)
    }

    /// Runs a program in the machine to its end; the words of `line` are separated by white space.
    pub fn run(&self, line: &str) -> Result<Finished> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default())?;
        finish(command.args(words))
    }

    /// Runs it, and gives back what it printed; a failure is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(line)?.ok()
    }

    /// Where a path of the machine is found from outside.
    pub fn path_of(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// The text of a file of the machine.
    pub fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path_of(path)).with_context(|| format!("cannot read {path}"))
    }

    /// Writes a file of the machine, and the directories on the way to it. What is there keeps
    /// its mode.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let outside = self.path_of(path);
        if let Some(directory) = outside.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(outside, text).with_context(|| format!("cannot write {path}"))
    }

    /// Adds settings to a unit, and has systemd read them.
    pub fn drop_in(&self, unit: &str, text: &str) -> Result<()> {
        self.write(&format!("/etc/systemd/system/{unit}.d/test.conf"), text)?;
        self.sh("systemctl daemon-reload")?;
        Ok(())
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.sh(&format!("systemctl show --value --property {name} {unit}"))?.trim().to_owned())
    }

    /// What the journal holds of a unit: its own lines, and systemd's about it.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.sh(&format!("journalctl --quiet --no-pager --output cat --unit {unit}"))
    }

    /// Waits until the journal holds a line of that unit that contains `text`.
    pub fn await_journal(&self, unit: &str, text: &str) -> Result<String> {
        eventually(&format!("the journal of {unit} is to hold {text:?}"), || {
            Ok(self.journal(unit)?.lines().find(|line| line.contains(text)).map(Into::into))
        })
        .with_context(|| self.journal(unit).unwrap_or_default())
    }

    /// How the daemon is.
    pub fn status(&self) -> Result<Status> {
        match call(&self.path_of(CONTROL_SOCKET), &ControlRequest::Status)? {
            ControlResponse::Status(status) => Ok(*status),
            other => bail!("asked for the status, got {other:?}"),
        }
    }

    /// What is open, as the daemon has it.
    pub fn grants(&self) -> Result<Vec<GrantView>> {
        match call(&self.path_of(CONTROL_SOCKET), &ControlRequest::GrantsList)? {
            ControlResponse::Grants(grants) => Ok(grants),
            other => bail!("asked for the grants, got {other:?}"),
        }
    }

    /// Whose network it has.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the journal:\n{}", self.journal("*").unwrap_or_default());
        }
        let _ = self.keeper.kill();
        self.cgroup.end();
        let _ = self.keeper.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_boots_with_files_of_its_own_and_nothing_stays_of_it() {
        let lab = Lab::new().unwrap();
        let machine = Machine::boot(&lab).unwrap();
        assert_eq!(machine.sh("cat /proc/1/comm").unwrap(), "systemd\n");
        let network = machine.sh("ip -brief address show eth0").unwrap();
        assert!(network.contains("10.66.0.1"), "{network}");
        let name = format!("spa-tests-{}", std::process::id());
        for directory in ["etc", "run", "tmp", "usr/lib/systemd/system", "var/lib", "var/tmp"] {
            let path = format!("/{directory}/{name}");
            machine.write(&path, "").unwrap();
            machine.sh(&format!("cat {path}")).unwrap();
            assert!(!Path::new(&path).exists(), "{path} is on the real machine");
        }
        assert!(!machine.run("touch /proc/sys/kernel/hostname").unwrap().success());

        let (cgroup, keeper) = (machine.cgroup.path().to_owned(), machine.keeper.id());
        assert!(cgroup.exists() && Path::new(&format!("/proc/{keeper}")).exists());
        drop(machine);
        assert!(!cgroup.exists() && !Path::new(&format!("/proc/{keeper}")).exists());
    }

    #[test]
    fn a_machine_ends_when_its_guard_is_left_alone() {
        let lab = Lab::new().unwrap();
        let mut machine = Machine::boot(&lab).unwrap();
        // As it happens when the process of the test is killed.
        machine.cgroup.abandon();
        let status = eventually("the machine is to end", || Ok(machine.keeper.try_wait()?));
        assert!(!status.unwrap().success());
    }
}
