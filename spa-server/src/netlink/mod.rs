//! The kernel's firewall over netlink: sets, connection tracking, sockets, nftables.
//!
//! Thin and typed: each part writes messages, sends them, and makes values of the answers. It must
//! not know what a grant, a policy or a gate is.
//!
//! A call blocks until the kernel has answered, which takes microseconds, and needs
//! `CAP_NET_ADMIN` at that time. What it opens belongs to the network namespace of the thread that
//! opened it.

pub mod conntrack;
mod error;
pub mod events;
pub mod ipset;
pub mod nft;
pub mod sock_diag;
mod socket;
mod wire;

pub use error::{NetlinkError, Reason, Refusal};

/// The fixed header of everything of netfilter, in bytes (`struct nfgenmsg`).
const NETFILTER_HEADER: usize = 4;

/// `AF_UNSPEC`, `AF_INET` and `AF_INET6`, as netlink spells them.
const FAMILY_ANY: u8 = 0;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(_) => Self::V4,
            std::net::IpAddr::V6(_) => Self::V6,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::V4 => FAMILY_V4,
            Self::V6 => FAMILY_V6,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            FAMILY_V4 => Some(Self::V4),
            FAMILY_V6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// The number of a transport protocol in an IP header.
const fn protocol_number(transport: spa_proto::Transport) -> u8 {
    match transport {
        spa_proto::Transport::Tcp => 6,
        spa_proto::Transport::Udp => 17,
    }
}

/// The transport protocol of a number in an IP header, if it is one that has ports here.
const fn transport(number: u8) -> Option<spa_proto::Transport> {
    match number {
        6 => Some(spa_proto::Transport::Tcp),
        17 => Some(spa_proto::Transport::Udp),
        _ => None,
    }
}
