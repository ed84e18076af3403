//! Servers with few and with very many clients: their start, their memory, a knock, noise.

use super::costs::{Target, at_rate};
use super::results::{Crowd, Latency};
use super::singles::knock;
use super::usage::Processes;
use super::{FireExtent, Site};
use crate::bench::contenders::{SpaServer, ours_under_fire};
use crate::lab::Lab;
use anyhow::{Context, Result};

/// Where files lie in memory.
const MEMORY: &str = "/dev/shm";

/// Measures servers of all sizes, which run side by side, in turns.
pub(super) fn measure(lab: &Lab, extent: &FireExtent) -> Result<Vec<Crowd>> {
    // A hundred thousand files are written and removed: no disk is to be measured with that.
    let directory =
        tempfile::tempdir_in(MEMORY).with_context(|| format!("no file can be made in {MEMORY}"))?;
    let candidate = ours_under_fire().next().context("there is no back-end to measure")?;
    let mut targets = Vec::new();
    let mut crowds = Vec::new();
    for clients in &extent.crowds {
        let server = SpaServer::with(candidate).of_clients(*clients);
        let mut target =
            Target::server(Site::with_files_in(lab, directory.path())?, server, extent)?;
        let (site, server) = target.running()?;
        let start_seconds = server.started_in().as_secs_f64();
        let first = Processes::of(&site.host)?.resident()?;
        let start_again_seconds = server.start_again()?.as_secs_f64();
        site.leave_a_processor()?;
        crowds.push(Crowd {
            clients: *clients,
            start_seconds,
            start_again_seconds,
            resident: Processes::of(&site.host)?.resident()?.max(first),
            latency: Latency::default(),
            noise_ns: 0.0,
        });
        targets.push(target);
    }
    let mut latencies: Vec<Vec<_>> = targets.iter().map(|_| Vec::new()).collect();
    for number in 0..extent.crowd_knocks {
        for (target, latencies) in targets.iter_mut().zip(&mut latencies) {
            let (site, server) = target.running()?;
            latencies.extend(knock(site, server, number)?);
        }
    }
    let costs = at_rate(lab, &mut targets, None, extent)?;
    for ((crowd, latencies), cost) in crowds.iter_mut().zip(latencies).zip(costs) {
        crowd.latency = Latency::of(&latencies);
        crowd.noise_ns = cost.ns;
    }
    targets.into_iter().try_for_each(Target::stop)?;
    Ok(crowds)
}
