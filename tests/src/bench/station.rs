//! A host of its own with a gate of its own, so that gates with few and with many grants can be
//! measured in turns.

use super::backends::Candidate;
use crate::lab::{Host, Lab, station_link};
use anyhow::{Context, Result, anyhow};
use spa_server::gate::{AnyGate, Gate as _, Guarded, Mode, Plan, Refusal};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Runtime};

/// The guarded port.
pub(super) const GUARDED: u16 = 22;
/// An open port that nobody guards.
pub(super) const UNGUARDED: u16 = 8080;
/// Where knocks go.
pub(super) const KNOCK_PORT: u16 = 62201;
/// More than any measurement puts there.
const MAX_ELEMENTS: u32 = 262_144;

type Order = Box<dyn FnOnce(&AnyGate, &Runtime) + Send>;

/// See the module's text. The gate lives on a thread in the namespace.
pub(super) struct Station {
    pub(super) host: Host,
    /// The owner's interface to it.
    pub(super) link: String,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Station {
    /// A new host with this gate, installed.
    pub(super) fn new(lab: &Lab, candidate: Candidate) -> Result<Self> {
        let (host, link) = new_host(lab)?;
        let (orders, received) = channel::<Order>();
        let place = host.clone();
        let thread = std::thread::spawn(move || {
            place.inside(move || {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                // Some back-ends take what belongs to a runtime when they are made.
                let gate = runtime.block_on(async { candidate.gate() })?;
                for order in received {
                    order(&gate, &runtime);
                }
                Ok(())
            })
        });
        let mut station = Self { host, link, orders: Some(orders), thread: Some(thread) };
        let plan = plan()?;
        let installed =
            station.run(move |gate, runtime| Ok(runtime.block_on(gate.install(&plan))?));
        match installed {
            Ok(_report) => Ok(station),
            // A thread that has ended knows better why.
            Err(error) => Err(station.end().err().unwrap_or(error)),
        }
    }

    /// Does something with the gate, in its namespace.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AnyGate, &Runtime) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let order: Order = Box::new(move |gate, runtime| {
            // Who asked waits for it.
            let _ = answer.send(work(gate, runtime));
        });
        let orders = self.orders.as_ref().context("the gate is gone")?;
        orders.send(order).map_err(|_| anyhow!("the gate's thread has ended"))?;
        answered.recv().context("the gate's thread has ended")?
    }

    /// Takes all grants away, by a gate made anew.
    pub(super) fn reset(&self) -> Result<()> {
        let plan = plan()?;
        self.run(move |gate, runtime| {
            runtime.block_on(gate.remove())?;
            runtime.block_on(gate.install(&plan))?;
            Ok(())
        })
    }

    fn end(&mut self) -> Result<()> {
        self.orders = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(anyhow!("the gate's thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A host without a gate, and the owner's interface to it.
pub(super) fn new_host(lab: &Lab) -> Result<(Host, String)> {
    // One number for all labs of the process, of which a run has one.
    static NUMBER: AtomicU8 = AtomicU8::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let host = lab.station(number)?;
    Ok((host, station_link(number)))
}

/// What all gates guard.
fn plan() -> Result<Plan> {
    Ok(Plan {
        mode: Mode::Guard,
        refusal: Refusal::Drop,
        guarded: vec![Guarded::plain(format!("tcp/{GUARDED}").parse()?)],
        knock_ports: vec![KNOCK_PORT],
        always_admit: Vec::new(),
        max_elements: MAX_ELEMENTS,
        trial_seconds: None,
    })
}
