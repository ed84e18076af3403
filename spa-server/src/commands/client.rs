//! Commands that show and change the clients' files.

use super::daemon::{cut_off, take_up};
use super::output::{print, print_json, table};
use super::{CONFIG, CommandError, Done, write};
use crate::cli::Output;
use crate::config::{
    ClientName, ClientSettings, ConfigError, Settings, client_file, client_files, format_duration,
    format_timestamp,
};
use serde::Serialize;
use spa_keys::PublicKey;
use spa_proto::{ServiceName, UnixMicros};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use toml_edit::{DocumentMut, Item, Value};

/// A client, as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ClientView {
    name: String,
    /// `enabled`, or why not.
    state: &'static str,
    public_key: PublicKey,
    allow: Vec<ServiceName>,
    max_lifetime: String,
    default_lifetime: String,
    sources: Vec<String>,
    not_before: Option<String>,
    expires: Option<String>,
    require_bound_source: bool,
    pre_shared_key_file: Option<PathBuf>,
    per_minute: u32,
    burst: u32,
    max_sources: u32,
    file: PathBuf,
}

impl ClientView {
    fn new(client: ClientSettings, now: UnixMicros) -> Self {
        let rules = client.rules;
        let state = if !rules.enabled {
            "disabled"
        } else if rules.expires.is_some_and(|expires| now >= expires) {
            "expired"
        } else if rules.not_before.is_some_and(|not_before| now < not_before) {
            "not yet valid"
        } else {
            "enabled"
        };
        Self {
            name: rules.name.to_string(),
            state,
            public_key: client.public_key,
            allow: rules.allow.into_iter().collect(),
            max_lifetime: format_duration(rules.max_lifetime),
            default_lifetime: format_duration(rules.default_lifetime),
            sources: rules.sources.iter().map(ToString::to_string).collect(),
            not_before: rules.not_before.map(format_timestamp),
            expires: rules.expires.map(format_timestamp),
            require_bound_source: rules.require_bound_source,
            pre_shared_key_file: client.pre_shared_key_file,
            per_minute: rules.rate.per_minute,
            burst: rules.rate.burst,
            max_sources: rules.max_sources,
            file: client.file,
        }
    }

    fn allow(&self) -> String {
        let names: Vec<_> = self.allow.iter().map(ServiceName::as_str).collect();
        names.join(", ")
    }

    fn sources(&self) -> String {
        if self.sources.is_empty() { "anywhere".into() } else { self.sources.join(", ") }
    }

    fn render(&self) -> String {
        let yes_no = |yes| if yes { "required" } else { "not required" };
        let mut rows = [
            ["name", &self.name],
            ["state", self.state],
            ["public key", &self.public_key.to_string()],
            ["may open", &self.allow()],
            ["lifetime", &format!("{}, at most {}", self.default_lifetime, self.max_lifetime)],
            ["from", &self.sources()],
            ["bound source", yes_no(self.require_bound_source)],
            ["rate", &format!("{} a minute, {} at once", self.per_minute, self.burst)],
            ["sources", &format!("at most {} at a time", self.max_sources)],
            ["file", &self.file.display().to_string()],
        ]
        .map(|row| row.map(String::from).to_vec())
        .to_vec();
        for (name, value) in [
            ("not before", self.not_before.clone()),
            ("expires", self.expires.clone()),
            (
                "pre-shared key",
                self.pre_shared_key_file.as_ref().map(|file| file.display().to_string()),
            ),
        ] {
            rows.extend(value.map(|value| vec![name.to_owned(), value]));
        }
        table(&rows)
    }
}

/// `spa-server client list`. Clients whose files are wrong are told, and the others shown.
pub(crate) fn list(config: &Path, output: Output) -> Done {
    let settings = Settings::load(config)?;
    let now = now();
    let mut problems = Vec::new();
    let mut clients = Vec::new();
    for file in client_files(config).map_err(ConfigError::from)? {
        match load(&file, &settings) {
            Ok(client) => clients.push(ClientView::new(client, now)),
            Err(error) => problems.extend(error.problems),
        }
    }
    if output.json {
        print_json(&clients)?;
    } else if clients.is_empty() && problems.is_empty() {
        eprintln!("there are no clients yet; `spa-server client add` lets one in");
    } else {
        let mut rows =
            vec![["NAME", "STATE", "MAY OPEN", "AT MOST", "FROM"].map(String::from).to_vec()];
        rows.extend(clients.iter().map(|client| {
            let (name, state) = (client.name.clone(), client.state.to_owned());
            vec![name, state, client.allow(), client.max_lifetime.clone(), client.sources()]
        }));
        print(&table(&rows))?;
    }
    for problem in &problems {
        eprintln!("spa-server: {problem}");
    }
    if problems.is_empty() { Ok(()) } else { Err(CommandError::Told { exit_code: CONFIG }) }
}

/// `spa-server client show`.
pub(crate) fn show(config: &Path, name: &ClientName, output: Output) -> Done {
    let settings = Settings::load(config)?;
    let file = existing(config, name)?;
    let view = ClientView::new(load(&file, &settings)?, now());
    if output.json { print_json(&view) } else { print(&view.render()) }
}

