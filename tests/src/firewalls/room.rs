//! Where the firewalls of others run: the network of the lab's server, with a `/etc`, `/run`,
//! `/var/lib` and processes of its own, so that the real tools of Debian find what they expect
//! and change nothing on this machine.

use crate::cgroup::Cgroup;
use crate::command::{Finished, finish};
use crate::lab::{Host, Lab};
use crate::programs::program;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SCRIPT: &str = include_str!("room.sh");
/// Goes into the room's cgroup, where programs may make cgroups below, and becomes the program.
const ENTER: &str = r#"echo $$ >/sys/fs/cgroup/cgroup.procs; exec "$0" "$@""#;

/// See the module's text. It goes with the value, and all that runs in it.
pub struct Room {
    host: Host,
    /// `unshare`: in all of the room's namespaces but that of the processes.
    keeper: Child,
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Room {
    /// A room at the lab's server. There can be one at a time.
    pub fn new(lab: &Lab) -> Result<Self> {
        let host = lab.server().clone();
        let directory = lab.directory().join("room");
        fs::create_dir_all(directory.join("root"))?;
        let cgroup = Cgroup::new(&format!("{}-room", host.namespace()))?;
        let log = File::create(directory.join("log"))?;
        let inside = host.command("unshare")?;
        let keeper = cgroup
            .command(inside.get_program())?
            .args(inside.get_args())
            .args(["--mount", "--propagation", "private", "--uts", "--ipc", "--cgroup"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(program("sh")?)
            .args(["-eu", "-c", SCRIPT])
            .arg(directory.join("root"))
            .arg(host.overlay())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut room = Self { host, keeper, cgroup, directory };
        eventually("the room is to be furnished", || {
            if let Some(status) = room.keeper.try_wait()? {
                bail!("the room's script ended ({status})");
            }
            Ok(room.path_of("/run/room").exists().then_some(()))
        })
        .with_context(|| room.log())?;
        Ok(room)
    }

    /// A command in the room.
    pub fn command(&self, program_name: &str) -> Result<Command> {
        let keeper = self.keeper.id();
        let mut command = Command::new(program("nsenter")?);
        command
            .args(["--mount", "--uts", "--ipc", "--net", "--cgroup", "--target"])
            .arg(keeper.to_string())
            .arg(format!("--pid=/proc/{keeper}/ns/pid_for_children"))
            .arg(program("sh")?)
            .args(["-eu", "-c", ENTER])
            .arg(program(program_name)?)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")])
            .env("HOME", "/root");
        Ok(command)
    }

    /// Runs a program in the room to its end; the words of `line` are separated by white space.
    pub fn run(&self, line: &str) -> Result<Finished> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default())?;
        finish(command.args(words))
    }

    /// Runs it, and gives back what it printed; a failure is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(line)?.ok()
    }

    /// Starts a program that stays; what it prints goes to the room's log. It ends with the room.
    pub(super) fn spawn(&self, line: &str) -> Result<Child> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default())?;
        let log = File::options().append(true).open(self.directory.join("log"))?;
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start {line}"))
    }

    /// What the room's daemons have said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Where a path of the room is found from outside.
    pub fn path_of(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// Writes a file of the room, and the directories on the way to it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let outside = self.path_of(path);
        if let Some(directory) = outside.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(outside, text).with_context(|| format!("cannot write {path}"))
    }

    /// Files of the room that tests lay out from outside, and that its programs see at the same
    /// path.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    #[cfg(test)]
    pub(super) fn keeper_id(&self) -> u32 {
        self.keeper.id()
    }

    /// Whose network it has.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the room:\n{}", self.log());
        }
        let _ = self.keeper.kill();
        self.cgroup.end();
        let _ = self.keeper.wait();
    }
}
