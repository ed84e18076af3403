//! Grants that have ended, remembered for as long as connections live that they let in. Pure.

use super::{Cover, Grant};
use crate::clock::BootMicros;
use std::collections::VecDeque;

/// More are not remembered: the oldest are forgotten first.
const MOST: usize = 65_536;

/// The grants that have ended, and when.
///
/// A connection lives on when its grant has ended. Who is to be cut off by then is told by this.
#[derive(Debug, Default)]
pub struct FormerGrants(VecDeque<(BootMicros, Grant)>);

impl FormerGrants {
    /// Remembers grants that have just ended.
    pub fn remember(&mut self, now: BootMicros, grants: impl IntoIterator<Item = Grant>) {
        self.0.extend(grants.into_iter().map(|grant| (now, grant)));
        let excess = self.0.len().saturating_sub(MOST);
        self.0.drain(..excess);
    }

    /// Forgets those that ended before `since` and that nothing lives of.
    pub fn forget(&mut self, since: BootMicros, lives: impl Fn(&Grant) -> bool) {
        self.0.retain(|(ended, grant)| *ended >= since || lives(grant));
    }

    /// Those that were live at any time since then cover this.
    pub fn since(&self, since: BootMicros) -> Cover {
        let ended_since = self.0.iter().filter(|(ended, _)| *ended >= since);
        ended_since.map(|(_, grant)| grant).collect()
    }

    /// All of them, the oldest first; one that came again is there more than once.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter().map(|(_, grant)| grant)
    }
}
