//! What worker and gate helper say to each other, and what the helper reads of the system's tools.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spa_proto::Transport;
use spa_server::gate::render::read_held;
use spa_server::gate::saved::Saved;
use spa_server::gate::{CommandLine, sockets};
use spa_server::helper::{HelperAnswer, HelperRequest};

fuzz_target!(|text: &str| {
    if let Ok(request) = serde_json::from_str::<HelperRequest>(text) {
        let written = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<HelperRequest>(&written).unwrap(), request);
    }
    if let Ok(answer) = serde_json::from_str::<HelperAnswer>(text) {
        let written = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<HelperAnswer>(&written).unwrap(), answer);
    }
    let _ = Saved::parse(text);
    for line in text.lines() {
        let _ = read_held(line);
    }
    let _ = sockets::parse(Transport::Udp, text);
    let words: Vec<String> = text.split(' ').map(ToOwned::to_owned).collect();
    let _ = CommandLine::parse(&words);
});
