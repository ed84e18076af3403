//! Why no knock left.

use super::address::Family;
use crate::key_source::KeyError;
use core::net::IpAddr;
use spa_keys::DeriveError;
use spa_proto::SealError;
use std::io;

/// Why no knock left, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KnockError {
    /// There are no keys, or they can't be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The keys don't go together.
    #[error("the keys for server {server} can't be used: {source}")]
    Derive {
        /// The server.
        server: String,
        /// Why.
        source: DeriveError,
    },
    /// Too long together.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No such name, or no name server.
    #[error(
        "{host:?} does not resolve to an address ({source}); check the server's host in the configuration, and this machine's name servers"
    )]
    Resolve {
        /// The host.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// None of the family that was asked for.
    #[error("{host} has no {family} address; leave the choice of the address family away")]
    NoAddress {
        /// The host.
        host: String,
        /// The family.
        family: Family,
    },
    /// The bound source is of another family than the server.
    #[error(
        "the knock is to be bound to {bound}, but {host} has no {family} address; name a source of the server's address family"
    )]
    SourceFamily {
        /// The host.
        host: String,
        /// The source.
        bound: IpAddr,
        /// The family of the source.
        family: Family,
    },
    /// Nobody accepts stamps from before there was this program.
    #[error(
        "this machine's clock says a day before 2025, so that no server would accept a knock; set the clock"
    )]
    Clock,
    /// The system gave no random numbers.
    #[error("the system's random number generator gave no bytes; try again")]
    NoRandomness,
    /// No means to wait for connections.
    #[error("the system gives no means to wait for the port ({0}); use --no-wait")]
    Wait(io::Error),
    /// The system refused every datagram.
    #[error("no knock could be sent to {host} ({reasons}); {advice}")]
    NotSent {
        /// The host.
        host: String,
        /// Why, address by address.
        reasons: String,
        /// What to look at.
        advice: &'static str,
    },
}
