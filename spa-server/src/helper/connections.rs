//! The lists of connections as the worker has them: at the other end of a line. All of it blocks.

use super::gate::Asked;
use super::{HelperAnswer, HelperError, HelperRequest};
use crate::connections::{Connections, ConnectionsError, Ended, Inventory};
use crate::gate::{Cut, Guarded};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The kernel may have very many connections to look through.
const PATIENCE: Duration = Duration::from_secs(120);
/// Behind noise that takes up the processors it may take very long.
const PATIENCE_BEHIND: Duration = Duration::from_secs(1800);

/// See the module's text.
#[derive(Debug)]
pub struct RemoteConnections {
    lists: Mutex<Arc<Asked>>,
    /// For what nobody waits for: it takes as long as others leave it.
    behind: Mutex<Arc<Asked>>,
}

impl RemoteConnections {
    pub(super) fn new(lists: Arc<Asked>, behind: Arc<Asked>) -> Self {
        Self { lists: Mutex::new(lists), behind: Mutex::new(behind) }
    }

    /// Has the helper read the configuration anew: the worker has another one in force.
    pub(crate) fn reread(&self) -> Result<(), HelperError> {
        ask(&self.behind, &HelperRequest::Reread, PATIENCE_BEHIND).map(drop)
    }

    fn ask(&self, request: &HelperRequest) -> Result<HelperAnswer, HelperError> {
        ask(&self.lists, request, PATIENCE)
    }

    fn listed(
        &self,
        guarded: &[Guarded],
        in_background: bool,
    ) -> Result<(Inventory, Duration), ConnectionsError> {
        let request = HelperRequest::List { guarded: guarded.to_vec(), in_background };
        let (line, patience) =
            if in_background { (&self.behind, PATIENCE_BEHIND) } else { (&self.lists, PATIENCE) };
        match ask(line, &request, patience)? {
            HelperAnswer::Listed { connections, took } => Ok((connections, took)),
            _ => Err(HelperError::Confused.into()),
        }
    }

    fn cuts(&self, request: &HelperRequest) -> Result<Vec<Cut>, ConnectionsError> {
        match self.ask(request)? {
            HelperAnswer::Cuts(cuts) => Ok(cuts),
            _ => Err(HelperError::Confused.into()),
        }
    }
}

fn ask(
    line: &Mutex<Arc<Asked>>,
    request: &HelperRequest,
    patience: Duration,
) -> Result<HelperAnswer, HelperError> {
    // One question at a time; nothing of it is left when its answer is there.
    let line = line.lock().unwrap_or_else(PoisonError::into_inner);
    line.begin(request)?;
    line.end(patience)
}

impl Connections for RemoteConnections {
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        self.listed(guarded, false).map(|(connections, _)| connections)
    }

    fn list_behind(&self, guarded: &[Guarded]) -> Result<(Inventory, Duration), ConnectionsError> {
        self.listed(guarded, true)
    }

    fn established(
        &self,
        those: &Inventory,
        guarded: &[Guarded],
    ) -> Result<Vec<Cut>, ConnectionsError> {
        let (those, guarded) = (those.clone(), guarded.to_vec());
        self.cuts(&HelperRequest::Established { those, guarded })
    }

    fn end(
        &self,
        those: &Inventory,
        established: &[Cut],
        guarded: &[Guarded],
    ) -> Result<Ended, ConnectionsError> {
        let request = HelperRequest::End {
            those: those.clone(),
            established: established.to_vec(),
            guarded: guarded.to_vec(),
        };
        match self.ask(&request)? {
            HelperAnswer::Ended(ended) => Ok(ended),
            _ => Err(HelperError::Confused.into()),
        }
    }

    fn talked_to(&self, those: &[Cut]) -> Result<Vec<Cut>, ConnectionsError> {
        self.cuts(&HelperRequest::TalkedTo(those.to_vec()))
    }
}
