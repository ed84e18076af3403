//! Carries bytes between a connection and the standard streams, as `ProxyCommand` wants it.
//!
//! Two threads that block, each with a large buffer: nothing waits for more to come, and nothing
//! is held back.

use crate::system;
use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

/// A pipe takes 64 KiB at once; a socket gives more.
const BUFFER: usize = 256 * 1024;
/// So much is written to the connection at once: a write returns when all of it is on its way, and
/// by that is seen that it goes on at all.
const PIECE: usize = 16 * 1024;
/// After the other side has ended: whoever has sent nothing for so long has nothing more to say.
const LINGER: Duration = Duration::from_secs(2);
/// Before the next look at a stream that somebody has made non-blocking.
const NOT_READY: Duration = Duration::from_millis(1);

/// Hands the connection to the ssh that has started this program with `ProxyUseFdpass`, and says
/// whether it was taken.
pub(crate) fn hand_over(stream: &TcpStream) -> io::Result<bool> {
    make_ready(stream)?;
    system::hand_over(stream)
}

fn make_ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // As ssh does for a connection of its own: a network that has died is noticed in the end.
    socket2::SockRef::from(stream).set_keepalive(true)
}

/// Carries standard input to `stream` and back until the other side ends. The end of standard
/// input is handed on, and what comes back afterwards still arrives.
pub(crate) fn carry(stream: TcpStream) -> io::Result<()> {
    make_ready(&stream)?;
    let (input, output) = system::raw_streams()?;
    let stream = Arc::new(stream);
    let (up, sent) = (Arc::clone(&stream), Arc::new(AtomicU64::new(0)));
    let (counted, (done, ended)) = (Arc::clone(&sent), channel::<()>());
    thread::spawn(move || {
        let _ = copy(input, &*up, PIECE, &counted);
        // The other side may have gone: then there is nothing left to shut.
        let _ = up.shutdown(Shutdown::Write);
        drop(done);
    });
    copy(&*stream, output, BUFFER, &AtomicU64::new(0))?;
    // The one whose standard output this is may go on talking, to somebody who still listens.
    if system::end_output().is_ok() {
        let mut before = sent.load(Ordering::Relaxed);
        while ended.recv_timeout(LINGER) == Err(RecvTimeoutError::Timeout) {
            let now = sent.load(Ordering::Relaxed);
            if now == before {
                break;
            }
            before = now;
        }
    }
    Ok(())
}

/// `carried` counts the pieces.
fn copy(
    mut from: impl Read,
    mut to: impl Write,
    piece: usize,
    carried: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) => {
                wait_after(error)?;
                continue;
            }
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            match to.write(rest.get(..piece).unwrap_or(rest)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    carried.fetch_add(1, Ordering::Relaxed);
                }
                // Nobody reads any more, which is an end like any other.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => wait_after(error)?,
            }
        }
        to.flush()?;
    }
}

/// What is no failure. The standard streams are shared: another program may have made them
/// non-blocking.
fn wait_after(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock => {
            thread::sleep(NOT_READY);
            Ok(())
        }
        _ => Err(error),
    }
}
