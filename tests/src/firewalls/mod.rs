//! The firewalls of others, as Debian has them, on the host of the gate: ufw, firewalld, the
//! service of nftables, saved iptables rules, Docker and Podman. Each is the real tool, and each can
//! show that its rules are in force ([`Neighbour::ensure_in_force`]).

mod engines;
mod managers;
mod room;

pub use engines::{CONTAINER_PORT, Docker, Podman};
pub use managers::{Firewalld, NftablesService, SavedRules, Ufw};
pub use room::Room;

use crate::lab::{Family, Lab};
use crate::probe::{Listener, PortState};
use crate::wait::eventually;
use anyhow::Result;

/// A port that every one of the managers lets everybody in to.
pub const ALLOWED_PORT: u16 = 7001;
/// A port that none of them speaks of.
const UNSPOKEN_PORT: u16 = 7002;

/// Whether a firewall manager lets everybody in to the port of `ssh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ssh {
    /// It does.
    Allowed,
    /// It says nothing of it, and drops by default.
    Unspoken,
}

/// A firewall of somebody else that is active.
pub trait Neighbour {
    /// What it is called in messages.
    fn name(&self) -> &'static str;

    /// Shows that its rules decide about packets.
    fn ensure_in_force(&self, lab: &Lab) -> Result<()>;
}

/// Of the managers: what they allow is open, and what they don't speak of is not, although a
/// program listens on both.
fn ensure_drops_by_default(lab: &Lab) -> Result<()> {
    let _listeners =
        [Listener::tcp(lab.server(), ALLOWED_PORT)?, Listener::tcp(lab.server(), UNSPOKEN_PORT)?];
    for family in Family::BOTH {
        lab.third().await_open(lab.server().at(family, ALLOWED_PORT))?;
        eventually("what nobody allows is to be refused", || {
            let seen = lab.third().tcp(lab.server().at(family, UNSPOKEN_PORT));
            // firewalld refuses as "administratively prohibited", which is an error of its own.
            Ok((!matches!(seen, Ok(PortState::Open))).then_some(()))
        })?;
    }
    Ok(())
}

/// Of the engines: the published port is answered by the container.
fn ensure_published(lab: &Lab, port: u16) -> Result<()> {
    for family in Family::BOTH {
        let to = lab.server().at(family, port);
        eventually(&format!("the published port {to} is to answer"), || {
            Ok(echoes(lab, to).then_some(()))
        })?;
    }
    Ok(())
}

/// Whether an echo service answers: a listening socket in between is not enough.
fn echoes(lab: &Lab, to: std::net::SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(Ok(mut stream)) = lab.third().tcp_connect(to) else { return false };
    let _ = stream.set_read_timeout(Some(crate::probe::PATIENCE));
    let mut answer = [0; 5];
    stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut answer)).is_ok()
        && answer == *b"hello"
}

#[cfg(test)]
mod tests;
