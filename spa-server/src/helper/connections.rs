//! The lists of connections as the worker has them: at the other end of a line. All of it blocks.

use super::gate::Asked;
use super::{HelperAnswer, HelperError, HelperRequest};
use crate::connections::{Connections, ConnectionsError, Ended, Inventory};
use crate::gate::{Cut, Guarded};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The kernel may have very many connections to look through.
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module's text.
#[derive(Debug)]
pub struct RemoteConnections(Mutex<Arc<Asked>>);

impl RemoteConnections {
    pub(super) fn new(line: Arc<Asked>) -> Self {
        Self(Mutex::new(line))
    }

    fn ask(&self, request: &HelperRequest) -> Result<HelperAnswer, HelperError> {
        // One question at a time; nothing of it is left when its answer is there.
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.begin(request)?;
        line.end(PATIENCE)
    }

    fn listed(
        &self,
        guarded: &[Guarded],
        in_background: bool,
    ) -> Result<(Inventory, Duration), ConnectionsError> {
        match self.ask(&HelperRequest::List { guarded: guarded.to_vec(), in_background })? {
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
