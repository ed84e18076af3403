//! Where lines of the log go, without ever waiting for who reads them: a pipe that nobody empties, or
//! a journal that hangs, must keep nobody out. It knows nothing of what the lines say.

use super::Format;
use super::entry::Entry;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What may wait in memory for a reader, in bytes.
const ROOM: usize = 1024 * 1024;
/// What is written at a time: a pipe that says it has room has room for a page (pipe(7)).
const PIECE: usize = 4096;
/// Where the journal takes entries (systemd.io, "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

/// What takes the bytes of one line after the other.
pub(super) trait Outlet: Send {
    /// Takes some of the bytes and says how many; [`ErrorKind::WouldBlock`] where it would have to
    /// wait.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// A line that says that so many others are lost.
    fn loss(&self, lines: u64) -> Vec<u8>;
}

/// The lines that wait, in their order, and how many have found no room.
pub(super) struct Sink(Mutex<Waiting>);

struct Waiting {
    outlet: Box<dyn Outlet>,
    lines: VecDeque<Vec<u8>>,
    /// How much of the first line is out.
    out: usize,
    /// Of all lines together.
    bytes: usize,
    lost: u64,
}

impl Sink {
    pub(super) fn new(outlet: impl Outlet + 'static) -> Self {
        let outlet = Box::new(outlet);
        Self(Mutex::new(Waiting { outlet, lines: VecDeque::new(), out: 0, bytes: 0, lost: 0 }))
    }

    /// Writes a line, or keeps it for later.
    pub(super) fn line(&self, line: Vec<u8>) {
        let mut waiting = self.waiting();
        waiting.write();
        waiting.keep(line);
        waiting.write();
    }

    /// Writes what there is a reader for by now.
    pub(super) fn tend(&self) {
        self.waiting().write();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// After a line that was lost all are, until that can be told: in the place where they would
    /// have been.
    fn keep(&mut self, line: Vec<u8>) {
        let bytes = self.bytes.saturating_add(line.len());
        if self.lost > 0 || bytes > ROOM {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.bytes = bytes;
        self.lines.push_back(line);
    }

    fn write(&mut self) {
        while let Some(line) = self.lines.front() {
            match self.outlet.put(line.get(self.out..).unwrap_or_default()) {
                Ok(count) if count > 0 => {
                    self.out = self.out.saturating_add(count);
                    if self.out >= line.len() {
                        self.forget_first();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // A reader that is gone, or a disk that is full: the next line may have more luck.
                Ok(_) | Err(_) => {
                    self.forget_first();
                    self.lost = self.lost.saturating_add(1);
                }
            }
        }
        if self.lost > 0 {
            let loss = self.outlet.loss(self.lost);
            if let Ok(out) = self.outlet.put(&loss) {
                self.lost = 0;
                if out < loss.len() {
                    self.out = out;
                    self.bytes = loss.len();
                    self.lines.push_back(loss);
                }
            }
        }
    }

    fn forget_first(&mut self) {
        self.out = 0;
        let length = self.lines.pop_front().map_or(0, |line| line.len());
        self.bytes = self.bytes.saturating_sub(length);
    }
}

/// What there is to say of lines that are lost.
fn with_loss<R>(lines: u64, render: impl FnOnce(&Entry<'_>) -> R) -> R {
    let message =
        &format!("lines of the log that are lost, because they could not be written: {lines}");
    let (at, level) = (jiff::Timestamp::now(), tracing::Level::WARN);
    render(&Entry { at, level, target: "spa_server::daemon::log", message })
}

/// The standard error of this process.
pub(super) struct StandardError(pub(super) Format);

impl Outlet for StandardError {
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr();
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        stderr.write(bytes.get(..PIECE).unwrap_or(bytes))
    }

    fn loss(&self, lines: u64) -> Vec<u8> {
        with_loss(lines, |entry| match self.0 {
            Format::Json => super::json::line(entry),
            Format::Text => {
                let Entry { at, level, target, message } = entry;
                format!("{at:.6}  {level} {target}: {message}\n").into_bytes()
            }
        })
    }
}

/// The journal's own socket, where a line is a datagram.
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// Where there is a journal.
    pub(super) fn find() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let mut journal = Self(socket);
        match journal.put(&[]) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(journal),
        }
    }
}

impl Outlet for Journal {
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_to(bytes, JOURNAL)
    }

