//! Plans for tests.

use crate::gate::types::{Guarded, Mode, Plan, Refusal};

/// `tcp/22`, `udp/5000`, a knock port.
pub(super) fn plan() -> Plan {
    Plan {
        mode: Mode::Guard,
        refusal: Refusal::Drop,
        guarded: ["tcp/22", "udp/5000"].map(|p| Guarded::plain(p.parse().unwrap())).to_vec(),
        knock_ports: vec![62201],
        always_admit: Vec::new(),
        max_elements: 1024,
        trial_seconds: None,
    }
}
