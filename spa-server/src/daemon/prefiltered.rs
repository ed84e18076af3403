//! Whether noise ends in the kernel, and what is told of it.

use crate::capture::KernelFilter;
use crate::clock::Now;
use crate::config::{Prefiltering, Settings};
use crate::pipeline::Told;
use crate::prefilter::{Dropped, Prefilter, Shape};
use crate::privileges;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The prefilter, or why there is none.
pub(super) struct Prefiltered(Result<Loaded, String>);

struct Loaded {
    prefilter: Arc<Prefilter>,
    /// The last time, it could not be told what is noise.
    fails: Arc<AtomicBool>,
}

impl Prefiltered {
    /// Afterwards nothing else is loaded, by this thread or what it starts.
    pub(super) fn load(settings: &Settings, snap_length: i32, clients: usize) -> Self {
        let this = Self::try_load(settings, snap_length, clients);
        if let Err(error) = this.stop_loading() {
            tracing::warn!("the capability CAP_BPF can't be given up: {error}");
        }
        this
    }

    fn try_load(settings: &Settings, snap_length: i32, clients: usize) -> Self {
        if settings.prefilter == Prefiltering::Off {
            return Self(Err("off, by the configuration".to_owned()));
        }
        let shape = Shape {
            ports: settings.knock_ports.clone(),
            packet_length: settings.packet_length.packet(),
            snap_length: snap_length.unsigned_abs(),
        };
        let loaded = Prefilter::load(shape, clients).map_err(|error| error.to_string());
        match &loaded {
            Ok(_) => tracing::info!("noise ends in the kernel"),
            Err(why) => {
                tracing::info!(
                    "noise does not end in the kernel, but in this process, which works as well: {why}"
                );
            }
        }
        Self(
            loaded
                .map(|prefilter| Loaded { prefilter: Arc::new(prefilter), fails: Arc::default() }),
        )
    }

    fn stop_loading(&self) -> io::Result<()> {
        if let Ok(Loaded { prefilter, .. }) = &self.0 {
            // Before Linux 5.19, whoever may load no program may not talk to one either. A thread tries
            // it that nobody needs afterwards.
            let talks = || privileges::give_up_loading().map(|()| prefilter.dropped().is_ok());
            let talks = thread::scope(|scope| scope.spawn(talks).join().unwrap_or(Ok(false)))?;
            if !talks {
                tracing::info!("this kernel has the prefilter keep the capability CAP_BPF");
                return Ok(());
            }
        }
        privileges::give_up_loading()
    }

    /// What captures filter with.
    pub(super) fn filter(&self) -> Option<Arc<dyn KernelFilter>> {
        let Loaded { prefilter, .. } = self.0.as_ref().ok()?;
        Some(Arc::clone(prefilter) as Arc<dyn KernelFilter>)
    }

    /// Who is to be told what is noise.
    pub(super) fn told(&self) -> Option<Told> {
        let Loaded { prefilter, fails } = self.0.as_ref().ok()?;
        let (prefilter, fails) = (Arc::clone(prefilter), Arc::clone(fails));
        Some(Arc::new(move |sieve, generation| {
            let told = prefilter.know(sieve, generation, Now::realtime(), Prefilter::HOLDS);
            let failed = fails.swap(told.is_err(), Ordering::Relaxed);
            if let Err(error) = told
                && !failed
            {
                tracing::warn!(
                    "noise reaches this process, until the next minute at least; nobody is kept out by that: {error}"
                );
            }
        }))
    }

    /// What it has dropped; nothing, where there is none or it does not tell.
    pub(super) fn dropped(&self) -> Dropped {
        let loaded = self.0.as_ref().ok();
        loaded.and_then(|loaded| loaded.prefilter.dropped().ok()).unwrap_or_default()
    }

    pub(super) fn status(&self) -> String {
        match &self.0 {
            Ok(loaded) if loaded.fails.load(Ordering::Relaxed) => {
                "in the kernel, which was not told what is noise: see the log".to_owned()
            }
            Ok(loaded) if !loaded.prefilter.is_everywhere() => {
                "in the kernel, but not on every interface: see the log".to_owned()
            }
            Ok(_) => "in the kernel".to_owned(),
            Err(why) => why.clone(),
        }
    }
}
