//! What the commands of the administrator do.
//!
//! Data goes to standard output, messages to standard error. They know the configuration's files
//! and the control socket; what the daemon does is its own business.

pub(crate) mod boot;
pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod client_add;
pub(crate) mod daemon;
pub(crate) mod gate;
pub(crate) mod hand_over;
mod host;
pub(crate) mod init;
pub(crate) mod invite;
pub(crate) mod log;
pub(crate) mod man;
pub(crate) mod metrics;
pub(crate) mod notify;
mod order;
mod output;
pub(crate) mod refuse;
pub(crate) mod rotate_key;
pub(crate) mod top;
pub(crate) mod trial;
mod write;

use crate::config::ConfigError;
use crate::control::CallError;
use spa_keys::{KeyFileError, NoRandomness};
use std::io;
use std::path::PathBuf;

/// Exit status: it failed.
pub(crate) const FAILED: u8 = 1;
/// Exit status: wrong usage.
pub(crate) const USAGE: u8 = 2;
/// Exit status: wrong configuration (`EX_CONFIG` of sysexits.h).
pub(crate) const CONFIG: u8 = 78;

/// Why a command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The words of the command line don't go together.
    #[error("{0}")]
    Usage(String),
    /// The daemon did not do it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A key file could not be read or written.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// No key could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// A file or directory could not be written.
    #[error("{} can't be written: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("the result can't be written: {0}")]
    Output(io::Error),
    /// Anything else, and what to do about it.
    #[error("{0}")]
    Failed(String),
    /// What is wrong has been told already.
    #[error("")]
    Told {
        /// The exit status.
        exit_code: u8,
    },
}

impl CommandError {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => CONFIG,
            Self::Usage(_) => USAGE,
            Self::Told { exit_code } => *exit_code,
            _ => FAILED,
        }
    }
}

type Done = Result<(), CommandError>;
