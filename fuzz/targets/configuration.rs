//! `server.toml`, and a client's file beside it: two texts, with a line of dashes between them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spa_server::config::{ClientSettings, Settings};
use std::path::Path;

fuzz_target!(|text: &str| {
    let (server, client) = text.split_once("\n---\n").unwrap_or((text, ""));
    let settings = match Settings::parse(Path::new("/etc/spa/server.toml"), server) {
        Ok(settings) => {
            // What the gate would be told.
            let plan = settings.gate_plan();
            assert!(
                plan.guarded.iter().all(|guarded| guarded.ports.first() <= guarded.ports.last())
            );
            settings
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if let Err(error) =
        ClientSettings::parse(Path::new("/etc/spa/clients.d/a.toml"), client, &settings)
    {
        assert!(!error.to_string().is_empty());
    }
});
