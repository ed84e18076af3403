//! The directory of the clients' files.

use super::client::ClientName;
use super::error::{Fault, Problem};
use super::file;
use super::settings::{Settings, clients_beside};
use crate::enrolment::Introduction;
use crate::large_list::with_room_for;
use spa_proto::ClientId;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// How many clients there may be is not known before their names have been read.
const MANY: usize = 1_000_000;
/// What the files' names end in.
pub(super) const SUFFIX: &str = ".toml";

/// The file of the client of that name.
pub fn client_file(server_toml: &Path, name: &ClientName) -> PathBuf {
    Settings::clients_directory_of(server_toml).join(format!("{name}.toml"))
}

/// The files of all clients, in the order of their names: whatever ends in `.toml` and does not
/// begin with a dot. A directory that is not there has none.
pub fn client_files(server_toml: &Path) -> Result<Vec<PathBuf>, Problem> {
    client_files_in(&Settings::clients_directory_of(server_toml))
}

fn client_files_in(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    Ok(client_file_names(directory)?.into_iter().map(|name| directory.join(name)).collect())
}

/// The usual directory need not be there yet. One that is stated may not be mounted, and then nobody would
/// be let in any more.
pub(super) fn is_there(server_toml: &Path, directory: &Path) -> Result<(), Problem> {
    if directory == clients_beside(server_toml) {
        return Ok(());
    }
    let fault = match std::fs::metadata(directory) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Fault::NoClientsDirectory,
        Err(error) => Fault::Io(error),
    };
    Err(Problem { path: directory.into(), fault })
}

/// The names of the files in this directory.
pub(super) fn client_file_names(directory: &Path) -> Result<Vec<OsString>, Problem> {
    let failed = |error| Problem { path: directory.into(), fault: Fault::Io(error) };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    file::judge_directory(directory)?;
    let mut names = with_room_for(MANY);
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let bytes = name.as_encoded_bytes();
        if !bytes.starts_with(b".") && bytes.ends_with(SUFFIX.as_bytes()) {
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
    let directory = Settings::clients_directory_of(server_toml);
    let Ok(files) = client_files_in(&directory) else { return Vec::new() };
    let mut present = HashMap::new();
    let mut is_whole = directory.is_dir();
    for file in &files {
        match Outline::read(file) {
            Some(outline) => drop(present.insert(file.clone(), outline)),
            None => is_whole = false,
        }
    }
    let file_of = |name: &str| directory.join(format!("{name}.toml"));
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
