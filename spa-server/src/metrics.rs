//! What `status` tells, for Prometheus: its text format (version 0.0.4), base units, names as its
//! documentation on naming wants them. Pure.
//!
//! No client, no address and no service is in it: whoever may read metrics need not know these.

use crate::control::{LatencyStatus, Status};
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// What a response says that its body is.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The metrics of one moment.
///
/// # Errors
///
/// None for which there is a reason: two metrics would have one name.
pub fn render(status: &Status) -> Result<String, prometheus::Error> {
    let all = Families(Registry::new_custom(Some("spa".into()), None)?);
    all.up(true)?;
    daemon(&all, status)?;
    gate(&all, status)?;
    knocks(&all, status)?;
    TextEncoder::new().encode_to_string(&all.0.gather())
}

/// The same where no daemon runs.
///
/// # Errors
///
/// As [`render`].
pub fn render_down() -> Result<String, prometheus::Error> {
    let all = Families(Registry::new_custom(Some("spa".into()), None)?);
    all.up(false)?;
    TextEncoder::new().encode_to_string(&all.0.gather())
}

fn daemon(all: &Families, status: &Status) -> Result<(), prometheus::Error> {
    let version = [(status.version.as_str(), 1.0)];
    all.gauges("build_info", "The version of the daemon.", "version", version)?;
    all.gauge("start_time_seconds", "When it started.", seconds_of(status.started.0))?;
    let interfaces = status.interfaces.iter();
    let running = interfaces.map(|one| (one.name.as_str(), truth(one.state == "running")));
    all.gauges("interface_up", "Whether it captures on an interface.", "interface", running)?;
    let in_kernel = truth(status.prefilter == "in the kernel");
    all.gauge("prefilter_up", "Whether noise ends in the kernel.", in_kernel)?;
    let writable = truth(status.replay_store == "writable");
    let help = "Whether accepted knocks can be written down: nothing opens otherwise.";
    all.gauge("replay_store_writable", help, writable)?;
    let clients = [
        ("enabled", number(status.clients.enabled)),
        ("disabled", number(status.clients.total.saturating_sub(status.clients.enabled))),
        ("left-out", number(u64::try_from(status.left_out.len()).unwrap_or(u64::MAX))),
    ];
    let help = "Clients; those that are left out have a file that is wrong.";
    all.gauges("clients", help, "state", clients)?;
    let sound = truth(status.last_reload.is_none());
    let help = "Whether the configuration is that of the last reload, which was not refused.";
    all.gauge("last_reload_successful", help, sound)?;
    if let Some(until) = status.barrier_until {
        let help = "Until when knocks are refused that were sent before.";
        all.gauge("barrier_until_timestamp_seconds", help, seconds_of(until.0))?;
    }
    Ok(())
}

fn gate(all: &Families, status: &Status) -> Result<(), prometheus::Error> {
    let help = "Whether there is to be a gate: not after it was removed, nor after a trial that \
        nobody has confirmed.";
    all.gauge("gate_wanted", help, truth(status.guards))?;
    let help = "Whether the kernel has all rules and sets of the gate.";
    all.gauge("gate_up", help, truth(status.gate == "installed"))?;
    let help = "For how long the gate is on trial; 0 if it is not.";
    all.gauge("gate_trial_left_seconds", help, number(status.trial_seconds_left.unwrap_or(0)))?;
    let help = "How often the gate was put back after somebody had changed it.";
    all.counter("gate_restored_total", help, status.restored)?;
    all.gauge("grants", "What is open.", number(status.grants))?;
    let help = "Addresses and networks for which nothing is opened, for a time.";
    all.gauge("refused_sources", help, number(status.refused))?;
    let help = "Grants that the kernel took, refreshed ones included.";
    all.counter("grants_opened_total", help, status.opened)?;
    let help = "Grants that were closed before their time.";
    all.counter("grants_closed_total", help, status.closed)
}

fn knocks(all: &Families, status: &Status) -> Result<(), prometheus::Error> {
    let help = "Datagrams of the right port that were looked at, in the kernel or by the daemon.";
    all.counter("datagrams_received_total", help, status.received)?;
    let dropped = status.dropped.iter().map(|(reason, count)| (reason.as_str(), *count));
    let help = "Datagrams that opened nothing.";
    all.counters("datagrams_dropped_total", help, "reason", dropped)?;
    let help = "Datagrams that came faster than they were read, and were not looked at.";
    all.counter("datagrams_lost_total", help, status.kernel_drops)?;
    all.counter("knocks_accepted_total", "Knocks that passed every check.", status.accepted)?;
    let help = "Accepted knocks that the kernel or the store failed.";
    all.counter("knocks_failed_total", help, status.failed)?;
    all.gauge("queue_knocks", "Knocks that wait.", number(status.queue.waiting))?;
    let help = "The most that have waited at a time.";
    all.gauge("queue_deepest_knocks", help, number(status.queue.deepest))?;
    let help = "The most that may wait; others are dropped as overloaded.";
    all.gauge("queue_limit_knocks", help, number(status.queue.limit))?;
    if let Some(LatencyStatus { p50_micros, p90_micros, p99_micros, max_micros, .. }) =
        status.latency
    {
        let values = [
            ("0.5", seconds_of(p50_micros)),
            ("0.9", seconds_of(p90_micros)),
            ("0.99", seconds_of(p99_micros)),
            ("1", seconds_of(max_micros)),
        ];
        let help =
            "From capture to opening, since the start: so many of all knocks took no longer.";
        all.gauges("open_latency_seconds", help, "share", values)?;
    }
    Ok(())
}

struct Families(Registry);

impl Families {
    fn up(&self, is_up: bool) -> Result<(), prometheus::Error> {
        self.gauge("up", "Whether the daemon runs.", truth(is_up))
    }

    fn gauge(&self, name: &str, help: &str, value: f64) -> Result<(), prometheus::Error> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        self.0.register(Box::new(gauge))
    }

    fn gauges<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), prometheus::Error> {
        let family = GaugeVec::new(Opts::new(name, help), &[label])?;
        for (of, value) in values {
            family.with_label_values(&[of]).set(value);
        }
        self.0.register(Box::new(family))
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> Result<(), prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.0.register(Box::new(counter))
    }

    fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Result<(), prometheus::Error> {
        let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
        for (of, value) in values {
            family.with_label_values(&[of]).inc_by(value);
        }
        self.0.register(Box::new(family))
    }
}

const fn truth(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

/// Above 2^53 to the nearest that there is.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
const fn number(value: u64) -> f64 {
    value as f64
}

const fn seconds_of(micros: u64) -> f64 {
    number(micros) / 1e6
}
