//! The directory of the clients' files.
//!
//! It is `clients.d` beside `server.toml`, with a file `NAME.toml` for each. Where systemd has handed over
//! the configuration (systemd.exec(5), `LoadCredential=`), there are no directories: of `clients.d` it
//! makes files beside `server.toml`, `clients.d_NAME.toml`.

use super::client::ClientName;
use super::error::{Fault, Problem};
use super::file;
use crate::enrolment::Introduction;
use crate::large_list::with_room_for;
use spa_proto::ClientId;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

/// How many clients there may be is not known before their names have been read.
const MANY: usize = 1_000_000;
/// What the files' names end in.
pub(super) const SUFFIX: &str = ".toml";

/// What systemd has handed over itself, and nobody can change: a directory for each unit, none below.
pub(crate) const CREDENTIALS: &str = "/run/credentials";
/// How the names of clients' files begin there.
const PREFIX: &str = "clients.d_";

/// The directory of the clients of the configuration at `server_toml`.
pub fn clients_directory(server_toml: &Path) -> PathBuf {
    match server_toml.parent() {
        Some(directory) if are_credentials(server_toml) => directory.into(),
        _ => server_toml.with_file_name("clients.d"),
    }
}

fn are_credentials(path: &Path) -> bool {
    path.starts_with(CREDENTIALS)
}

/// The file of the client of that name.
pub fn client_file(server_toml: &Path, name: &ClientName) -> PathBuf {
    client_file_in(&clients_directory(server_toml), &name.to_string())
}

/// The same in the directory of the clients.
pub(super) fn client_file_in(directory: &Path, name: &str) -> PathBuf {
    let prefix = if are_credentials(directory) { PREFIX } else { "" };
    directory.join(format!("{prefix}{name}{SUFFIX}"))
}

/// The name of the client whose file this is; of one that is called wrongly, what there is.
pub(super) fn name_of(file: &Path) -> Cow<'_, str> {
    match file.file_stem().map(OsStr::to_string_lossy) {
        Some(Cow::Borrowed(stem)) if are_credentials(file) => {
            Cow::Borrowed(stem.strip_prefix(PREFIX).unwrap_or(stem))
        }
        stem => stem.unwrap_or_default(),
    }
}

