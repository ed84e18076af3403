//! Follows the audit trail in the journal, in a file or in what comes over standard input, on a thread
//! of its own, and knows how far it is. What becomes of an event is no matter of this.

use super::lines::Lines;
use crate::audit::journal::{JOURNALCTL, Recorded, journalctl};
use crate::audit::trail::Entry;
use crate::clock::Now;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;
use tokio::sync::mpsc;

/// What is heard and not looked at yet; then the trail has to wait.
const HEARD_AHEAD: usize = 256;
/// How often a file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);

/// Where the trail is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trail {
    Journal,
    File(PathBuf),
    StandardInput,
}

/// How far in it somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Position {
    /// At nothing yet: what came since this time, in seconds, is still to be looked at.
    Since(u64),
    /// Behind this entry of the journal.
    Cursor(String),
    /// Behind so many bytes of this file.
    File { device: u64, inode: u64, offset: u64 },
    /// In what can't be read again.
    Stream,
}

impl Position {
    /// Where this trail ends now; nowhere, if that can't be told.
    pub(super) fn end_of(trail: &Trail) -> Option<Self> {
        match trail {
            Trail::Journal => Some(Self::Since(Now::realtime().as_secs())),
            Trail::File(path) => {
                let metadata = fs::metadata(path).ok().filter(Metadata::is_file)?;
                let (device, inode, offset) = (metadata.dev(), metadata.ino(), metadata.len());
                Some(Self::File { device, inode, offset })
            }
            Trail::StandardInput => None,
        }
    }

    /// Whether it can be one in this trail, and none that somebody has invented: it becomes an argument.
    pub(super) fn fits(&self, trail: &Trail) -> bool {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "=;-".contains(c);
        match (self, trail) {
            (Self::Since(_), Trail::Journal) | (Self::File { .. }, Trail::File(_)) => true,
            (Self::Cursor(cursor), Trail::Journal) => cursor.chars().all(is_plain),
            _ => false,
        }
    }
}

/// What is heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A line of the trail.
    Event(Entry, Position),
    /// Something else.
    Other(Position),
    /// There is no more.
    End,
    /// It can't be followed any more; why.
    Failed(String),
}

/// A trail that is followed; no longer when this is dropped.
pub(super) struct Following {
    heard: mpsc::Receiver<Heard>,
    /// What reads the journal.
    child: Option<Child>,
}

