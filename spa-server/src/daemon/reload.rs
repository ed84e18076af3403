//! A new configuration while the server runs: all of it, or nothing.

use super::{Daemon, start, status};
use crate::causes::with_causes;
use crate::clock::Now;
use crate::config::{Config, GateSettings, ServerKeys, Settings, locked_out};
use crate::control::{ControlResponse, Reloaded};
use crate::enrolment::EnrolmentStoreError;
use crate::gate::InstallReport;
use crate::policy::Policy;
use spa_proto::ClientId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};

/// A configuration that is being read, off the runtime's thread.
pub(super) type Reading = JoinHandle<Result<Config, Refused>>;

/// Why a configuration is being read.
pub(super) struct Reload {
    reading: AbortHandle,
    orders: Orders,
    /// How many records of announced keys there were when the reading began.
    enrolment_records: usize,
}

/// Who has ordered what, in the order in which they came.
type Orders = Vec<(Order, Option<oneshot::Sender<ControlResponse>>)>;

/// A configuration with which something is wrong.
#[derive(Debug)]
pub(super) struct Refused {
    why: String,
    /// Those whom it locks out all the same.
    locked_out: Vec<ClientId>,
}

/// What is told to whoever wanted another gate than somebody else right after him.
const SUPERSEDED: &str = "another order to install the gate came at the same moment, and is the one that was carried out; `spa-server gate show` says how it stands";

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Put it in force; a gate that is away stays away.
    Reload,
    /// Put it in force, with the gate, which may be on trial at first.
    Install(Option<Duration>),
}

impl Reload {
    /// The gate is taken away: whoever has asked for one before that gets none. The configuration
    /// is read all the same.
    pub(super) fn drop_installs(&mut self) {
        let installs = self.orders.extract_if(.., |(order, _)| *order != Order::Reload);
        for asked_by in installs.filter_map(|(_, asked_by)| asked_by) {
            // Whoever asked may have gone.
            let _ = asked_by.send(ControlResponse::error(&"the gate was removed meanwhile"));
        }
    }
}

impl Daemon {
    pub(super) fn read_anew(
        &mut self,
        order: Order,
        asked_by: Option<oneshot::Sender<ControlResponse>>,
    ) {
        let mut orders = self.reload.take().map(|reload| {
            // What is being read may be older than the change that this is about.
            reload.reading.abort();
            reload.orders
        });
        orders.get_or_insert_default().push((order, asked_by));
        self.begin_reading(orders.unwrap_or_default());
    }

    fn begin_reading(&mut self, orders: Orders) {
        let path = self.config_path.clone();
        let configured = Arc::clone(&self.configured);
        let state_directory = self.settings.state_directory.clone();
        let (store, expected) =
            (self.keys.store.path().to_owned(), self.keys.store.expected_records());
        let reading = tokio::task::spawn_blocking(move || {
            let refused =
                |why| Refused { why, locked_out: locked_out(&path, configured.enabled()) };
            let config = Config::load_beside(&path, &state_directory)
                .map_err(|error| refused(with_causes(&error)))?;
            // What the records have lost, this server still knows: it must not forget it without a
            // word, nor let a key hold again that was replaced.
            let found = config.enrolment_records;
            match expected {
                Some(expected) if expected != found => {
                    let changed = EnrolmentStoreError::Changed { path: store, found, expected };
                    Err(refused(changed.to_string()))
                }
                _ => Ok(config),
            }
        });
        let enrolment_records = self.keys.store.enrolments().records;
        self.reload = Some(Reload { reading: reading.abort_handle(), orders, enrolment_records });
        self.reading = Some(reading);
    }

    /// Another key than the present one is taken only with the present one beside it: who puts a
    /// wrong file in its place would lock everybody out.
    fn judge_server_keys(&self, new: &ServerKeys) -> Result<(), String> {
        let present = self.keys.server.present.public();
        if new.holds(&present, Now::read().realtime) {
            return Ok(());
        }
        Err(format!(
            "the server's private key is another one, and the one that clients know ({present}) is not there as previous-private-key-file; change it with `spa-server rotate-key`, or restart the server to do without the old one"
        ))
    }

