//! The harness of the end-to-end tests: real binaries, real packets, the real kernel firewall.
//!
//! A [`Lab`] is a set of network namespaces on one link: the server, the owner of a client key,
//! and strangers. A [`Server`] is the real `spa-server` in such a namespace, a [`Device`] makes
//! knocks of every kind, [`Sshd`] is OpenSSH behind the gate, and a [`Capture`] shows what was
//! really on the wire. [`Scene`] puts the usual ones together. A [`Machine`] runs the real systemd.
//!
//! Rules that the tests keep:
//!
//! - They wait until something holds, with a generous deadline ([`eventually`]); they never sleep
//!   for a time after which it "should" hold.
//! - That something does *not* happen is shown by a counter that says the daemon has seen and
//!   refused it, or by something later that did happen (a positive control).
//! - What the machine lacks is an error that names the Debian package; nothing is skipped.

mod backend;
pub mod bench;
mod breakable;
mod capture;
mod cgroup;
mod command;
mod config;
mod desk;
mod device;
mod firewalls;
mod frames;
mod home;
mod lab;
mod laptop;
mod measure;
mod memory;
mod newcomer;
mod nmap;
mod probe;
mod programs;
mod ruleset;
mod scene;
mod server;
mod ssh;
mod state;
mod systemd;
mod talk;
mod talker;
mod wait;
mod watch;
mod weather;

pub use backend::Backend;
pub use breakable::BreakableTool;
pub use capture::{Capture, Packet};
pub use command::{Finished, Quoted, finish, finish_reading, finish_within};
pub use config::{Client, Configuration, Gate, Hook, Rate, Service, SourcePrefix};
pub use desk::{Desk, Knocks};
pub use device::{Ask, Device, Identity, Rotation, now};
pub use firewalls::{
    ALLOWED_PORT, CONTAINER_PORT, Docker, Firewalld, Neighbour, NftablesService, Podman, Room,
    SavedRules, Ssh, Ufw,
};
pub use frames::{Frame, Ipv4, Ipv6};
pub use home::{Home, StunServer, TimeServer, masquerade};
pub use lab::{Family, Host, Lab};
pub use laptop::Laptop;
pub use measure::{Latencies, report, time_to_open};
pub use memory::{ensure_locked, swappable};
pub use newcomer::Newcomer;
pub use nmap::{Scan, Scanned};
pub use probe::{Listener, PortState};
pub use programs::{fake_clock, interop_python, our_binary, program, workspace};
pub use ruleset::Ruleset;
pub use scene::{SSH_PORT, Scene, WEB_PORT};
pub use server::{Clock, Server};
pub use ssh::{Session, Shell, Sshd};
pub use state::TinyDisk;
pub use systemd::Machine;
pub use talk::{Heard, Talks};
pub use talker::{Hearer, Talker};
pub use wait::{DEADLINE, at_once, eventually, eventually_within};
pub use watch::Watch;
pub use weather::Weather;
