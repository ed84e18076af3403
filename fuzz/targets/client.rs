//! What a user writes for the client: its configuration, and words of its command line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spa_client::{Config, Endpoint, Host, Lifetime, ServerName, Target};
use spa_proto::{Item, PortRange, parse_duration, parse_duration_or_seconds};

fuzz_target!(|text: &str| {
    if let Err(error) = Config::parse(text, "config.toml".into()) {
        assert!(!error.to_string().is_empty());
    }
    let _ = text.parse::<Host>();
    let _ = text.parse::<ServerName>();
    let _ = text.parse::<Lifetime>();
    let _ = text.parse::<Endpoint>();
    let _ = text.parse::<Target>();
    if let Ok(item) = text.parse::<Item>() {
        assert_eq!(item.to_string().parse::<Item>().as_ref(), Ok(&item));
    }
    if let Ok(range) = text.parse::<PortRange>() {
        assert_eq!(range.to_string().parse::<PortRange>(), Ok(range));
    }
    let _ = parse_duration(text);
    let _ = parse_duration_or_seconds(text);
});
