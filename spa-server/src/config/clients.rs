//! All clients: their files read, compared with each other, and their secrets derived.
//!
//! There may be a hundred thousand. So what is read of a file is brought down at once to what is kept
//! of it, in the lists in which it is going to be used. Whatever else a file takes in memory is gone
//! before the next one is read: a little of each would leave holes among what stays.

use super::client::{ClientSettings, Introduced, Surroundings};
use super::clients_d::{SUFFIX, client_file_names};
use super::error::{Fault, Problem, ValueError};
use super::kept::{Kept, Source};
use super::key_reader;
use super::keys::{PairSecrets, ServerKeys};
use super::lies_in_the_state;
use crate::enrolment::{ClientKey, ClientKeys, Enrolments, Introduction, Invited, Member, Roster};
use crate::large_list::with_room_for;
use crate::policy::{ClientRules, Clients, Entry};
use spa_keys::{DeriveError, InvitationSecret, PreSharedKey, PublicKey};
use spa_proto::{ClientId, PairSecret, Sender, ServerKey, UnixMicros};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Below this many clients, threads cost more than they give.
const WORTH_A_THREAD: usize = 64;
/// So many files are read before what is of no more use is thrown away.
const AT_A_TIME: usize = 1_000;
const MAX_THREADS: usize = 8;

/// How many clients there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientCount {
    /// All of them.
    pub total: usize,
    /// Those that are not disabled.
    pub enabled: usize,
}

/// Who seals packets to the server's identities, and with what.
#[derive(Debug, Default)]
pub(super) struct Senders {
    pub(super) present: Vec<(Sender, PairSecret)>,
    pub(super) previous: Vec<(Sender, PairSecret)>,
}

impl Senders {
    pub(super) const fn to(&mut self, which: ServerKey) -> &mut Vec<(Sender, PairSecret)> {
        match which {
            ServerKey::Present => &mut self.present,
            ServerKey::Previous => &mut self.previous,
        }
    }
}

/// What all clients' files come to.
#[derive(Debug, Default)]
pub(super) struct Everybody {
    pub(super) kept: Kept,
    pub(super) count: ClientCount,
    /// What they may do, by the keys and invitations that they have now.
    pub(super) clients: Clients,
    pub(super) senders: Senders,
    pub(super) roster: Roster,
    /// Of those who have had several keys: the other ones.
    pub(super) kin: Vec<(ClientId, Vec<ClientId>)>,
    /// Clients that have neither a key nor an invitation now, since it was lost.
    pub(super) keyless: Vec<(Box<str>, Arc<ClientRules>)>,
}

/// What has to be known to give clients their secrets.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) server: &'a ServerKeys,
    pub(super) enrolments: &'a Enrolments,
    pub(super) state_directory: &'a Path,
}

/// Reads all clients and derives their secrets; without the server's key they are only read, and
/// none comes back. Clients with which anything is wrong are left out.
pub(super) fn load(
    directory: &Path,
    surroundings: &Surroundings<'_>,
    known: Option<Known<'_>>,
) -> Result<(Everybody, Vec<Problem>), Problem> {
    let files = client_file_names(directory)?;
    let reader = Reader {
        directory,
        surroundings,
        enrolments: known.map(|known| known.enrolments),
        rules: Mutex::default(),
    };
    let mut read = Read::with_room_for(files.len());
    for part in in_parallel(files, |files| reader.read(files)) {
        read.append(part);
    }
    let twice = read.same_keys(directory);
    let Read { files, mut problems, .. } = read;
    let mut parts = Parts::default();
    let mut kept = Kept::default();
    if let Some(Known { server, state_directory, .. }) = known {
        let source = Source::of(state_directory, server, files.len());
        let maker = Maker { server, source: &source, directory };
        parts = maker.nothing(files.len());
        for part in in_parallel(files, |files| maker.parts(files)) {
            parts.append(part);
        }
        kept = source.done();
    }
    problems.append(&mut parts.problems);
    problems.sort_by(|one, other| one.path.cmp(&other.path));
    problems.extend(twice);
    Ok((Everybody { kept, ..parts.into() }, problems))
}

