//! What stands before an installation, and how it is brought back when that fails.

use super::listing::Listing;
use super::shape::{self, Shape};
use super::{NftablesGate, script};
use crate::gate::GateError;
use crate::gate::types::{LiveElement, Plan};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// A table as it stands before an installation.
#[derive(Debug)]
pub(super) struct Standing {
    script: String,
    shapes: BTreeSet<Shape>,
    elements: Vec<(Shape, LiveElement)>,
    read: Instant,
}

impl NftablesGate {
    /// The table that is there, if any, to be brought back by [`Self::undo`].
    pub(super) async fn standing(
        &self,
        listing: Option<&Listing>,
    ) -> Result<Option<Standing>, GateError> {
        let read = Instant::now();
        let elements = self.all_elements(listing).await?;
        let shapes = listing.into_iter().flat_map(Listing::shapes).collect();
        let script = self.nft.table_as_script().await?;
        Ok(script.map(|script| Standing { script, shapes, elements, read }))
    }

    /// Brings back what stood before this plan was to be installed; but for the elements that have
    /// ended meanwhile, and each with the time that it has left by now.
    pub(super) async fn undo(
        &self,
        before: Option<Standing>,
        plan: &Plan,
    ) -> Result<(), GateError> {
        let doing = "undo the installation";
        let Some(Standing { script, shapes, elements, read }) = before else {
            return self.nft.run(doing, &script::remove()).await;
        };
        let now = match self.listing().await {
            Ok(Some(listing)) => self.all_elements(Some(&listing)).await.ok(),
            // Where nothing is left, nothing says what has ended.
            Ok(None) | Err(_) => None,
        };
        let elements = remaining(elements, read.elapsed(), plan, now);
        self.nft.run(doing, &script::bring_back(&script, &shapes, &elements)).await
    }
}

/// What is left of elements that were there so long ago, by what is there now under the plan; `None`:
/// nobody knows.
fn remaining(
    before: Vec<(Shape, LiveElement)>,
    ago: Duration,
    plan: &Plan,
    now: Option<Vec<(Shape, LiveElement)>>,
) -> Vec<(Shape, LiveElement)> {
    let now: Option<HashMap<_, _>> = now.map(|now| {
        now.into_iter().map(|(shape, live)| ((shape, live.element), live.seconds_left)).collect()
    });
    let ago = u32::try_from(ago.as_secs()).unwrap_or(u32::MAX);
    let left = |shape: Shape, live: LiveElement| {
        let found = now.as_ref().map(|now| now.get(&(shape, live.element)).copied());
        match found {
            Some(Some(seconds_left)) => Some(seconds_left),
            // It was used up, or is over.
            Some(None) if shape::under(plan, live.element) == Some(shape) => None,
            // The installation has taken it out.
            Some(None) | None => live.seconds_left.checked_sub(ago),
        }
    };
    before
        .into_iter()
        .filter_map(|(shape, live)| {
            left(shape, live).map(|seconds_left| (shape, LiveElement { seconds_left, ..live }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::nftables::samples;
    use crate::gate::types::Element;

    #[test]
    fn what_the_installation_took_out_has_less_time_left() {
        let plan = samples::plan();
        let of = |ports: &str, seconds_left| {
            let element =
                Element { source: "192.0.2.7".parse().unwrap(), ports: ports.parse().unwrap() };
            (Shape::parse("spa4").unwrap(), LiveElement { element, seconds_left })
        };
        let ago = Duration::from_millis(20_900);
        let before = [of("tcp/22", 600), of("tcp/23", 600), of("tcp/24", 19)].to_vec();
        let after = |now| remaining(before.clone(), ago, &plan, now);
        assert_eq!(after(Some(vec![])), [of("tcp/23", 580)]);
        assert_eq!(
            after(Some(vec![of("tcp/22", 7), of("tcp/25", 600)])),
            [of("tcp/22", 7), of("tcp/23", 580)]
        );
        assert_eq!(after(None), [of("tcp/22", 580), of("tcp/23", 580)]);
    }
}
