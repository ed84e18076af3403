//! Hears of changes that others make to the rules, where the kernel tells: of those of
//! iptables-nft it does.

use crate::causes::with_causes;
use crate::gate::render::TableName;
use crate::gate::types::Doubt;
use crate::netlink::events::{Event, Subscription};
use crate::netlink::nft::TableFamily;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// How often is looked where the kernel tells of no change.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// How long one change waits for those that follow it: a program that writes its rules anew takes
/// many steps.
const SETTLED: Duration = Duration::from_millis(50);
/// How often the thread that listens sees whether anybody still wants to know.
const BETWEEN_SIGHS: Duration = Duration::from_secs(1);

/// What others do to the rules of iptables-nft.
#[derive(Debug, Default)]
pub(super) struct Changes {
    ear: OnceLock<Arc<Ear>>,
}

/// What the thread that listens has heard.
#[derive(Debug, Default)]
struct Ear {
    heard: AtomicBool,
    /// The thread has ended: only looking is left.
    deaf: AtomicBool,
    notify: Notify,
}

impl Changes {
    /// From now on all changes are heard of, those in the network namespace of this thread. Where
    /// that can't be, looking has to do.
    pub(super) fn subscribe(&self) {
        if self.ear.get().is_some() {
            return;
        }
        let ear = Arc::new(Ear::default());
        match listen(&ear) {
            Ok(()) => drop(self.ear.set(ear)),
            Err(error) => {
                tracing::debug!("changes of the rules aren't told: {}", with_causes(&error));
            }
        }
    }

    /// Waits for a change, or until it is time to look. The kernel tells nothing of sets, nor of
    /// iptables-legacy, to which the gate's tools may have been changed.
    pub(super) async fn next(&self, has_sets: bool, in_nft: impl Fn() -> bool + Send) -> Doubt {
        let ear = loop {
            let hears = |ear: &&Arc<Ear>| in_nft() && !ear.deaf.load(Ordering::Acquire);
            let Some(ear) = self.ear.get().filter(hears) else {
                sleep(BETWEEN_LOOKS).await;
                return Doubt::Everything;
            };
            match timeout(BETWEEN_LOOKS, ear.change()).await {
                Ok(()) => break ear,
                Err(_) if has_sets => return Doubt::Elements,
                Err(_) => {}
            }
        };
        sleep(SETTLED).await;
        // Only now: what has been heard isn't lost when nobody waits any more. Whoever looks now
        // sees all of it.
        ear.heard.store(false, Ordering::Release);
        Doubt::Everything
    }
}

impl Ear {
    async fn change(&self) {
        while !self.heard.load(Ordering::Acquire) {
            self.notify.notified().await;
        }
    }

    fn hear(&self) {
        self.heard.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// Listens on a thread of its own, as long as the ear is there.
fn listen(ear: &Arc<Ear>) -> io::Result<()> {
    let subscription = Subscription::open().map_err(io::Error::other)?;
    let ear = Arc::downgrade(ear);
    let name = "gate-changes".to_owned();
    thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = hear_all(subscription, &ear) {
            tracing::warn!("changes of the rules aren't told any more: {}", with_causes(&error));
        }
        if let Some(ear) = ear.upgrade() {
            ear.deaf.store(true, Ordering::Release);
            ear.hear();
        }
    })?;
    Ok(())
}

fn hear_all(mut subscription: Subscription, ear: &Weak<Ear>) -> io::Result<()> {
    loop {
        let is_told = subscription.wait(BETWEEN_SIGHS)?;
        let Some(ear) = ear.upgrade() else { return Ok(()) };
        if !is_told {
            continue;
        }
        match subscription.read() {
            Ok(events) => {
                if events.iter().any(concerns_us) {
                    ear.hear();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn concerns_us(event: &Event) -> bool {
    match event {
        Event::Overflowed => true,
        Event::Ruleset { family, table, .. } => {
            matches!(*family, TableFamily::IP | TableFamily::IP6)
                && TableName::ALL.iter().any(|ours| ours.as_str() == table)
        }
        // iptables has no sets of nftables.
        Event::Elements { .. } | Event::Committed { .. } => false,
    }
}