impl Following {
    /// Follows it from there, or from now on.
    pub(super) fn start(trail: &Trail, from: Option<Position>) -> io::Result<Self> {
        let (to, heard) = mpsc::channel(HEARD_AHEAD);
        let mut child = None;
        let follow: Box<dyn FnOnce() -> Result<(), Over> + Send> = match trail {
            Trail::Journal => {
                let mut started = journalctl_from(from.as_ref()).spawn()?;
                let output = started.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
                child = Some(started);
                let to = Ear(to.clone());
                Box::new(move || journal(output, &to))
            }
            Trail::StandardInput => {
                let to = Ear(to.clone());
                Box::new(move || stream(io::stdin(), &to))
            }
            Trail::File(path) => {
                let (to, path) = (Ear(to.clone()), path.clone());
                // It is there, or that is told at once.
                let opened = File::open(&path)?;
                Box::new(move || file(&path, opened, from.as_ref(), &to))
            }
        };
        std::thread::Builder::new().name("trail".into()).spawn(move || {
            let last = match follow() {
                Ok(()) => Heard::End,
                Err(Over::Failed(why)) => Heard::Failed(why),
                Err(Over::NobodyListens) => return,
            };
            // Nobody may listen any more.
            let _ = to.blocking_send(last);
        })?;
        Ok(Self { heard, child })
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> Heard {
        let gone = || Heard::Failed("the thread that follows the trail has died".into());
        self.heard.recv().await.unwrap_or_else(gone)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Why nothing is read any more.
enum Over {
    NobodyListens,
    Failed(String),
}

struct Ear(mpsc::Sender<Heard>);

impl Ear {
    fn hear(&self, entry: Option<Entry>, upto: Position) -> Result<(), Over> {
        let heard = match entry {
            Some(entry) => Heard::Event(entry, upto),
            None => Heard::Other(upto),
        };
        self.0.blocking_send(heard).map_err(|_| Over::NobodyListens)
    }
}

fn journalctl_from(from: Option<&Position>) -> std::process::Command {
    let mut command = journalctl();
    command.args(["--follow", "--no-tail", "--quiet"]);
    match from {
        Some(Position::Cursor(cursor)) => command.arg(format!("--after-cursor={cursor}")),
        Some(Position::Since(seconds)) => command.arg(format!("--since=@{seconds}")),
        _ => command.arg("--since=now"),
    };
    command
}

fn journal(mut output: impl Read, to: &Ear) -> Result<(), Over> {
    let mut each = |line: &[u8], _| match Recorded::parse(line) {
        Some(recorded) if !recorded.cursor.is_empty() => {
            to.hear(recorded.entry(), Position::Cursor(recorded.cursor))
        }
        _ => Ok(()),
    };
    read_on(&mut output, &mut Lines::default(), &mut each)
        .map_err(|stopped| stopped.of(Path::new(JOURNALCTL)))?;
    Err(Over::Failed(format!("{JOURNALCTL} has ended; may this user read the journal?")))
}

fn stream(mut input: impl Read, to: &Ear) -> Result<(), Over> {
    let mut each = |line: &[u8], _| to.hear(logged(line), Position::Stream);
    read_on(&mut input, &mut Lines::default(), &mut each)
        .map_err(|stopped| stopped.of(Path::new("standard input")))
}

fn logged(line: &[u8]) -> Option<Entry> {
    Entry::parse_logged(&String::from_utf8_lossy(line))
}

enum Stopped {
    By(Over),
    Reading(io::Error),
}

impl Stopped {
    fn of(self, path: &Path) -> Over {
        match self {
            Self::By(over) => over,
            Self::Reading(error) => {
                Over::Failed(format!("{} can't be read: {error}", path.display()))
            }
        }
    }
}

/// Reads up to the end of what is there.
fn read_on(
    from: &mut impl Read,
    lines: &mut Lines,
    each: &mut impl FnMut(&[u8], u64) -> Result<(), Over>,
) -> Result<(), Stopped> {
    let mut chunk = [0; 8192];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let read = chunk.get(..count).unwrap_or_default();
                lines.feed(read, &mut *each).map_err(Stopped::By)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Stopped::Reading(error)),
        }
    }
}

/// Follows a file, and the one that takes its place: by a new name for the old one, or by cutting it.
fn file(path: &Path, opened: File, from: Option<&Position>, to: &Ear) -> Result<(), Over> {
    let failed = |error| Stopped::Reading(error).of(path);
    let mut opened = opened;
    let metadata = opened.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return stream(opened, to);
    }
    let mut begin = match from {
        Some(Position::File { device, inode, offset }) => {
            let is_same = is(&metadata, *device, *inode) && *offset <= metadata.len();
            if is_same { *offset } else { 0 }
        }
        _ => metadata.len(),
    };
    loop {
        let metadata = opened.metadata().map_err(failed)?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        opened.seek(SeekFrom::Start(begin)).map_err(failed)?;
        let mut lines = Lines::behind(begin);
        let mut each =
            |line: &[u8], offset| to.hear(logged(line), Position::File { device, inode, offset });
        begin = 0;
        let mut successor = None;
        loop {
            read_on(&mut opened, &mut lines, &mut each).map_err(|stopped| stopped.of(path))?;
            if successor.is_some() || was_cut(&mut opened).map_err(failed)? {
                break;
            }
            std::thread::sleep(LOOK);
            if to.0.is_closed() {
                return Err(Over::NobodyListens);
            }
            // While there is none of that name, somebody is about to make one. What was written to the
            // old one until now is read first.
            if fs::metadata(path).is_ok_and(|other| !is(&other, device, inode)) {
                successor = File::open(path).ok();
            }
        }
        if let Some(file) = successor {
            opened = file;
        }
    }
}

