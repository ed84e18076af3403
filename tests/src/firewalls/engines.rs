//! The container engines: Docker and Podman, each with one container that echoes, made of
//! nothing but busybox. No registry is asked.

use super::{Neighbour, Room, ensure_published};
use crate::command::finish;
use crate::lab::Lab;
use crate::programs::program;
use crate::wait::{eventually, eventually_within};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

/// The port of the host that a container's echo service is published on.
pub const CONTAINER_PORT: u16 = 8088;
/// What runs in a container.
const ECHO: [&str; 6] = ["/bin/busybox", "nc", "-ll", "-p", "7", "-e"];
/// An engine that has to make its networks first takes a moment.
const START: Duration = Duration::from_secs(60);

/// Docker, with IPv6 and without the proxy in user space: packets go through the firewall.
pub struct Docker<'a> {
    room: &'a Room,
    daemon: Child,
}

impl<'a> Docker<'a> {
    /// Starts the daemon; no container runs yet.
    pub fn start(room: &'a Room) -> Result<Self> {
        room.write(
            "/etc/docker/daemon.json",
            r#"{
                "storage-driver": "vfs", "live-restore": true, "userland-proxy": false,
                "ipv6": true, "fixed-cidr-v6": "fd99::/64", "experimental": true, "ip6tables": true,
                "exec-opts": ["native.cgroupdriver=cgroupfs"]
            }"#,
        )?;
        forward(room)?;
        let mut docker = Self { room, daemon: Self::spawn(room)? };
        docker.await_answer()?;
        let image = image(room)?;
        finish(room.command("tar")?.arg("-C").arg(&image).args(["-cf", "/run/box.tar", "."]))?
            .ok()?;
        room.sh("docker import /run/box.tar box")?;
        Ok(docker)
    }

    fn spawn(room: &Room) -> Result<Child> {
        room.spawn("dockerd --data-root /var/lib/docker --exec-root /run/docker -H unix:///run/docker.sock")
    }

    fn await_answer(&mut self) -> Result<()> {
        eventually_within(START, "dockerd is to answer", || {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("dockerd ended at its start ({status})");
            }
            Ok(self.room.run("docker info")?.success().then_some(()))
        })
        .with_context(|| self.room.log())
    }

    /// Runs the container whose port is published.
    pub fn publish(&self) -> Result<()> {
        let publish = format!("{CONTAINER_PORT}:7");
        let mut command = self.room.command("docker")?;
        command.args(["run", "-d", "--name", "echo", "-p", &publish, "box"]);
        finish(command.args(ECHO).arg("/bin/cat"))?.ok().map(|_| ())
    }

    /// Ends the daemon and starts it again; the container lives on.
    pub fn restart(&mut self) -> Result<()> {
        let pid = fs::read_to_string(self.room.path_of("/run/docker.pid"))?;
        self.room.sh(&format!("kill -TERM {}", pid.trim()))?;
        eventually("dockerd is to end", || Ok(self.daemon.try_wait()?))?;
        self.daemon = Self::spawn(self.room)?;
        self.await_answer()
    }
}

impl Neighbour for Docker<'_> {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_published(lab, CONTAINER_PORT)
    }
}

/// Podman with netavark.
pub struct Podman<'a> {
    room: &'a Room,
    image: PathBuf,
}

impl<'a> Podman<'a> {
    /// Makes its network; no container runs yet, and so there are no rules.
    pub fn new(room: &'a Room) -> Result<Self> {
        room.write(
            "/etc/containers/containers.conf",
            "[engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"none\"\n\
             runtime = \"runc\"\n\
             [network]\n\
             network_backend = \"netavark\"\n",
        )?;
        room.write(
            "/etc/containers/storage.conf",
            "[storage]\n\
             driver = \"vfs\"\n\
             runroot = \"/run/containers/storage\"\n\
             graphroot = \"/var/lib/containers/storage\"\n",
        )?;
        forward(room)?;
        room.sh("podman network create --ipv6 --subnet 10.90.0.0/24 --subnet fd90::/64 \
             --disable-dns dual")?;
        Ok(Self { room, image: image(room)? })
    }

    /// Runs the container whose port is published.
    pub fn publish(&self) -> Result<()> {
        let publish = format!("{CONTAINER_PORT}:7");
        let mut command = self.room.command("podman")?;
        command.args(["run", "-d", "--replace", "--name", "echo", "--pids-limit=-1"]);
        command.args(["--network", "dual", "-p", &publish, "--rootfs"]).arg(&self.image);
        finish(command.args(ECHO).arg("/bin/cat"))?.ok().map(|_| ())
    }

    /// `podman network reload --all`: writes its rules anew.
    pub fn reload(&self) -> Result<()> {
        self.room.sh("podman network reload --all").map(|_| ())
    }
}

impl Neighbour for Podman<'_> {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn ensure_in_force(&self, lab: &Lab) -> Result<()> {
        ensure_published(lab, CONTAINER_PORT)
    }
}

/// The engines need it; Docker sets a part of it itself, and netavark all.
fn forward(room: &Room) -> Result<()> {
    room.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").map(|_| ())
}

/// The file system of a container.
fn image(room: &Room) -> Result<PathBuf> {
    let image = room.directory().join("image");
    if !image.exists() {
        let bin = image.join("bin");
        fs::create_dir_all(&bin)?;
        fs::copy(program("busybox")?, bin.join("busybox"))?;
        for name in ["sh", "cat", "nc", "sleep"] {
            symlink("busybox", bin.join(name))?;
        }
    }
    Ok(image)
}