/// What the clients may do whose files are sound: of those who may do the same, once.
pub(super) fn rules(
    directory: &Path,
    surroundings: &Surroundings<'_>,
) -> Result<Vec<Arc<ClientRules>>, Problem> {
    let rules = Mutex::default();
    let reader = Reader { directory, surroundings, enrolments: None, rules };
    // Nothing of a file stays but its rules.
    in_parallel(client_file_names(directory)?, |files| {
        let mut files = files.into_iter();
        while files.len() > 0 {
            drop(reader.read(files.by_ref().take(AT_A_TIME).collect()));
        }
    });
    let rules = reader.rules.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(rules.into_iter().collect())
}

/// Does `work` with each part of `all`, on as many processors as there are.
fn in_parallel<T: Send, R: Send>(mut all: Vec<T>, work: impl Fn(Vec<T>) -> R + Sync) -> Vec<R> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = available.min(MAX_THREADS).min(all.len() / WORTH_A_THREAD);
    if threads < 2 {
        return vec![work(all)];
    }
    let mut parts = Vec::with_capacity(threads);
    for part in (1..threads).rev() {
        let rest = all.len().saturating_mul(part).div_ceil(part.saturating_add(1));
        let mut last = with_room_for(all.len().saturating_sub(rest));
        last.extend(all.drain(rest..));
        parts.push(last);
    }
    parts.push(all);
    std::thread::scope(|scope| {
        let work = &work;
        let begin = |part| scope.spawn(move || work(part));
        let workers: Vec<_> = parts.into_iter().rev().map(begin).collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.collect()
    })
}

/// What no two clients may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Mark {
    Key(PublicKey),
    Secret(Box<Path>),
    Invitation(Box<Introduction>),
}

/// Files, as they were read.
struct Read {
    /// All of them, in their order.
    files: Vec<FileRead>,
    /// Whose marks they are: which file's.
    marks: Vec<(u32, Mark)>,
    problems: Vec<Problem>,
}

struct FileRead {
    name: Box<str>,
    /// `None`: something is wrong with it.
    client: Option<Client>,
}

/// What is kept of a client's file.
struct Client {
    rules: Arc<ClientRules>,
    keys: Keys,
}

/// By what a client is known.
enum Keys {
    /// By the key in its file, and never by another one.
    One(PublicKey, Option<Arc<PreSharedKey>>),
    /// By whatever it has brought itself, or is going to.
    Others(Box<Others>),
}

struct Others {
    introduction: Introduction,
    /// None before it has come; the one that it has; and one that is to take its place.
    keys: Vec<KnownKey>,
    /// Those that it has had before, or was to have.
    former: Vec<PublicKey>,
    /// What it enrols by, or has enrolled by.
    invitation: Option<Invitation>,
}

struct Invitation {
    secret: Arc<InvitationSecret>,
    issued: UnixMicros,
    expires: UnixMicros,
}

/// A key that a client knocks with.
#[derive(Clone)]
struct KnownKey {
    key: PublicKey,
    pre_shared: Option<Arc<PreSharedKey>>,
    /// Whether it is only to be the client's key.
    is_pending: bool,
}

struct Reader<'a> {
    directory: &'a Path,
    surroundings: &'a Surroundings<'a>,
    enrolments: Option<&'a Enrolments>,
    /// Each once.
    rules: Mutex<HashSet<Arc<ClientRules>>>,
}

