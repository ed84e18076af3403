//! Hears from the kernel what anybody changes in nftables, and says what of it may concern the
//! gate.

use super::render::TABLE;
use crate::causes::with_causes;
use crate::gate::types::Doubt;
use crate::netlink::events::{Event, Subscription};
use std::io;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long is waited where the kernel can't be listened to.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// What was heard. Nothing of it is lost when the wait for more is given up.
#[derive(Debug, Default)]
pub(super) struct Watch {
    subscription: Option<AsyncFd<Subscription>>,
    doubt: Option<Doubt>,
}

impl Watch {
    /// Waits until something of the table may have been changed, by whomever. It stays in doubt
    /// until [`Watch::settle`].
    pub(super) async fn hear(&mut self) -> Doubt {
        while self.doubt.is_none() {
            if let Err(error) = self.listen().await {
                tracing::warn!("the kernel can't be listened to: {}", with_causes(&error));
                self.subscription = None;
                tokio::time::sleep(BETWEEN_LOOKS).await;
                self.doubt = Some(Doubt::Everything);
            }
        }
        self.doubt.unwrap_or(Doubt::Everything)
    }

    /// What was heard until now has been looked after.
    pub(super) const fn settle(&mut self) {
        self.doubt = None;
    }

    async fn listen(&mut self) -> io::Result<()> {
        let Some(subscription) = &mut self.subscription else {
            let opened = Subscription::open().map_err(io::Error::other)?;
            self.subscription = Some(registered(opened)?);
            // What was before is unknown.
            self.doubt = Some(Doubt::Everything);
            return Ok(());
        };
        let events = subscription.async_io_mut(Interest::READABLE, Subscription::read).await?;
        self.doubt = self.doubt.max(events.iter().filter_map(concerns).max());
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, since a descriptor may be closed while it is registered; this one is owned"
)]
fn registered(subscription: Subscription) -> io::Result<AsyncFd<Subscription>> {
    AsyncFd::with_interest(subscription, Interest::READABLE)
}

fn concerns(event: &Event) -> Option<Doubt> {
    let is_ours = |family, table: &str| format!("{family} {table}") == TABLE;
    match event {
        Event::Ruleset { family, table, .. } => {
            is_ours(*family, table).then_some(Doubt::Everything)
        }
        Event::Elements { family, table, .. } => is_ours(*family, table).then_some(Doubt::Elements),
        Event::Committed { .. } => None,
        Event::Overflowed => Some(Doubt::Everything),
    }
}
