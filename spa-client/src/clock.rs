//! How far this machine's clock is off, by the NTP server that the user names. None is built in.

use crate::endpoint::Endpoint;
use crate::knock::{any, plain};
use core::time::Duration;
use rsntp::{Config, SntpClient, SynchronizationError};

/// The port of NTP (RFC 5905).
const PORT: u16 = 123;
/// How long one question may go without an answer; a lost one is asked a second time.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// By how many seconds this clock is ahead of the server's; less than zero: behind.
///
/// # Errors
///
/// Why it can't be told, to stand after the server's name.
pub(crate) fn ahead(server: &Endpoint) -> Result<f64, String> {
    let addresses =
        server.resolve(PORT).map_err(|error| format!("does not resolve: {}", plain(&error)))?;
    let mut failure = String::from("does not resolve: no address");
    for address in addresses.iter().cycle().take(addresses.len().saturating_mul(2).min(4)) {
        let config = Config::default().bind_address(any(*address)).timeout(TIME_LIMIT);
        match SntpClient::with_config(config).synchronize(*address) {
            Ok(answer) => return Ok(-answer.clock_offset().as_secs_f64()),
            Err(SynchronizationError::IOError(error)) => {
                use std::io::ErrorKind::{TimedOut, WouldBlock};
                failure = match error.kind() {
                    TimedOut | WouldBlock => "did not answer".into(),
                    _ => format!("can't be asked: {}", plain(&error)),
                };
            }
            Err(error) => failure = format!("gave no usable time: {error}"),
        }
    }
    Err(failure)
}

/// What the system itself says about its clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Synchronised {
    /// By whom.
    Yes(&'static str),
    /// Who says so.
    No(&'static str),
    /// Nobody is there to ask whom this program knows.
    NotKnown,
}