impl Reader<'_> {
    fn read(&self, files: Vec<OsString>) -> Read {
        let mut read = Read::with_room_for(files.len());
        for (number, file) in (0..).zip(files) {
            let path = self.directory.join(&file);
            let client = match ClientSettings::load_within(&path, self.surroundings) {
                Ok(settings) => self.client(&path, settings, number, &mut read),
                Err(mut problems) => {
                    read.problems.append(&mut problems);
                    None
                }
            };
            read.files.push(FileRead { name: name_of(file), client });
        }
        read
    }

    /// What is kept of a file; what is wrong with it goes to `read`, and its marks as well.
    fn client(
        &self,
        path: &Path,
        settings: ClientSettings,
        number: u32,
        read: &mut Read,
    ) -> Option<Client> {
        let mut mark = |mark| read.marks.push((number, mark));
        match &settings.introduced {
            Introduced::ByKey { public_key, .. } => mark(Mark::Key(*public_key)),
            Introduced::ByInvitation { secret_file, .. } => {
                mark(Mark::Secret(secret_file.as_path().into()));
            }
        }
        let rules = self.shared(&settings.rules);
        let enrolments = self.enrolments?;
        let mut wrong = |key: &str, error: ValueError| {
            read.problems.push(Problem { path: path.into(), fault: Fault::value(key, error) });
        };
        let (introduction, secret) = settings
            .introduction()
            .map_err(|error| wrong("invitation.secret-file", error.into()))
            .ok()?;
        let (at_first, invited) = match settings.introduced {
            Introduced::ByKey { public_key, pre_shared_key_file } => {
                let pre_shared =
                    pre_shared_key_file.map(|file| key_reader().pre_shared_key(file)).transpose();
                let pre_shared =
                    pre_shared.map_err(|error| wrong("pre-shared-key-file", error.into())).ok()?;
                let pre_shared = pre_shared.map(Arc::new);
                if enrolments.of(&introduction).is_none() {
                    return Some(Client { rules, keys: Keys::One(public_key, pre_shared) });
                }
                (Some(KnownKey { key: public_key, pre_shared, is_pending: false }), None)
            }
            Introduced::ByInvitation { issued, expires, .. } => (None, Some((issued, expires))),
        };
        let ClientKeys { present, pending, former, is_lost, .. } =
            enrolments.of(&introduction).cloned().unwrap_or_default();
        let known = |ClientKey { key, pre_shared }: ClientKey, is_pending| KnownKey {
            key,
            pre_shared: Some(pre_shared),
            is_pending,
        };
        let present = present.map(|key| known(key, false)).or(at_first.filter(|_| !is_lost));
        let keys: Vec<_> = present.into_iter().chain(pending.map(|key| known(key, true))).collect();
        let mut mark = |mark| read.marks.push((number, mark));
        if let Introduction::Invitation(_) = &introduction {
            mark(Mark::Invitation(Box::new(introduction.clone())));
        }
        let others = keys.iter().filter(|it| introduction != Introduction::Key(it.key));
        others.for_each(|known| mark(Mark::Key(known.key)));
        let invitation = secret.zip(invited).map(|(secret, (issued, expires))| Invitation {
            secret: Arc::new(secret),
            issued,
            expires,
        });
        let others = Others { introduction, keys, former, invitation };
        Some(Client { rules, keys: Keys::Others(Box::new(others)) })
    }

    /// The same rules as those of others, where there are others with these.
    fn shared(&self, rules: &ClientRules) -> Arc<ClientRules> {
        let mut all = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(rules) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(rules.clone());
        all.insert(Arc::clone(&shared));
        shared
    }
}

/// The name of the client whose file is called so; of one that is called wrongly, what there is.
fn name_of(file: OsString) -> Box<str> {
    let mut name = file.into_string().unwrap_or_else(|file| file.to_string_lossy().into_owned());
    name.truncate(name.len().saturating_sub(SUFFIX.len()));
    name.into_boxed_str()
}

impl Read {
    fn with_room_for(count: usize) -> Self {
        let (files, marks) = (with_room_for(count), with_room_for(count));
        Self { files, marks, problems: Vec::new() }
    }

    fn append(&mut self, mut next: Self) {
        let before = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.append(&mut next.files);
        let marks = next.marks.into_iter();
        self.marks.extend(marks.map(|(file, mark)| (file.saturating_add(before), mark)));
        self.problems.append(&mut next.problems);
    }

