//! One line between worker and helper: values go over it as JSON, each after its length in four bytes.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A longer value is none of ours: it would be two million grants.
const MAX_BYTES: u32 = 256 * 1024 * 1024;
/// Whoever takes nothing for so long is frozen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many lines there are.
pub(super) const LINES: usize = 5;

/// One end.
#[derive(Debug)]
pub(super) struct Line(UnixStream);

impl Line {
    /// Both ends; the first one is the worker's.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        one.set_write_timeout(Some(PATIENCE))?;
        Ok((Self(one), Self(other)))
    }

    /// The same end once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(super) fn send(&self, value: &impl Serialize) -> io::Result<()> {
        let mut frame = vec![0; 4];
        serde_json::to_writer(&mut frame, value)?;
        let length = u32::try_from(frame.len().saturating_sub(4));
        let length = length.ok().filter(|length| *length <= MAX_BYTES).ok_or_else(too_long)?;
        if let Some(front) = frame.first_chunk_mut() {
            *front = length.to_be_bytes();
        }
        (&self.0).write_all(&frame)
    }

    /// The next value; `None` if the other end is gone.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let mut length = [0; 4];
        match read(&self.0, &mut length)? {
            0 => return Ok(None),
            read => (&self.0).read_exact(length.get_mut(read..).unwrap_or_default())?,
        }
        let length = u32::from_be_bytes(length);
        if length > MAX_BYTES {
            return Err(too_long());
        }
        // Grows with what comes, whatever was announced.
        let mut bytes = Vec::new();
        (&self.0).take(length.into()).read_to_end(&mut bytes)?;
        if u32::try_from(bytes.len()) != Ok(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// Whether anything comes so soon.
    pub(super) fn is_answered_within(&self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0)
    }

    /// Whether the other end has hung up, or is gone; what it had said before may still be read.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut line = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let polled = poll(&mut line, PollTimeout::ZERO);
        let [line] = line;
        polled.is_ok() && line.revents().is_some_and(|it| it.contains(PollFlags::POLLHUP))
    }

    /// How long [`receive`](Self::receive) waits.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(patience)
    }

    /// Nothing goes over it any more: what was half said could not be told from what comes next.
    pub(super) fn hang_up(&self) {
        hang_up(&self.0);
    }
}

/// Ends it for both sides.
pub(super) fn hang_up(stream: &UnixStream) {
    // It may have been done.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Reads, whatever interrupts it: a socket with a time limit is not read on by the kernel when its
/// process is stopped and goes on, or is traced (signal(7)).
fn read(mut stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Waits for the end of a link, over which nothing is ever said.
pub(super) fn await_end(link: &UnixStream) {
    // It is the end, however it is told.
    let _ = read(link, &mut [0]);
}

/// Hands the helper's ends over.
pub(super) fn hand_over(link: &UnixStream, lines: &[Line; LINES]) -> io::Result<()> {
    let lines: [BorrowedFd<'_>; LINES] = lines.each_ref().map(|line| line.0.as_fd());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&lines));
    let byte = [IoSlice::new(b"!")];
    retry_on_intr(|| sendmsg(link, &byte, &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Takes the helper's ends.
pub(super) fn take_over(link: &UnixStream) -> io::Result<[Line; LINES]> {
    link.set_read_timeout(Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut byte = [IoSliceMut::new(&mut byte)];
    retry_on_intr(|| recvmsg(link, &mut byte, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    link.set_read_timeout(None)?;
    let lines: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(lines) => Some(lines),
            _ => None,
        })
        .flatten()
        .collect();
    let lines: Vec<_> = lines.into_iter().map(|line| Line(line.into())).collect();
    lines.try_into().map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cross_whole_however_long_and_then_comes_the_end() {
        let (here, there) = Line::pair().unwrap();
        let long = "x".repeat(1_000_000);
        let sender = std::thread::spawn(move || {
            here.send(&vec!["short"]).unwrap();
            here.send(&vec![long]).unwrap();
        });
        assert_eq!(there.receive::<Vec<String>>().unwrap().unwrap(), ["short"]);
        assert_eq!(there.receive::<Vec<String>>().unwrap().unwrap()[0].len(), 1_000_000);
        sender.join().unwrap();
        assert!(there.receive::<Vec<String>>().unwrap().is_none());
    }

    #[test]
    fn what_is_cut_too_long_or_no_value_is_an_error() {
        for bytes in
            [&b"\0"[..], b"\0\0\0\x02", b"\0\0\0\x02[", b"\xff\xff\xff\xff[]", b"\0\0\0\x01["]
        {
            let (here, there) = Line::pair().unwrap();
            (&here.0).write_all(bytes).unwrap();
            drop(here);
            assert!(there.receive::<Vec<String>>().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn who_waits_for_too_long_is_told_and_who_asks_sees_what_is_there() {
        let (here, there) = Line::pair().unwrap();
        assert!(!there.is_answered_within(Duration::from_millis(1)));
        there.set_patience(Some(Duration::from_millis(1))).unwrap();
        assert!(there.receive::<u8>().is_err());
        here.send(&7).unwrap();
        assert!(there.is_answered_within(Duration::from_secs(20)));
        there.set_patience(None).unwrap();
        assert_eq!(there.receive::<u8>().unwrap(), Some(7));
        here.send(&8).unwrap();
        assert!(!there.is_hung_up());
        here.hang_up();
        assert!(there.is_hung_up());
        assert_eq!(there.receive::<u8>().unwrap(), Some(8));
        assert_eq!(there.receive::<u8>().unwrap(), None);
    }

    #[test]
    fn lines_are_handed_over_a_link() {
        let (here, there) = UnixStream::pair().unwrap();
        let pairs: Vec<_> = (0..LINES).map(|_| Line::pair().unwrap()).collect();
        let (kept, given): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        hand_over(&here, &given.try_into().unwrap()).unwrap();
        for (number, (kept, taken)) in kept.iter().zip(take_over(&there).unwrap()).enumerate() {
            kept.send(&number).unwrap();
            assert_eq!(taken.receive::<usize>().unwrap(), Some(number));
        }
        // Nobody hands anything over.
        (&here).write_all(b"!").unwrap();
        assert!(take_over(&there).is_err());
    }
}
