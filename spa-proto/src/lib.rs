//! The single-packet authorization protocol, version 1.
//!
//! This crate is *sans-IO*: it has no clock, no random numbers of its own, no files, no sockets
//! and no async. Whoever uses it passes in the time, the nonce and the bytes, and acts on the
//! [`Verdict`] that comes back. The normative text is `docs/protocol.md`; section numbers in
//! these pages ("§4.2") are sections of that text.
//!
//! - A client builds one datagram with [`seal`], or announces a new key of its own with
//!   [`seal_announcement`].
//! - A server keeps one [`Receiver`], asks it to judge each datagram with
//!   [`Receiver::receive`], and, once its own policy agreed, enters the knock into the replay
//!   window with [`Receiver::commit`].

#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod announcement;
mod client;
mod drop_reason;
mod duration;
mod item;
mod keyring;
mod packet;
mod receiver;
mod replay;
mod request;
mod secret;
mod tag;
mod time;

pub use announcement::{Announcement, AnnouncementKeys, AnnouncementKind, NewKey};
pub use client::ClientId;
pub use drop_reason::DropReason;
pub use duration::{DurationError, format_duration, parse_duration, parse_duration_or_seconds};
pub use item::{Item, ItemError, Items, Port, PortRange, ServiceName, Transport};
pub use keyring::{Sender, Sieve};
pub use packet::{
    Nonce, PacketLength, PacketLengthError, SealError, TAG_LENGTH, UDP_HEADER_LENGTH, seal,
    seal_announcement,
};
pub use receiver::{
    Announced, BegunRoll, ComputedRoll, Dropped, Knock, Receiver, ServerKey, Settings, Skew,
    Verdict,
};
pub use replay::{Accepted, Closed, WindowState};
pub use request::{MessageType, Request};
pub use secret::{MaskKey, PairSecret};
pub use tag::{Epoch, Tag, masked};
pub use time::{Freshness, FreshnessError, UnixMicros};