/// The files of all clients, in the order of their names: whatever ends in `.toml` and does not
/// begin with a dot. A directory that is not there has none.
pub fn client_files(server_toml: &Path) -> Result<Vec<PathBuf>, Problem> {
    let (directory, names) = (clients_directory(server_toml), client_file_names(server_toml)?);
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// The names of these files.
pub(super) fn client_file_names(server_toml: &Path) -> Result<Vec<OsString>, Problem> {
    let directory = clients_directory(server_toml);
    let failed = |error| Problem { path: directory.clone(), fault: Fault::Io(error) };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    file::judge_directory(&directory)?;
    let mut names = with_room_for(MANY);
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let bytes = name.as_encoded_bytes();
        let is_a_client_s = !are_credentials(&directory) || bytes.starts_with(PREFIX.as_bytes());
        if is_a_client_s && !bytes.starts_with(b".") && bytes.ends_with(SUFFIX.as_bytes()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Those of these clients who are to be locked out by a configuration of which nothing else can be
/// had, since something is wrong with it: their file says `enabled = false`, whoever can write it,
/// or is gone from its directory.
///
/// What may be half written locks nobody out by what it lacks: then all other files have to be
/// whole, and none of them may have the client's key or invitation by another name.
pub fn locked_out<'a>(
    server_toml: &Path,
    clients: impl Iterator<Item = (ClientId, Introduction, &'a str)>,
) -> Vec<ClientId> {
    let Ok(files) = client_files(server_toml) else { return Vec::new() };
    let directory = clients_directory(server_toml);
    let mut present = HashMap::new();
    let mut is_whole = directory.is_dir();
    for file in &files {
        match Outline::read(file) {
            Some(outline) => drop(present.insert(file.clone(), outline)),
            None => is_whole = false,
        }
    }
    let file_of = |name: &str| client_file_in(&directory, name);
    let clients: Vec<_> = clients.collect();
    let known: HashSet<_> = clients.iter().map(|(_, _, name)| file_of(name)).collect();
    let admits = |outline: &Outline, introduction: &Introduction| {
        outline.enabled && outline.introduction.as_ref() == Some(introduction)
    };
    // A secret that can't be read tells nothing: then the name has to do.
    let is_about = |outline: &Outline, introduction: &Introduction| {
        outline.introduction.as_ref().is_none_or(|it| it == introduction)
    };
    let may_be_anybodys = |file: &Path, outline: &Outline| {
        outline.enabled && outline.introduction.is_none() && !known.contains(file)
    };
    let is_locked_out = |introduction: &Introduction, name: &str| {
        let file = file_of(name);
        let is_renamed = || present.iter().any(|(file, it)| may_be_anybodys(file, it));
        let is_gone = || is_whole && !files.contains(&file) && !is_renamed();
        let is_disabled =
            present.get(&file).map(|file| !file.enabled && is_about(file, introduction));
        let is_admitted = || present.values().any(|it| admits(it, introduction));
        is_disabled.unwrap_or_else(is_gone) && !is_admitted()
    };
    let out = clients.iter().filter(|(_, introduction, name)| is_locked_out(introduction, name));
    out.map(|(client, ..)| *client).collect()
}

/// The files with secrets that clients' files name, as far as these make sense and are trusted.
pub(crate) fn secret_files(server_toml: &Path) -> Vec<PathBuf> {
    let named = |file: &PathBuf| {
        let table = toml::from_str::<toml::Table>(&file::read(file).ok()?).ok()?;
        let invitation = table.get("invitation").and_then(|it| it.get("secret-file"));
        table.get("pre-shared-key-file").or(invitation)?.as_str().map(PathBuf::from)
    };
    client_files(server_toml).unwrap_or_default().iter().filter_map(named).collect()
}

/// Who a client's file is about, and whether he is let in.
struct Outline {
    /// `None`: somebody who is invited, by a secret that can't be read.
    introduction: Option<Introduction>,
    enabled: bool,
}

impl Outline {
    fn read(file: &Path) -> Option<Self> {
        let table = toml::from_str::<toml::Table>(&file::read_unjudged(file).ok()?).ok()?;
        let enabled = table.get("enabled") != Some(&toml::Value::Boolean(false));
        let introduction = match (table.get("public-key"), table.get("invitation")) {
            (Some(key), None) => Some(Introduction::Key(key.as_str()?.parse().ok()?)),
            (None, Some(invitation)) => {
                let file = invitation.get("secret-file")?.as_str()?;
                let secret = super::key_reader().invitation_secret(file).ok();
                secret.map(|secret| Introduction::Invitation(secret.fingerprint()))
            }
            _ => return None,
        };
        Some(Self { introduction, enabled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That systemd makes such files is tested with the real one.
    #[test]
    fn a_client_s_file_has_his_name_and_among_credentials_a_prefix() {
        let name: ClientName = "laptop.home".parse().unwrap();
        for (server_toml, directory, file) in [
            ("/etc/spa/server.toml", "/etc/spa/clients.d", "laptop.home.toml"),
            ("server.toml", "clients.d", "laptop.home.toml"),
            ("/run/credentials/a/server.toml", "/run/credentials/a", "clients.d_laptop.home.toml"),
        ] {
            let server_toml = Path::new(server_toml);
            assert_eq!(clients_directory(server_toml), Path::new(directory));
            let path = client_file(server_toml, &name);
            assert_eq!(path, Path::new(directory).join(file));
            assert_eq!(name_of(&path), name.as_str());
        }
        // A dot may be in a name: elsewhere this is just one.
        assert_eq!(name_of(Path::new("/etc/spa/clients.d/clients.d_a.toml")), "clients.d_a");
    }
}
