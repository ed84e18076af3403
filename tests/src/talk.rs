//! Connections that are heard all the time, so that their end shows.

use crate::lab::Host;
use crate::probe::PortState;
use crate::wait::{eventually, eventually_within, uninterrupted};
use anyhow::{Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The client says something this often, if it is the one who talks.
const TICK: Duration = Duration::from_millis(20);
/// Nothing for so long is silence: a lost packet is sent again after 200 ms, and a second time
/// after 400 ms more.
const SILENCE: Duration = Duration::from_millis(1500);

/// Who begins to talk on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talks {
    /// The service: see [`Talker`](crate::Talker).
    Service,
    /// The client, whom the service answers: see [`Listener`](crate::Listener).
    Client,
}

/// A connection whose end is noticed.
pub struct Heard {
    stream: TcpStream,
    times: Arc<AtomicU64>,
    last: Arc<Mutex<Instant>>,
    thread: Option<JoinHandle<()>>,
}

impl Heard {
    /// Connects from `host`, once; or tells how the port looked instead.
    pub fn connect(host: &Host, to: SocketAddr, talks: Talks) -> Result<Result<Self, PortState>> {
        Ok(match host.tcp_connect(to)? {
            Ok(stream) => Ok(Self::on(stream, talks)?),
            Err(state) => Err(state),
        })
    }

    fn on(stream: TcpStream, talks: Talks) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(TICK))?;
        let times = Arc::new(AtomicU64::new(0));
        let last = Arc::new(Mutex::new(Instant::now()));
        let (mut reader, count, when) =
            (stream.try_clone()?, Arc::clone(&times), Arc::clone(&last));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                if talks == Talks::Client && reader.write_all(b"tock").is_err() {
                    return;
                }
                match uninterrupted(|| reader.read(&mut buffer)) {
                    Ok(0) => return,
                    Ok(_) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        *when.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    }
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self { stream, times, last, thread: Some(thread) })
    }

    /// The client's end of the connection.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Waits until something more comes over it.
    pub fn ensure_alive(&self) -> Result<()> {
        let goal = self.times.load(Ordering::Relaxed) + 3;
        eventually("something is to come over the connection", || {
            ensure!(!self.has_ended(), "the connection has ended");
            Ok((self.times.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Waits until it has ended, or nothing comes over it any more.
    pub fn await_cut(&self, within: Duration) -> Result<()> {
        eventually_within(within + SILENCE, "the connection is to be cut", || {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((self.has_ended() || last.elapsed() > SILENCE).then_some(()))
        })
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Family, Lab};
    use crate::probe::Listener;
    use crate::talker::Talker;

    #[test]
    fn a_connection_is_heard_until_it_is_cut() {
        let lab = Lab::new().unwrap();
        let _talker = Talker::tcp(lab.server(), 7000).unwrap();
        let _echo = Listener::tcp(lab.server(), 7001).unwrap();
        for (port, talks) in [(7000, Talks::Service), (7001, Talks::Client)] {
            let to = lab.server().at(Family::V6, port);
            let heard = Heard::connect(lab.owner(), to, talks).unwrap().unwrap();
            heard.ensure_alive().unwrap();
            assert!(heard.await_cut(Duration::ZERO).is_err(), "it lives");
            lab.server().sh(&format!("ip6tables -A INPUT -p tcp --dport {port} -j DROP")).unwrap();
            if talks == Talks::Service {
                // What the service says still arrives, as long as it may send.
                lab.server().sh("ip6tables -A OUTPUT -p tcp --sport 7000 -j DROP").unwrap();
            }
            heard.await_cut(Duration::from_secs(10)).unwrap();
        }
    }
}