    pub(super) async fn reloaded(&mut self, config: Result<Config, Refused>) {
        if let Some(reload) = &self.reload
            && reload.enrolment_records != self.keys.store.enrolments().records
        {
            // A client has brought a key meanwhile, which this configuration may not know. Whoever
            // is to be locked out doesn't wait for that.
            if let Ok(config) = &config {
                let locked_out = self.locked_out_by(&config.policy());
                self.lock_out(&locked_out).await;
            }
            let orders = self.reload.take().map(|reload| reload.orders).unwrap_or_default();
            self.begin_reading(orders);
            return;
        }
        let orders = self.reload.take().map(|reload| reload.orders).unwrap_or_default();
        // The last word on the gate holds.
        let last = orders.iter().rev().find(|(order, _)| *order != Order::Reload);
        let order = last.map_or(Order::Reload, |(order, _)| *order);
        let (outcome, locked_out) = match config {
            Ok(mut config) => {
                let locked_out = self.locked_out_by(&config.policy());
                (Box::pin(self.put_in_force(&mut config, order)).await, locked_out)
            }
            Err(Refused { why, locked_out }) => (Err(why), locked_out),
        };
        let outcome = match outcome {
            Ok((reloaded, report)) => {
                tracing::info!(
                    clients = reloaded.clients,
                    services = reloaded.services,
                    revoked = reloaded.revoked.len(),
                    "configuration reloaded"
                );
                for setting in &reloaded.restart_needed {
                    tracing::warn!("the new {setting} takes effect at the next start");
                }
                self.last_reload = None;
                self.left_out.clear();
                Ok((reloaded, report))
            }
            Err(why) => {
                let why = why + &self.lock_out(&locked_out).await;
                tracing::error!(
                    "the new configuration is refused, the old one stays in force: {why}"
                );
                self.last_reload = Some(why.clone());
                Err(why)
            }
        };
        for (asked, asked_by) in orders {
            if let Some(asked_by) = asked_by {
                // Whoever asked may have gone.
                let _ = asked_by.send(answer(&outcome, asked, order));
            }
        }
    }

    fn locked_out_by(&self, policy: &Policy) -> Vec<ClientId> {
        let stay: BTreeSet<_> = policy.enabled().map(|(_, introduction, _)| introduction).collect();
        let clients = self.configured.enabled();
        let out = clients.filter(|(_, introduction, _)| !stay.contains(introduction));
        out.map(|(client, ..)| client).collect()
    }

    /// Nothing else of a configuration is in force, but whoever is to be locked out is: that can't
    /// wait until somebody has mended the rest. Says so. Who was locked out so before, and is not to
    /// be any more, is not.
    async fn lock_out(&mut self, clients: &[ClientId]) -> String {
        self.judge.lock().policy = Arc::new(self.configured.without(clients));
        if clients.is_empty() {
            return String::new();
        }
        let names: BTreeSet<_> =
            clients.iter().filter_map(|client| self.configured.name(client)).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let trouble = match self.authorizer.enforce_policy(Now::read().realtime).await {
            Ok(_) => String::new(),
            Err(error) => format!(
                "; what is open for them can't be withdrawn yet, which is tried every second: {}",
                with_causes(&error)
            ),
        };
        format!("; locked out all the same: {names}{trouble}")
    }

    /// First the gate, which can fail; then the policy, which can't.
    async fn put_in_force(
        &mut self,
        config: &mut Config,
        order: Order,
    ) -> Result<(Reloaded, InstallReport), String> {
        self.judge_server_keys(&config.keys)?;
        let restart_needed = status::fixed_settings_that_differ(&self.settings, &config.settings);
        // Those keep their old values until then.
        let settings = Settings {
            interfaces: self.settings.interfaces.clone(),
            knock_ports: self.settings.knock_ports.clone(),
            packet_length: self.settings.packet_length,
            freshness: self.settings.freshness,
            state_directory: self.settings.state_directory.clone(),
            control_socket: self.settings.control_socket.clone(),
            prefilter: self.settings.prefilter,
            gate: GateSettings {
                backend: self.settings.gate.backend,
                tools: self.settings.gate.tools.clone(),
                hook: self.settings.gate.hook.clone(),
                ..config.settings.gate.clone()
            },
            ..config.settings.clone()
        };
        let report = self.put_up(&settings, order).await?;
        start::keep_secrets(config, &settings.state_directory);
        let now = Now::read();
        {
            let mut judge = self.judge.lock();
            judge.policy = config.policy();
            self.configured = Arc::clone(&judge.policy);
            config.instruct(&mut judge.receiver);
            judge.receiver.roll(now.realtime);
        }
        self.keys.roster = config.roster().clone();
        self.keys.server = config.keys.clone();
        self.end_previous_key(now.realtime);
        self.authorizer.set_max_grants(usize::try_from(settings.max_grants).unwrap_or(usize::MAX));
        let boottime = now.boottime;
        let mut warnings = start::warnings(&report);
        let revoked = match self.authorizer.enforce_policy(now.realtime).await {
            Ok(gone) => gone.iter().map(|grant| self.authorizer.view(grant, boottime)).collect(),
            Err(error) => {
                let warning = format!(
                    "grants that the new configuration forbids can't be withdrawn yet, which is tried every second: {}",
                    with_causes(&error)
                );
                tracing::error!("{warning}");
                warnings.push(warning);
                Vec::new()
            }
        };
        // Only now: what it admits no more is withdrawn. It reads by itself who has come.
        let lists = Arc::clone(&self.lists);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = lists.reread() {
                tracing::error!("the gate helper did not read it: {}", with_causes(&error));
            }
        });
        self.lift_who_needs_no_knock(&settings.gate.always_admit);
        self.clients = config.count;
        let services = u64::try_from(settings.services.len()).unwrap_or(u64::MAX);
        self.settings = settings;
        let clients = u64::try_from(self.clients.total).unwrap_or(u64::MAX);
        Ok((Reloaded { clients, services, revoked, warnings, restart_needed }, report))
    }
}