    /// Takes out clients that have what another one has, and says so.
    fn same_keys(&mut self, directory: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut sorted = with_room_for(self.marks.len());
        sorted.extend(self.marks.iter().map(|(_, mark)| mark));
        sorted.sort_unstable();
        if sorted.windows(2).all(|pair| pair.first() != pair.last()) {
            return problems;
        }
        let mut seen: HashMap<&Mark, u32> = HashMap::new();
        for marks in self.marks.chunk_by(|(one, _), (other, _)| one == other) {
            let other = marks.iter().find_map(|(file, mark)| Some((*file, mark, *seen.get(mark)?)));
            let Some((file, mark, other)) = other else {
                seen.extend(marks.iter().map(|(file, mark)| (mark, *file)));
                continue;
            };
            let at = |file| usize::try_from(file).unwrap_or(usize::MAX);
            let name = |file| self.files.get(at(file)).map(|file| &*file.name).unwrap_or_default();
            let key = match mark {
                Mark::Key(_) => "public-key",
                Mark::Secret(_) | Mark::Invitation(_) => "invitation",
            };
            let fault = Fault::value(key, ValueError::SameKey { other: name(other).to_owned() });
            problems.push(Problem { path: path_of(directory, name(file)), fault });
            if let Some(file) = self.files.get_mut(at(file)) {
                file.client = None;
            }
        }
        problems
    }
}

fn path_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{SUFFIX}"))
}

/// What becomes [`Everybody`].
#[derive(Default)]
struct Parts {
    count: ClientCount,
    known: Vec<(ClientId, Entry)>,
    invited: Vec<(ClientId, Entry)>,
    senders: Senders,
    members: Vec<(ClientId, Member)>,
    invitations: Vec<(ClientId, Invited)>,
    kin: Vec<(ClientId, Vec<ClientId>)>,
    keyless: Vec<(Box<str>, Arc<ClientRules>)>,
    problems: Vec<Problem>,
}

/// Gives clients their secrets.
struct Maker<'a> {
    server: &'a ServerKeys,
    source: &'a Source,
    directory: &'a Path,
}

impl Maker<'_> {
    fn parts(&self, files: Vec<FileRead>) -> Parts {
        let mut parts = self.nothing(files.len());
        for FileRead { name, client } in files {
            let Some(client) = client else { continue };
            let is_enabled = client.rules.enabled;
            match self.add(&mut parts, name, client) {
                Ok(()) => {
                    parts.count.add(ClientCount { total: 1, enabled: is_enabled.into() });
                }
                Err((name, error)) => {
                    let fault = Fault::value("public-key", error);
                    parts.problems.push(Problem { path: path_of(self.directory, &name), fault });
                }
            }
        }
        parts
    }

    /// With room for so many clients.
    fn nothing(&self, count: usize) -> Parts {
        let mut parts = Parts { known: with_room_for(count), ..Parts::default() };
        for (which, _) in self.server.masks() {
            *parts.senders.to(which) = with_room_for(count);
        }
        parts
    }

    /// Adds a client; of one whose key is good for nothing, gives back the name.
    fn add(
        &self,
        parts: &mut Parts,
        name: Box<str>,
        Client { rules, keys }: Client,
    ) -> Result<(), (Box<str>, DeriveError)> {
        match keys {
            Keys::One(key, pre_shared) => {
                let known = KnownKey { key, pre_shared, is_pending: false };
                match self.secrets(&known, false) {
                    Ok(secrets) => {
                        parts.add_key(known, secrets, Entry { introduction: None, name, rules });
                    }
                    Err(error) => return Err((name, error)),
                }
            }
            Keys::Others(others) => {
                let lies_in_the_state = lies_in_the_state(&others.introduction);
                let secrets = others.keys.iter().map(|it| self.secrets(it, lies_in_the_state));
                let secrets: Result<Vec<_>, _> = secrets.collect();
                match secrets {
                    Ok(secrets) => parts.add_others(name, rules, *others, secrets, self.server),
                    Err(error) => return Err((name, error)),
                }
            }
        }
        Ok(())
    }

    /// `lies_in_the_state`: its pre-shared key does, if it has one.
    fn secrets(
        &self,
        KnownKey { key, pre_shared, .. }: &KnownKey,
        lies_in_the_state: bool,
    ) -> Result<PairSecrets, DeriveError> {
        let may_keep = lies_in_the_state || pre_shared.is_none();
        self.source.secrets(self.server, key, pre_shared.as_deref(), may_keep)
    }
}

