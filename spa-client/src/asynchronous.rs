//! The same for programs with a tokio runtime (feature `tokio`): knocking never blocks it, nor does
//! the resolver, which on most systems knows no other way than to block.
//!
//! ```no_run
//! use spa_client::{Asked, Config, Options, asynchronous};
//!
//! # async fn open() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(&Config::directory()?)?;
//! let server = config.server(Some("work"))?;
//! let asked = Asked::open(["ssh".parse()?])?;
//! for sent in asynchronous::knock(server, &asked, &Options::default()).await? {
//!     println!("asked {} to open ssh", sent.to);
//! }
//! # Ok(())
//! # }
//! ```

use crate::knock::{Asked, KnockError, Knocker, Options, Sent};
use crate::probe::{Probe, Probed};
use crate::server::Server;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Sends one knock to each address of `server`, as [`crate::knock`] does.
///
/// # Errors
///
/// Whatever keeps the datagrams from leaving.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn knock(
    server: &Server,
    asked: &Asked,
    options: &Options,
) -> Result<Vec<Sent>, KnockError> {
    let (server, asked, options) = (server.clone(), asked.clone(), options.clone());
    apart(move || crate::knock::knock(&server, &asked, &options)).await
}

/// Knocks, and probes until each port of `probes` is open at one of the server's addresses or
/// `timeout` has passed, as [`crate::until_open`] does.
///
/// When the future is dropped, no further knock and no further probe leaves.
///
/// # Errors
///
/// When the first knock can't be sent, or the system gives no means to wait.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn until_open(
    server: &Server,
    asked: &Asked,
    options: &Options,
    probes: &[Probe],
    timeout: Duration,
) -> Result<Vec<Probed>, KnockError> {
    let (server, asked, options) = (server.clone(), asked.clone(), options.clone());
    let probes = probes.to_vec();
    let waits = Waits(Arc::new(AtomicBool::new(true)));
    let wanted = Arc::clone(&waits.0);
    apart(move || {
        let mut knocker = Knocker::prepare(&server, &asked, &options)?;
        if !wanted.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        knocker.while_wanted(wanted);
        crate::probe::until_open(&mut knocker, &probes, timeout, |_| {})
    })
    .await
}

/// Tells the thread when nobody waits for it any more.
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// On one of the threads that the runtime has for work that blocks.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KnockError> + Send + 'static,
) -> Result<T, KnockError> {
    spawn_blocking(work).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => Err(KnockError::Wait(io::Error::other("the runtime is shutting down"))),
    })
}
