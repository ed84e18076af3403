//! Requests and responses of the control socket, one line of JSON each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use spa_server::control::{ControlRequest, ControlResponse};

fuzz_target!(|line: &[u8]| {
    again::<ControlRequest>(line);
    again::<ControlResponse>(line);
});

/// Written once, it stays the same.
fn again<T: Serialize + DeserializeOwned>(line: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_string(&read).unwrap();
    assert!(!written.contains('\n'), "more than a line: {written}");
    let again = serde_json::from_str::<T>(&written).unwrap();
    assert_eq!(written, serde_json::to_string(&again).unwrap());
}