/// `spa-server client remove`.
pub(crate) fn remove(config: &Path, name: &ClientName, cut: bool) -> Done {
    let file = existing(config, name)?;
    let key = if cut { Some(key_of(config, &file)?) } else { None };
    // The key that `client add --psk` made is of no use to anybody else; another may be shared.
    let pre_shared = file.with_extension("psk");
    for path in [&file, &pre_shared] {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CommandError::Write { path: path.clone(), source });
            }
            _ => {}
        }
    }
    eprintln!("client {name} is removed");
    locked_out(config, key.as_ref())
}

/// `spa-server client disable`.
pub(crate) fn disable(config: &Path, name: &ClientName, cut: bool) -> Done {
    let key = if cut { Some(key_of(config, &existing(config, name)?)?) } else { None };
    set_enabled(config, name, false)?;
    locked_out(config, key.as_ref())
}

/// Has the daemon take it up, and ends the connections of the client with this key, one whatever
/// became of the other.
fn locked_out(config: &Path, key: Option<&PublicKey>) -> Done {
    let taken_up = take_up(config);
    match (taken_up, key.map_or(Ok(()), |key| cut_off(config, key))) {
        (Err(error), Err(also)) => {
            eprintln!("spa-server: {error}");
            Err(also)
        }
        (taken_up, cut) => taken_up.and(cut),
    }
}

/// `spa-server client enable`.
pub(crate) fn enable(config: &Path, name: &ClientName) -> Done {
    set_enabled(config, name, true)?;
    take_up(config)
}

/// The key in a client's file, whatever else is wrong with that file.
fn key_of(config: &Path, file: &Path) -> Result<PublicKey, CommandError> {
    if let Ok(client) = Settings::load(config).and_then(|settings| load(file, &settings)) {
        return Ok(client.public_key);
    }
    let text = fs::read_to_string(file).unwrap_or_default();
    let document = text.parse::<DocumentMut>().ok();
    let key = document.as_ref().and_then(|document| document.get("public-key")?.as_str());
    key.and_then(|key| key.parse().ok()).ok_or_else(|| {
        CommandError::Failed(format!(
            "{} has no public key that could be read, so nothing was changed: whose connections to end is not known without it. Leave --cut out",
            file.display()
        ))
    })
}

fn set_enabled(config: &Path, name: &ClientName, enabled: bool) -> Done {
    let file = existing(config, name)?;
    let text = fs::read_to_string(&file).map_err(|source| {
        CommandError::Failed(format!("{} can't be read: {source}", file.display()))
    })?;
    let text = with_enabled(&text, enabled).map_err(|error| {
        CommandError::Failed(format!(
            "{} is no TOML, so nothing was changed; correct it first: {}",
            file.display(),
            error.message()
        ))
    })?;
    write::replace(&file, &text)?;
    eprintln!("client {name} is {}", if enabled { "enabled" } else { "disabled" });
    // It may be wrong in other respects, and locking out has to work all the same.
    let settings = Settings::load(config);
    let client = settings.and_then(|settings| load(&file, &settings));
    match client.map(|client| ClientView::new(client, now()).state) {
        Ok("expired" | "not yet valid") if enabled => {
            eprintln!(
                "note: it stays locked out by its dates; see `spa-server client show {name}`"
            );
        }
        _ => {}
    }
    Ok(())
}

/// Sets `enabled` in the text of a client's file; comments and everything else stay.
fn with_enabled(text: &str, enabled: bool) -> Result<String, toml_edit::TomlError> {
    let mut document: DocumentMut = text.parse()?;
    match document.get_mut("enabled").and_then(Item::as_value_mut) {
        Some(value) => {
            let decor = value.decor().clone();
            *value = Value::from(enabled);
            *value.decor_mut() = decor;
        }
        None => drop(document.insert("enabled", toml_edit::value(enabled))),
    }
    Ok(document.to_string())
}

fn load(file: &Path, settings: &Settings) -> Result<ClientSettings, ConfigError> {
    ClientSettings::load_for(file, settings)
}

fn existing(config: &Path, name: &ClientName) -> Result<PathBuf, CommandError> {
    let file = client_file(config, name);
    if fs::symlink_metadata(&file).is_ok() {
        Ok(file)
    } else {
        Err(CommandError::Failed(format!(
            "there is no client {name} ({} is not there); `spa-server client list` shows all",
            file.display()
        )))
    }
}

pub(super) fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMicros::default().saturating_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_changes_and_nothing_else_does() {
        for (before, after) in [
            (
                "# mine\nallow = [\"ssh\"] # only\n",
                "# mine\nallow = [\"ssh\"] # only\nenabled = false\n",
            ),
            (
                "enabled = true # since May\nallow = [\"ssh\"]\n",
                "enabled = false # since May\nallow = [\"ssh\"]\n",
            ),
            ("enabled=false", "enabled=false\n"),
            ("enabled = \"yes\"\n", "enabled = false\n"),
            ("a = 1\n\n[rate]\nburst = 5\n", "a = 1\nenabled = false\n\n[rate]\nburst = 5\n"),
        ] {
            assert_eq!(with_enabled(before, false).unwrap(), after);
            let back = with_enabled(after, true).unwrap();
            assert_eq!(back, after.replace("false", "true"));
        }
        assert!(with_enabled("enabled = ", true).is_err());
    }
}
