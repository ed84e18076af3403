//! The client of single-packet authorization: asks a server, with one datagram, to open a port
//! for this machine.
//!
//! The crate is a library for programs, with the command line `spa-client` ([`cli`]) on top. It
//! needs no root, no packet capture and nothing that one system has alone. Which datagram is
//! sent is the business of `spa-proto`; which keys seal it, of `spa-keys`.
//!
//! ```no_run
//! use spa_client::{Asked, Config, Options, knock};
//!
//! let config = Config::load(&Config::directory()?)?;
//! let server = config.server(Some("work"))?;
//! for sent in knock(server, &Asked::open(["ssh".parse()?])?, &Options::default())? {
//!     println!("asked {} to open ssh", sent.to);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A server never answers. To learn whether the port opened, [prepare](Knocker::prepare) a
//! [`Knocker`] and give it to [`until_open`], which probes the port and knocks again as needed.
//! `examples/open.rs` does so.
//!
//! Both block. With the feature `tokio`, the module `asynchronous` has the same for programs with a
//! runtime (`examples/open_async.rs`); without it, nothing of tokio is linked.

mod announce;
mod asking;
#[cfg(feature = "tokio")]
pub mod asynchronous;
mod at_once;
mod carry;
pub mod cli;
mod clock;
mod config;
mod duration;
mod endpoint;
mod key_source;
mod knock;
mod probe;
mod record;
mod schedule;
mod server;
mod source;
mod stun;
#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(not(unix), path = "portable.rs")]
mod system;
mod target;

pub use config::{Config, ConfigError};
pub use duration::{Lifetime, LifetimeError};
pub use endpoint::{Endpoint, EndpointError};
pub use key_source::{
    CommandError, KeyError, KeySource, Locked, NoPassphrase, SecretName, SecretNameError,
    SecretServiceError, Unlock, UnlockError, protected,
};
pub use knock::{Asked, Family, KnockError, Knocker, Options, Sent, knock};
pub use probe::{Failure, Probe, Probed, Progress, until_open};
pub use server::{Connections, Host, HostError, Server, ServerName, ServerNameError, Service};
pub use source::{BindSource, BindSourceError, Binding, Unbound};
pub use target::{Target, TargetError};

pub use spa_keys::{ClientKeys, Overwrite, Passphrase, PublicKey, StoredKeys};
pub use spa_proto::{
    Item, ItemError, Items, MessageType, PacketLength, Port, PortRange, ServiceName, Transport,
};