fn is(metadata: &Metadata, device: u64, inode: u64) -> bool {
    (metadata.dev(), metadata.ino()) == (device, inode)
}

/// Whether there is less in it than was read.
fn was_cut(file: &mut File) -> io::Result<bool> {
    Ok(file.metadata()?.len() < file.stream_position()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn trail(id: u32) -> String {
        format!("2027-01-15T08:00:00.000000Z  INFO audit: event=opened id={id}\n")
    }

    async fn ids(following: &mut Following, count: usize) -> (Vec<String>, Position) {
        let (mut ids, mut last) = (Vec::new(), Position::Stream);
        while ids.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(20), following.next());
            match next.await.unwrap() {
                Heard::Event(entry, upto) => {
                    ids.push(entry.get("id").unwrap().to_owned());
                    last = upto;
                }
                Heard::Other(_) => {}
                other => panic!("{other:?}"),
            }
        }
        (ids, last)
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn a_file_is_followed_through_rotation_and_from_where_it_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        append(&path, &trail(0));
        let follow = |from| Following::start(&Trail::File(path.clone()), from).unwrap();
        let mut following = follow(Some(Position::File { device: 0, inode: 0, offset: 7 }));
        // That is another file: this one is new from its beginning.
        assert_eq!(ids(&mut following, 1).await.0, ["0"]);
        append(&path, "2027-01-15T08:00:00.000000Z  INFO spa_server::daemon: ready\n");
        append(&path, trail(1).strip_suffix('\n').unwrap());
        append(&path, &format!("\n{}", trail(2)));
        let (found, position) = ids(&mut following, 2).await;
        assert_eq!(found, ["1", "2"]);
        drop(following);

        append(&path, &trail(3));
        let mut following = follow(Some(position));
        assert_eq!(ids(&mut following, 1).await.0, ["3"]);
        // As logrotate does it by `copytruncate`.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        // That it was cut is seen if there is less in it than before.
        tokio::time::sleep(3 * LOOK).await;
        append(&path, &trail(4));
        assert_eq!(ids(&mut following, 1).await.0, ["4"]);
        fs::rename(&path, directory.path().join("log.1")).unwrap();
        append(&directory.path().join("log.1"), &trail(5));
        append(&path, &trail(6));
        assert_eq!(ids(&mut following, 2).await.0, ["5", "6"]);
    }

    #[tokio::test]
    async fn without_a_position_what_was_there_before_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        append(&path, &trail(0));
        let mut following = Following::start(&Trail::File(path.clone()), None).unwrap();
        tokio::time::sleep(2 * LOOK).await;
        append(&path, &trail(1));
        assert_eq!(ids(&mut following, 1).await.0, ["1"]);
        assert!(Following::start(&Trail::File("/nonexistent".into()), None).is_err());
    }

    #[test]
    fn a_position_is_one_of_this_trail_and_nothing_else() {
        let file = Trail::File("/log".into());
        let cursor = |text: &str| Position::Cursor(text.into());
        assert!(cursor("s=2a5c;i=4f;b=0d;m=1;t=5;x=9").fits(&Trail::Journal));
        assert!(!cursor("s=1 --file=/etc/shadow").fits(&Trail::Journal));
        assert!(!cursor("s=1").fits(&file) && !Position::Stream.fits(&file));
        assert!(Position::Since(5).fits(&Trail::Journal));
        let place = Position::File { device: 1, inode: 2, offset: 3 };
        assert!(place.fits(&file) && !place.fits(&Trail::Journal));
        let text = serde_json::to_string(&place).unwrap();
        assert_eq!(text, r#"{"file":{"device":1,"inode":2,"offset":3}}"#);
    }
}
