//! The directory of the clients' files.

use super::client::{Client, ClientName, ClientSettings, Surroundings};
use super::error::{Fault, Problem, ValueError};
use super::file;
use spa_keys::{PrivateKey, PublicKey};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// Below this many clients, threads cost more than they give.
const WORTH_A_THREAD: usize = 64;
const MAX_THREADS: usize = 8;

/// The directory of the clients of the configuration at `server_toml`.
pub fn clients_directory(server_toml: &Path) -> PathBuf {
    server_toml.with_file_name("clients.d")
}

/// The file of the client of that name.
pub fn client_file(server_toml: &Path, name: &ClientName) -> PathBuf {
    clients_directory(server_toml).join(format!("{name}.toml"))
}

/// The files of all clients, in the order of their names: whatever ends in `.toml` and does not
/// begin with a dot. A directory that is not there has none.
pub fn client_files(server_toml: &Path) -> Result<Vec<PathBuf>, Problem> {
    let directory = clients_directory(server_toml);
    let failed = |error| Problem { path: directory.clone(), fault: Fault::Io(error) };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    file::judge_directory(&directory)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether that client is to be locked out by a configuration of which nothing else can be had,
/// since something is wrong with it: its file is gone from the directory, or says `enabled = false`,
/// whoever can write it. A directory that is gone locks nobody out.
pub fn is_locked_out(server_toml: &Path, name: &str) -> bool {
    let directory = clients_directory(server_toml);
    match file::read_unjudged(&directory.join(format!("{name}.toml"))) {
        Ok(text) => toml::from_str::<toml::Table>(&text)
            .is_ok_and(|table| table.get("enabled") == Some(&toml::Value::Boolean(false))),
        Err(Fault::Missing) => directory.is_dir(),
        Err(_) => false,
    }
}

/// Reads all clients and derives their secrets; without the server's key they are only read, and
/// none comes back. Clients with which anything is wrong are left out.
pub(super) fn load(
    server_toml: &Path,
    surroundings: &Surroundings<'_>,
    server_key: Option<&PrivateKey>,
) -> Result<(Vec<Client>, Vec<Problem>), Problem> {
    let files = client_files(server_toml)?;
    let mut clients = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    for loaded in load_all(&files, surroundings, server_key) {
        clients.extend(loaded.client);
        problems.extend(loaded.problems);
    }
    problems.extend(same_keys(&clients));
    let wrong: HashSet<&Path> = problems.iter().map(|problem| problem.path.as_path()).collect();
    let sound = clients
        .into_iter()
        .filter(|((file, _), _)| !wrong.contains(file.as_path()))
        .filter_map(|(_, client)| client)
        .collect();
    Ok((sound, problems))
}

#[derive(Default)]
struct Loaded {
    /// The settings as far as two clients are compared by them, and the whole client.
    client: Option<((PathBuf, PublicKey), Option<Client>)>,
    problems: Vec<Problem>,
}

/// One X25519 for each client: with 10,000 of them, this is what a start waits for.
fn load_all(
    files: &[PathBuf],
    surroundings: &Surroundings<'_>,
    server_key: Option<&PrivateKey>,
) -> Vec<Loaded> {
    let load_chunk = |files: &[PathBuf]| -> Vec<Loaded> {
        files.iter().map(|file| load_one(file, surroundings, server_key)).collect()
    };
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = available.min(MAX_THREADS).min(files.len() / WORTH_A_THREAD);
    if threads < 2 {
        return load_chunk(files);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = files
            .chunks(files.len().div_ceil(threads))
            .map(|chunk| scope.spawn(move || load_chunk(chunk)))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.join() {
                Ok(loaded) => loaded,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

fn load_one(
    file: &Path,
    surroundings: &Surroundings<'_>,
    server_key: Option<&PrivateKey>,
) -> Loaded {
    let settings = match ClientSettings::load_within(file, surroundings) {
        Ok(settings) => settings,
        Err(problems) => return Loaded { client: None, problems },
    };
    let key = (settings.file.clone(), settings.public_key);
    match server_key.map(|server| Client::derive(settings, server)).transpose() {
        Ok(client) => Loaded { client: Some((key, client)), problems: Vec::new() },
        Err(problem) => Loaded { client: Some((key, None)), problems: vec![problem] },
    }
}

fn same_keys(clients: &[((PathBuf, PublicKey), Option<Client>)]) -> Vec<Problem> {
    let mut seen: HashMap<PublicKey, &Path> = HashMap::with_capacity(clients.len());
    let mut problems = Vec::new();
    for ((file, public_key), _) in clients {
        match seen.get(public_key) {
            None => drop(seen.insert(*public_key, file)),
            Some(other) => {
                let other = other.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let fault = Fault::value("public-key", ValueError::SameKey { other });
                problems.push(Problem { path: file.clone(), fault });
            }
        }
    }
    problems
}
