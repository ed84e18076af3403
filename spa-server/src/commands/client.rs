//! Commands that show and change the clients' files.

use super::daemon::{cut_off, take_up};
use super::output::{print, print_json, table};
use super::{CONFIG, CommandError, Done, write};
use crate::causes::with_causes;
use crate::cli::Output;
use crate::config::{
    ClientName, ClientSettings, ConfigError, Introduced, Settings, client_file, client_files,
    format_duration, format_timestamp,
};
use crate::enrolment::{EnrolmentStore, Enrolments};
use serde::Serialize;
use spa_keys::PublicKey;
use spa_proto::{ServiceName, UnixMicros};
use std::collections::BTreeSet;
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
    /// The key that it has now; none before it has come.
    public_key: Option<PublicKey>,
    /// The one that is to take its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_key: Option<PublicKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invitation: Option<InvitationView>,
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

/// How a client was invited.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct InvitationView {
    issued: String,
    expires: String,
    /// Whether the client has come.
    used: bool,
    secret_file: PathBuf,
}

impl ClientView {
    fn new(client: ClientSettings, enrolments: &Enrolments, now: UnixMicros) -> Self {
        // A secret that can't be read is told by `check`, and by the daemon.
        let (public_key, pending_key) =
            client.keys(enrolments).unwrap_or((client.public_key(), None));
        let rules = client.rules;
        let (pre_shared_key_file, invitation, is_void) = match client.introduced {
            Introduced::ByKey { pre_shared_key_file, .. } => (pre_shared_key_file, None, false),
            Introduced::ByInvitation { secret_file, issued, expires } => {
                let view = InvitationView {
                    issued: format_timestamp(issued),
                    expires: format_timestamp(expires),
                    used: public_key.is_some(),
                    secret_file,
                };
                (None, Some(view), now >= expires || issued < enrolments.since)
            }
        };
        let state = if !rules.enabled {
            "disabled"
        } else if public_key.is_none() {
            if is_void { "invitation expired" } else { "invited" }
        } else if rules.expires.is_some_and(|expires| now >= expires) {
            "expired"
        } else if rules.not_before.is_some_and(|not_before| now < not_before) {
            "not yet valid"
        } else {
            "enabled"
        };
        Self {
            name: client.name.to_string(),
            state,
            public_key,
            pending_key,
            invitation,
            allow: rules.allow.into_iter().collect(),
            max_lifetime: format_duration(rules.max_lifetime),
            default_lifetime: format_duration(rules.default_lifetime),
            sources: rules.sources.iter().map(ToString::to_string).collect(),
            not_before: rules.not_before.map(format_timestamp),
            expires: rules.expires.map(format_timestamp),
            require_bound_source: rules.require_bound_source,
            pre_shared_key_file,
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

    fn key(&self) -> String {
        self.public_key.map_or_else(|| "none yet".into(), |key| key.to_string())
    }

    fn sources(&self) -> String {
        if self.sources.is_empty() { "anywhere".into() } else { self.sources.join(", ") }
    }

    fn render(&self) -> String {
        let yes_no = |yes| if yes { "required" } else { "not required" };
        let mut rows = [
            ["name", &self.name],
            ["state", self.state],
            ["public key", &self.key()],
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
            ("next key", self.pending_key.map(|key| key.to_string())),
            ("invitation", self.invitation.as_ref().map(InvitationView::text)),
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

impl InvitationView {
    fn text(&self) -> String {
        let Self { issued, expires, used, .. } = self;
        if *used { format!("of {issued}, used") } else { format!("of {issued}, until {expires}") }
    }
}

/// The keys that clients have announced.
pub(super) fn enrolments(settings: &Settings) -> Result<Enrolments, CommandError> {
    let read = EnrolmentStore::read(&settings.state_directory);
    let read = read.map_err(|error| CommandError::Failed(with_causes(&error)))?;
    Ok(read.unwrap_or_default())
}

/// `spa-server client list`. Clients whose files are wrong are told, and the others shown.
pub(crate) fn list(config: &Path, output: Output) -> Done {
    let settings = Settings::load(config)?;
    let (now, enrolments) = (now(), enrolments(&settings)?);
    let mut problems = Vec::new();
    let mut clients = Vec::new();
    for file in client_files(config).map_err(ConfigError::from)? {
        match load(&file, &settings) {
            Ok(client) => clients.push(ClientView::new(client, &enrolments, now)),
            Err(error) => problems.extend(error.problems),
        }
    }
    if output.json {
        print_json(&clients)?;
    } else if clients.is_empty() && problems.is_empty() {
        eprintln!("there are no clients yet; `spa-server invite` lets one in");
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
    let view = ClientView::new(load(&file, &settings)?, &enrolments(&settings)?, now());
    if output.json { print_json(&view) } else { print(&view.render()) }
}

/// `spa-server client remove`.
pub(crate) fn remove(config: &Path, name: &ClientName, cut: bool) -> Done {
    let file = existing(config, name)?;
    let keys = if cut { keys_of(config, &file) } else { Ok(Vec::new()) };
    // The key that `client add --psk` made is of no use to anybody else; another may be shared.
    let secrets = ["psk", "invitation"].map(|kind| file.with_extension(kind));
    for path in [&file].into_iter().chain(&secrets) {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CommandError::Write { path: path.clone(), source });
            }
            _ => {}
        }
    }
    eprintln!("client {name} is removed");
    locked_out(config, keys)
}

/// `spa-server client disable`.
pub(crate) fn disable(config: &Path, name: &ClientName, cut: bool) -> Done {
    let keys = if cut { keys_of(config, &existing(config, name)?) } else { Ok(Vec::new()) };
    set_enabled(config, name, false)?;
    locked_out(config, keys)
}

/// Has the daemon take it up, and ends the connections of the client with these keys, one whatever
/// became of the other.
fn locked_out(config: &Path, keys: Result<Vec<PublicKey>, CommandError>) -> Done {
    let taken_up = take_up(config);
    let cut =
        keys.and_then(|keys| keys.iter().map(|key| cut_off(config, key)).fold(Ok(()), Result::and));
    match (taken_up, cut) {
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

/// The keys of a client, whatever else is wrong with its file.
fn keys_of(config: &Path, file: &Path) -> Result<Vec<PublicKey>, CommandError> {
    let settings = Settings::load(config);
    if let Ok((client, settings)) =
        settings.and_then(|settings| Ok((load(file, &settings)?, settings)))
    {
        let enrolments = enrolments(&settings)?;
        let failed = |error: spa_keys::KeyFileError| CommandError::Failed(error.to_string());
        let (present, pending) = client.keys(&enrolments).map_err(failed)?;
        // Connections that came in under a key before live on.
        let (introduction, _) = client.introduction().map_err(failed)?;
        let former = enrolments.of(&introduction).map(|keys| keys.former.clone());
        let known = [present, pending, client.public_key()].into_iter().flatten();
        let keys: BTreeSet<_> = known.chain(former.unwrap_or_default()).collect();
        return Ok(keys.into_iter().collect());
    }
    let text = fs::read_to_string(file).unwrap_or_default();
    let document = text.parse::<DocumentMut>().ok();
    let key = document.as_ref().and_then(|document| document.get("public-key")?.as_str());
    key.and_then(|key| key.parse().ok()).map(|key| vec![key]).ok_or_else(|| {
        CommandError::Failed(format!(
            "{} has no public key that could be read: whose connections to end is not known without it",
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
    match client.map(|client| ClientView::new(client, &Enrolments::default(), now()).state) {
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
