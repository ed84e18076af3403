//! `spa-server rotate-key`: a new key of the server, with the old one beside it for a time.

use super::daemon::take_up;
use super::output::{print, print_json};
use super::{CommandError, Done, client, write};
use crate::cli::RotateKeyArgs;
use crate::config::{self, ConfigError, Settings, format_timestamp, parse_duration_or_seconds};
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{Overwrite, PrivateKey, PublicKey};
use spa_proto::UnixMicros;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml_edit::{DocumentMut, value};

/// Clients have to hear of it within that time, and nobody wants two keys for ever.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// What was done, as a program sees it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Rotated {
    server_public_key: PublicKey,
    previous_public_key: PublicKey,
    previous_key_until: String,
    previous_private_key_file: PathBuf,
    /// What each client's user runs, with his own name for this server.
    client_command: String,
}

/// `spa-server rotate-key`. Whatever interrupts it, the key that clients know is one of the two.
pub(crate) fn run(config: &Path, args: &RotateKeyArgs) -> Done {
    let settings = Settings::load(config)?;
    let old = config::read_private_key(config, &settings).map_err(ConfigError::from)?;
    let now = client::now();
    if let Some(previous) = &settings.previous_key
        && previous.until > now
    {
        return Err(CommandError::Failed(format!(
            "the key before the present one holds until {} still ({}); one at a time: wait, or take previous-private-key-file and previous-key-until out of {}",
            format_timestamp(previous.until),
            previous.private_key_file.display(),
            config.display()
        )));
    }
    let until = until(&args.how_long, now)?;
    let new = PrivateKey::generate(&SystemRandom::new())?;
    let present = &settings.private_key_file;
    let previous = present.with_extension("previous.key");
    let text = fs::read_to_string(config).map_err(|source| {
        CommandError::Failed(format!("{} can't be read: {source}", config.display()))
    })?;
    let text = with_previous(&text, &previous, until).map_err(|error| {
        CommandError::Failed(format!("{} is no TOML: {}", config.display(), error.message()))
    })?;
    Settings::parse(config, &text)?;
    // In this order: the key that clients know stands in one of the files at every moment.
    spa_keys::write_private_key(&previous, &old, Overwrite::Replace)?;
    write::replace(config, &text)?;
    spa_keys::write_private_key(present, &new, Overwrite::Replace)?;
    let rotated = Rotated {
        server_public_key: new.public(),
        previous_public_key: old.public(),
        previous_key_until: format_timestamp(until),
        previous_private_key_file: previous,
        client_command: format!("spa-client server set-key NAME {}", new.public()),
    };
    if args.output.json {
        print_json(&rotated)?;
    } else {
        eprintln!(
            "this server has a new key; the old one holds until {} and is in {}, which is to be destroyed after that\non each client, with its own name for this server:",
            rotated.previous_key_until,
            rotated.previous_private_key_file.display()
        );
        print(&format!("{}\n", rotated.client_command))?;
    }
    take_up(config)
}

fn until(text: &str, now: UnixMicros) -> Result<UnixMicros, CommandError> {
    let usage = |why: String| CommandError::Usage(format!("--for: {why}"));
    let how_long = parse_duration_or_seconds(text).map_err(|error| usage(error.to_string()))?;
    if how_long.is_zero() || how_long > LONGEST {
        return Err(usage(format!("{text:?} is out of range; it lies between 1s and 366d")));
    }
    Ok(now.saturating_add(how_long))
}

/// Comments and everything else stay; what stands in front of the first table belongs to no table.
fn with_previous(
    text: &str,
    file: &Path,
    until: UnixMicros,
) -> Result<String, toml_edit::TomlError> {
    let mut document: DocumentMut = text.parse()?;
    document.insert("previous-private-key-file", value(file.to_string_lossy().into_owned()));
    document.insert("previous-key-until", value(format_timestamp(until)));
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_come_before_the_tables_and_nothing_else_changes() {
        let text = "# mine\nfreshness = \"1m\"\n\n[services.ssh] # the one\nports = [\"tcp/22\"]\n";
        let until = UnixMicros::from_secs(1_800_000_000);
        let changed =
            with_previous(text, Path::new("/etc/spa/server.previous.key"), until).unwrap();
        let settings = Settings::parse(Path::new("/etc/spa/server.toml"), &changed).unwrap();
        let previous = settings.previous_key.unwrap();
        assert_eq!(previous.until, until);
        assert_eq!(previous.private_key_file, Path::new("/etc/spa/server.previous.key"));
        for line in text.lines() {
            assert!(changed.contains(line), "{changed}");
        }
        // Once more, it is the last one that counts.
        let later = UnixMicros::from_secs(1_900_000_000);
        let again = with_previous(&changed, Path::new("/b"), later).unwrap();
        let settings = Settings::parse(Path::new("/etc/spa/server.toml"), &again).unwrap();
        assert_eq!(settings.previous_key.unwrap().until, later);
    }
}
