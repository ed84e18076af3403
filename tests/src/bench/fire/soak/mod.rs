//! A server under a mixed load for as long as one likes: valid knocks of many clients that open, close
//! and end, amid noise of all kinds, while it is asked how it is, reads changed clients and loses its
//! link. What it uses is read again and again, and at the end it is told whether anything grew.

mod criteria;
mod load;
mod samples;

pub use criteria::Criterion;
pub use samples::Sample;

use super::Site;
use crate::bench::contenders::{Contender as _, SpaServer, ours_under_fire};
use crate::bench::report::grid;
use crate::lab::Lab;
use crate::server::Server;
use anyhow::{Context, Result};
use load::Load;
use samples::Watched;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Clients that knock in turns.
const CLIENTS: usize = 200;
/// The server is looked at so often in all, but not more often than every second.
const SAMPLES: u32 = 120;
/// Lines of the table at most.
const ROWS: usize = 24;

/// What came of it.
#[derive(Debug)]
pub struct Soak {
    /// What the server used, in the order of time.
    pub samples: Vec<Sample>,
    /// What it is judged by.
    pub criteria: Vec<Criterion>,
}

impl Soak {
    /// The criteria that were missed.
    pub fn missed(&self) -> impl Iterator<Item = &Criterion> {
        self.criteria.iter().filter(|criterion| !criterion.is_met)
    }
}

/// Two tables: what the server used, and what it is judged by.
impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let every = self.samples.len().div_ceil(ROWS).max(1);
        let last = self.samples.len().saturating_sub(1);
        let told = self.samples.iter().enumerate();
        let told = told.filter(|(at, _)| at.is_multiple_of(every) || *at == last);
        let rows: Vec<_> = told.map(|(_, sample)| sample.row()).collect();
        write!(f, "{}", grid(&Sample::HEADS, &rows))?;
        let rows: Vec<_> = self
            .criteria
            .iter()
            .map(|one| {
                let verdict = if one.is_met { "met" } else { "MISSED" };
                vec![one.name.to_owned(), one.found.clone(), verdict.to_owned()]
            })
            .collect();
        write!(f, "\n{}", grid(&["criterion", "found", ""], &rows))
    }
}

/// Keeps a server under the load for so long. An error is what keeps the load itself from going on;
/// what the server misses is in the result.
pub fn soak(duration: Duration) -> Result<Soak> {
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    let candidate = ours_under_fire().next().context("there is no back-end")?;
    let mut server = SpaServer::with(candidate).of_clients(CLIENTS);
    site.start(&mut server)?;
    let watched = Watched::of(server.server()?)?;
    let interval = (duration / SAMPLES).max(Duration::from_secs(1));
    let (start, is_over) = (Instant::now(), AtomicBool::new(false));
    let (samples, load) = scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                samples.push(watched.sample(start)?);
                sleep(interval);
            }
            Ok(samples)
        });
        let load = Load::on(&site, &mut server).last(start, duration);
        is_over.store(true, Ordering::Relaxed);
        let samples: Result<Vec<Sample>> =
            sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (samples, load)
    });
    // What ended the load is the better reason why the server can't be looked at.
    let account = || server.server().map(Server::account).unwrap_or_default();
    let tally = load.with_context(account)?;
    let samples = samples?;
    let criteria = criteria::judge(&samples, &tally);
    server.server_mut()?.ensure_unharmed()?;
    server.stop(&site.host)?;
    Ok(Soak { samples, criteria })
}
