//! The elements in the table's sets, over netlink. Which set an element is in is said by
//! [`Shape`].

use super::render::ARMED;
use super::shape::Shape;
use crate::gate::GateError;
use crate::gate::types::{Change, LiveElement};
use crate::netlink::nft::{Element, ElementChange, Nft, SetName, TableFamily};
use crate::netlink::{NetlinkError, Reason, nft};
use crate::priority::unhurried;
use spa_proto::Port;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// More changes than this are made where blocking holds nobody up.
const FEW: usize = 256;

/// The protocols that a gate on trial refuses, as long as they are in its set; as the kernel has them.
const REFUSED_ON_TRIAL: [u8; 2] = [6, 17];
/// How many elements that set holds.
pub(super) const ALL_ARMED: usize = REFUSED_ON_TRIAL.len();

/// Speaks to the kernel.
///
/// The socket stays open: closing it makes the kernel wait until all that the last transaction
/// took away is really gone, which takes longer than the transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Elements {
    nft: Arc<Mutex<Option<Nft>>>,
}

impl Elements {
    /// Makes these changes in one transaction; of those that are about one element, the last
    /// counts. Says whether the ruleset has another number by it for sure.
    pub(super) async fn apply(&self, changes: Vec<(Shape, Change)>) -> Result<bool, GateError> {
        let few = changes.len() <= FEW;
        let this = self.clone();
        let work = move || this.with(|nft| write(nft, &changes));
        let done = if few { work() } else { blocking(work).await };
        done.map_err(|error| match error {
            NetlinkError::Refused { doing, refusal } if refusal.reason() == Reason::Full => {
                GateError::Full { name: doing.trim_start_matches("change nftables ").to_owned() }
            }
            error => error.into(),
        })
    }

    /// The elements of these sets; `None` if one of them isn't there.
    pub(super) async fn read(
        &self,
        shapes: impl IntoIterator<Item = Shape>,
    ) -> Result<Option<Vec<(Shape, LiveElement)>>, GateError> {
        let shapes: Vec<_> = shapes.into_iter().collect();
        let this = self.clone();
        match blocking(move || this.with(|nft| list(nft, &shapes))).await {
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(None),
            listed => Ok(Some(listed?)),
        }
    }

    /// How many of [`ALL_ARMED`] are there, and not over.
    pub(super) fn armed(&self) -> Result<usize, GateError> {
        let found = match self.with(|nft| nft.elements(set(ARMED))) {
            Err(error) if error.reason() == Some(Reason::Missing) => Vec::new(),
            found => found?,
        };
        let is_there = |protocol: &u8| {
            found.iter().any(|one| {
                one.element == Element::Key(vec![*protocol])
                    && one.expires_in.is_none_or(|left| !left.is_zero())
            })
        };
        Ok(REFUSED_ON_TRIAL.iter().filter(|protocol| is_there(protocol)).count())
    }

    /// The number of the ruleset: another one after each transaction of anybody's.
    pub(super) fn generation(&self) -> Result<u32, GateError> {
        Ok(self.with(Nft::generation)?)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Nft) -> Result<T, NetlinkError>,
    ) -> Result<T, NetlinkError> {
        // Who panicked left a socket that answers in the middle of something.
        let mut kept = self.nft.lock().unwrap_or_else(|poisoned| {
            let mut kept = poisoned.into_inner();
            *kept = None;
            kept
        });
        let nft = match &mut *kept {
            Some(nft) => nft,
            none => none.insert(Nft::open()?),
        };
        let done = work(nft);
        if done.as_ref().is_err_and(|error| error.refusal().is_none()) {
            *kept = None;
        }
        done
    }
}

fn write(nft: &mut Nft, changes: &[(Shape, Change)]) -> Result<bool, NetlinkError> {
    let names: Vec<_> = changes.iter().map(|(shape, _)| shape.to_string()).collect();
    let changes = names.iter().zip(changes).map(|(name, (_, change))| {
        let (set, element) = (set(name), key(change));
        match change {
            Change::Withdraw { .. } => ElementChange::Delete { set, element },
            Change::Admit { seconds, .. } => {
                let timeout = Some(Duration::from_secs((*seconds).into()));
                ElementChange::Add { set, element, timeout }
            }
        }
    });
    nft.apply(&changes.collect::<Vec<_>>())
}

fn list(nft: &mut Nft, shapes: &[Shape]) -> Result<Vec<(Shape, LiveElement)>, NetlinkError> {
    let mut found = Vec::new();
    for shape in shapes {
        let elements = nft.elements(set(&shape.to_string()))?;
        found.extend(elements.iter().filter_map(|one| Some((*shape, live(*shape, one)?))));
    }
    Ok(found)
}

const fn set(name: &str) -> SetName<'_> {
    SetName { family: TableFamily::INET, table: "spa", set: name }
}

fn key(change: &Change) -> Element {
    let element = change.element();
    let address = element.source.address();
    match element.ports.single() {
        None => Element::Address(address),
        Some(Port { transport, number }) => {
            let (source, port) = (address.into(), number.get());
            Element::Ports { source, transport, first: port, last: port }
        }
    }
}

fn live(shape: Shape, found: &nft::LiveElement) -> Option<LiveElement> {
    let element = match found.element {
        Element::Address(address) => shape.element(address, None),
        Element::Ports { source, transport, first, .. } => {
            let number = NonZeroU16::new(first)?;
            shape.element(source.addr(), Some(Port { transport, number }))
        }
        Element::Key(_) => None,
    }?;
    let seconds = found.expires_in.map_or(0, |left| left.as_secs());
    Some(LiveElement { element, seconds_left: u32::try_from(seconds).unwrap_or(u32::MAX) })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, NetlinkError> {
    // A thread that this begins is the runtime's, and stays.
    match unhurried(|| tokio::task::spawn_blocking(work)).await {
        Ok(done) => done,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}
