//! Looks now and then whether the gate still stands in the kernel, and says so when it does not.
//!
//! It only looks. (`spa-server reload` puts the gate back; `spa-server gate remove` must not be
//! undone behind an administrator's back.)

use crate::causes::with_causes;
use crate::gate::{AnyGate, Gate as _, Plan};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// What is found holds for so long.
const HOLDS_FOR: Duration = Duration::from_secs(1);
/// Without being asked it looks this often.
const EVERY: Duration = Duration::from_secs(10);

/// Looks at one gate. Clones share what was found.
#[derive(Clone)]
pub(super) struct Look {
    gate: Arc<AnyGate>,
    last: Arc<Mutex<Last>>,
}

#[derive(Default)]
struct Last {
    at: Option<Instant>,
    wrong: Option<String>,
}

impl Look {
    pub(super) fn new(gate: Arc<AnyGate>) -> Self {
        Self { gate, last: Arc::default() }
    }

    /// What is wrong with the gate, compared with `plan`. Each change of it is logged.
    pub(super) async fn look(&self, plan: &Plan) -> Option<String> {
        let mut last = self.last.lock().await;
        if last.at.is_some_and(|at| at.elapsed() < HOLDS_FOR) {
            return last.wrong.clone();
        }
        let wrong = match self.gate.examine(plan).await {
            Ok(report) if !report.changed => None,
            Ok(_) => Some(
                "its rules are not those that were installed, so that ports may be open to everybody or to nobody; `spa-server reload` puts them back".to_owned(),
            ),
            Err(error) => Some(format!("it can't be looked at: {}", with_causes(&error))),
        };
        if wrong != last.wrong {
            if let Some(wrong) = &wrong {
                tracing::error!("the gate is not as it was installed: {wrong}");
            } else {
                tracing::info!("the gate is as it has to be");
            }
        }
        *last = Last { at: Some(Instant::now()), wrong };
        last.wrong.clone()
    }

    /// Looks in the background, if it is time and nobody is looking.
    pub(super) fn look_again(&self, plan: Plan) {
        let due =
            self.last.try_lock().is_ok_and(|last| last.at.is_none_or(|at| at.elapsed() >= EVERY));
        if due {
            let look = self.clone();
            tokio::spawn(async move { drop(look.look(&plan).await) });
        }
    }

    /// The gate was just installed: what was found before says nothing any more.
    pub(super) async fn installed(&self) {
        *self.last.lock().await = Last::default();
    }
}