/// What somebody is told who has asked for this, when that was done.
fn answer(
    outcome: &Result<(Reloaded, InstallReport), String>,
    asked: Order,
    done: Order,
) -> ControlResponse {
    match (outcome, asked) {
        // He would believe that there is a trial, or none.
        (Ok(_), Order::Install(_)) if asked != done => ControlResponse::error(&SUPERSEDED),
        (Ok((reloaded, _)), Order::Reload) => ControlResponse::Reloaded(reloaded.clone()),
        (Ok((reloaded, report)), Order::Install(_)) => {
            ControlResponse::GateInstalled { report: report.clone(), reloaded: reloaded.clone() }
        }
        (Err(why), _) => ControlResponse::Error { message: why.clone() },
    }
}

/// Waits for the configuration that is being read; for ever, when none is.
pub(super) async fn reading(reading: &mut Option<Reading>) -> Result<Config, Refused> {
    let Some(being_read) = reading else { return std::future::pending().await };
    let config = being_read.await.unwrap_or_else(|panicked| {
        let why = format!("reading it failed: {panicked}");
        Err(Refused { why, locked_out: Vec::new() })
    });
    *reading = None;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_removal_answers_installations_that_wait_and_leaves_reloads() {
        let reading = tokio::task::spawn_blocking(|| panic!("not read"));
        let (orders, mut answers): (Vec<_>, Vec<_>) =
            [Order::Install(None), Order::Reload, Order::Install(Some(Duration::from_secs(60)))]
                .into_iter()
                .map(|order| {
                    let (asked_by, answer) = oneshot::channel();
                    ((order, Some(asked_by)), answer)
                })
                .unzip();
        let reading = reading.abort_handle();
        let mut reload = Reload { reading, orders, enrolment_records: 0 };
        reload.drop_installs();
        assert!(matches!(reload.orders[..], [(Order::Reload, Some(_))]));
        assert!(answers.remove(1).try_recv().is_err());
        for mut answer in answers {
            let Ok(ControlResponse::Error { message }) = answer.try_recv() else { panic!() };
            assert!(message.contains("removed meanwhile"), "{message}");
        }
    }

    #[test]
    fn whoever_wanted_a_trial_is_told_if_there_is_none() {
        let trial = Order::Install(Some(Duration::from_secs(60)));
        let for_good = Order::Install(None);
        let reloaded = Reloaded {
            clients: 1,
            services: 1,
            revoked: Vec::new(),
            warnings: Vec::new(),
            restart_needed: Vec::new(),
        };
        let outcome = Ok((reloaded, InstallReport::default()));
        for (asked, done) in [(trial, for_good), (for_good, trial)] {
            let told = answer(&outcome, asked, done);
            assert_eq!(told, ControlResponse::error(&SUPERSEDED));
            let told = answer(&outcome, done, done);
            assert!(matches!(told, ControlResponse::GateInstalled { .. }), "{told:?}");
            let told = answer(&outcome, Order::Reload, done);
            assert!(matches!(told, ControlResponse::Reloaded(_)), "{told:?}");
        }
        // What failed has failed for all.
        let why = "no".to_owned();
        let told = answer(&Err(why.clone()), trial, for_good);
        assert_eq!(told, ControlResponse::Error { message: why });
    }

    #[tokio::test]
    async fn a_reading_that_panicked_is_a_reload_that_is_refused() {
        let mut reading = Some(tokio::task::spawn_blocking(|| panic!("a bug")));
        let refused = super::reading(&mut reading).await.unwrap_err();
        assert!(refused.why.contains("panicked"), "{refused:?}");
        assert!(reading.is_none());
    }
}