    fn loss(&self, lines: u64) -> Vec<u8> {
        with_loss(lines, super::journal::entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// What somebody reads, who may take a while.
    #[derive(Default)]
    struct Reader {
        read: Vec<u8>,
        room: usize,
        is_gone: bool,
    }

    impl Outlet for Arc<Mutex<Reader>> {
        fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut reader = self.lock().unwrap();
            if reader.is_gone {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let count = bytes.len().min(reader.room);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            reader.room -= count;
            reader.read.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn loss(&self, lines: u64) -> Vec<u8> {
            format!("lost {lines}\n").into_bytes()
        }
    }

    fn sink() -> (Sink, Arc<Mutex<Reader>>) {
        let reader = Arc::new(Mutex::new(Reader::default()));
        (Sink::new(Arc::clone(&reader)), reader)
    }

    fn read(reader: &Mutex<Reader>, room: usize) -> String {
        let mut reader = reader.lock().unwrap();
        reader.room = room;
        String::from_utf8(std::mem::take(&mut reader.read)).unwrap()
    }

    #[test]
    fn a_line_that_nobody_reads_yet_waits_and_keeps_its_place() {
        let (sink, reader) = sink();
        sink.line(b"first\n".to_vec());
        assert_eq!(read(&reader, 3), "");
        sink.line(b"second\n".to_vec());
        assert_eq!(read(&reader, 100), "fir");
        sink.tend();
        assert_eq!(read(&reader, 100), "st\nsecond\n");
        sink.line(b"third\n".to_vec());
        assert_eq!(read(&reader, 0), "third\n");
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_its_place() {
        let (sink, reader) = sink();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..1024 + 7 {
            sink.line(line.clone());
        }
        // Room for some, not for all: who comes now is lost as well.
        read(&reader, 10 * 1024);
        sink.line(line.clone());
        read(&reader, 2 * ROOM);
        sink.line(b"afterwards\n".to_vec());
        let text = read(&reader, 0);
        assert_eq!(text.matches("x\n").count(), 1024 - 10);
        assert!(text.ends_with("x\nlost 8\nafterwards\n"), "{}", &text[text.len() - 60..]);
        // Told once.
        read(&reader, 100);
        sink.tend();
        assert_eq!(read(&reader, 100), "");
    }

    #[test]
    fn a_reader_that_is_gone_costs_lines_which_are_counted() {
        let (sink, reader) = sink();
        reader.lock().unwrap().is_gone = true;
        for _ in 0..3 {
            sink.line(b"nobody\n".to_vec());
        }
        reader.lock().unwrap().is_gone = false;
        read(&reader, 100);
        sink.line(b"somebody\n".to_vec());
        assert_eq!(read(&reader, 0), "lost 3\nsomebody\n");
    }

    /// A socket of the kernel's, in the place of the journal's.
    struct Pair(UnixDatagram);
    impl Outlet for Pair {
        fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes)
        }

        fn loss(&self, _: u64) -> Vec<u8> {
            Vec::new()
        }
    }

    #[test]
    fn a_full_socket_keeps_nobody_waiting() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let sink = Sink::new(Pair(ours));
        for number in 0..2000_u32 {
            sink.line(number.to_be_bytes().to_vec());
        }
        for number in 0..2000_u32 {
            let mut line = [0; 8];
            let length = theirs.recv(&mut line).unwrap();
            assert_eq!(line[..length], number.to_be_bytes());
            sink.tend();
        }
    }
}
