//! The directory of the clients' files.

use super::client::{ClientName, ClientSettings, Introduced, Surroundings};
use super::error::{Fault, Problem, ValueError};
use super::file;
use super::keys::{Client, ServerKeys};
use crate::enrolment::{Enrolments, Introduction};
use spa_keys::PublicKey;
use spa_proto::ClientId;
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

/// Those of these clients who are to be locked out by a configuration of which nothing else can be
/// had, since something is wrong with it: their file says `enabled = false`, whoever can write it,
/// or is gone from its directory.
///
/// What may be half written locks nobody out by what it lacks: then all other files have to be
/// whole, and none of them may have the client's key or invitation by another name.
pub fn locked_out<'a>(
    server_toml: &Path,
    clients: impl Iterator<Item = (ClientId, &'a Introduction, &'a str)>,
) -> Vec<ClientId> {
    let Ok(files) = client_files(server_toml) else { return Vec::new() };
    let mut present = HashMap::new();
    let mut is_whole = clients_directory(server_toml).is_dir();
    for file in &files {
        match Outline::read(file) {
            Some(outline) => drop(present.insert(file.clone(), outline)),
            None => is_whole = false,
        }
    }
    let file_of = |name: &str| clients_directory(server_toml).join(format!("{name}.toml"));
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
                let secret = spa_keys::read_invitation_secret(file).ok();
                secret.map(|secret| Introduction::Invitation(secret.fingerprint()))
            }
            _ => return None,
        };
        Some(Self { introduction, enabled })
    }
}

/// Reads all clients and derives their secrets; without the server's key they are only read, and
/// none comes back. Clients with which anything is wrong are left out.
pub(super) fn load(
    server_toml: &Path,
    surroundings: &Surroundings<'_>,
    known: Option<(&ServerKeys, &Enrolments)>,
) -> Result<(Vec<Client>, Vec<Problem>), Problem> {
    let files = client_files(server_toml)?;
    let mut clients = Vec::with_capacity(files.len());
    let mut marked = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    for loaded in load_all(&files, surroundings, known) {
        clients.extend(loaded.client);
        marked.extend(loaded.marked);
        problems.extend(loaded.problems);
    }
    problems.extend(same_keys(&marked));
    let wrong: HashSet<&Path> = problems.iter().map(|problem| problem.path.as_path()).collect();
    let is_sound = |client: &Client| !wrong.contains(client.settings.file.as_path());
    let sound = clients.into_iter().filter(is_sound).collect();
    Ok((sound, problems))
}

#[derive(Default)]
struct Loaded {
    marked: Option<Marked>,
    client: Option<Client>,
    problems: Vec<Problem>,
}

/// A client's file, and what no other may have.
struct Marked {
    file: PathBuf,
    marks: Vec<Mark>,
}

/// What no two clients may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Mark {
    Key(PublicKey),
    Secret(PathBuf),
    Invitation(Introduction),
}

impl Mark {
    fn of(settings: &ClientSettings) -> Self {
        match &settings.introduced {
            Introduced::ByKey { public_key, .. } => Self::Key(*public_key),
            Introduced::ByInvitation { secret_file, .. } => Self::Secret(secret_file.clone()),
        }
    }

    /// The marks of a whole client: by whatever key it is known now.
    fn all(client: &Client) -> Vec<Self> {
        let mut marks = vec![Self::of(&client.settings)];
        if let Introduction::Invitation(_) = client.introduction {
            marks.push(Self::Invitation(client.introduction.clone()));
        }
        marks.extend(client.keys.iter().map(|known| Self::Key(known.key)));
        marks.dedup();
        marks
    }
}

/// One X25519 for each client: with 10,000 of them, this is what a start waits for.
fn load_all(
    files: &[PathBuf],
    surroundings: &Surroundings<'_>,
    known: Option<(&ServerKeys, &Enrolments)>,
) -> Vec<Loaded> {
    let load_chunk = |files: &[PathBuf]| -> Vec<Loaded> {
        files.iter().map(|file| load_one(file, surroundings, known)).collect()
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
    known: Option<(&ServerKeys, &Enrolments)>,
) -> Loaded {
    let settings = match ClientSettings::load_within(file, surroundings) {
        Ok(settings) => settings,
        Err(problems) => return Loaded { problems, ..Loaded::default() },
    };
    let (file, mark) = (settings.file.clone(), Mark::of(&settings));
    match known.map(|(keys, enrolled)| Client::derive(settings, keys, enrolled)).transpose() {
        Ok(client) => {
            let marks = client.as_ref().map_or_else(|| vec![mark], Mark::all);
            Loaded { marked: Some(Marked { file, marks }), client, problems: Vec::new() }
        }
        Err(problem) => {
            let marked = Some(Marked { file, marks: vec![mark] });
            Loaded { marked, client: None, problems: vec![problem] }
        }
    }
}

fn same_keys(clients: &[Marked]) -> Vec<Problem> {
    let mut seen: HashMap<&Mark, &Path> = HashMap::with_capacity(clients.len());
    let mut problems = Vec::new();
    for Marked { file, marks } in clients {
        let other = marks.iter().find_map(|mark| Some((mark, *seen.get(mark)?)));
        match other {
            None => seen.extend(marks.iter().map(|mark| (mark, file.as_path()))),
            Some((mark, other)) => {
                let other = other.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let key = match mark {
                    Mark::Key(_) => "public-key",
                    Mark::Secret(_) | Mark::Invitation(_) => "invitation",
                };
                let fault = Fault::value(key, ValueError::SameKey { other });
                problems.push(Problem { path: file.clone(), fault });
            }
        }
    }
    problems
}