impl Parts {
    fn add_key(&mut self, known: KnownKey, secrets: PairSecrets, entry: Entry) {
        let id = ClientId::from(known.key);
        let PairSecrets { present, previous } = secrets;
        self.senders.present.push((Sender::Client(id), present));
        self.senders.previous.extend(previous.map(|pair| (Sender::Client(id), pair)));
        let KnownKey { pre_shared, is_pending, .. } = known;
        if pre_shared.is_some() || is_pending || entry.introduction.is_some() {
            let introduction = entry.introduction(&id);
            self.members.push((id, Member { introduction, pre_shared, is_pending }));
        }
        self.known.push((id, entry));
    }

    fn add_others(
        &mut self,
        name: Box<str>,
        rules: Arc<ClientRules>,
        others: Others,
        secrets: Vec<PairSecrets>,
        server: &ServerKeys,
    ) {
        let Others { introduction, keys, former, invitation } = others;
        if keys.is_empty() && invitation.is_none() {
            self.keyless.push((name, rules));
            return;
        }
        let introduction = Arc::new(introduction);
        let entry = Entry { introduction: Some(Arc::clone(&introduction)), name, rules };
        if let Some(Invitation { secret, issued, expires }) = invitation {
            let invited = Invited {
                introduction: (*introduction).clone(),
                name: (&*entry.name).into(),
                secret: Arc::clone(&secret),
                issued,
                expires,
            };
            for which in [ServerKey::Present, ServerKey::Previous] {
                let Some(own) = server.private(which) else { continue };
                let keys = secret.keys(&own.public());
                self.senders.to(which).push((Sender::Invitation(keys.id), keys.pair));
                self.invitations.push((keys.id, invited.clone()));
                self.invited.push((keys.id, entry.clone()));
            }
        }
        let all = keys.iter().map(|known| known.key).chain(former);
        let all: Vec<ClientId> = all.map(ClientId::from).collect();
        for (known, secrets) in keys.into_iter().zip(secrets) {
            let id = ClientId::from(known.key);
            let kin = all.iter().copied().filter(|other| *other != id).collect();
            self.kin.push((id, kin));
            self.add_key(known, secrets, entry.clone());
        }
    }

    fn append(&mut self, mut next: Self) {
        self.count.add(next.count);
        self.known.append(&mut next.known);
        self.invited.append(&mut next.invited);
        self.senders.present.append(&mut next.senders.present);
        self.senders.previous.append(&mut next.senders.previous);
        self.members.append(&mut next.members);
        self.invitations.append(&mut next.invitations);
        self.kin.append(&mut next.kin);
        self.keyless.append(&mut next.keyless);
        self.problems.append(&mut next.problems);
    }
}

impl ClientCount {
    const fn add(&mut self, more: Self) {
        self.total = self.total.saturating_add(more.total);
        self.enabled = self.enabled.saturating_add(more.enabled);
    }
}

impl From<Parts> for Everybody {
    fn from(parts: Parts) -> Self {
        let Parts { count, known, invited, senders, members, .. } = parts;
        let clients = Clients::new(known, invited);
        let invitations = parts.invitations.into_iter().collect();
        let roster = Roster::new(Arc::clone(clients.keys()), members, invitations);
        let (kin, keyless) = (parts.kin, parts.keyless);
        Self { kept: Kept::default(), count, clients, senders, roster, kin, keyless }
    }
}
