//! One knock on one port, and a few attempts to connect after it.
//!
//! Sparing on purpose: each attempt is a connection without a login in the eyes of the service.

use super::facts::{Answer, Rejection, Trial};
use crate::knock::{Knocker, any, own_address, plain};
use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::time::Instant;

/// How long each attempt waits for an answer, one after the other. The first is for a path of
/// ordinary length, the last for one by satellite.
const ATTEMPTS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(750),
    Duration::from_millis(1500),
];
/// For the port before a knock, which is expected to be silent.
const BEFORE: [Duration; 1] = [Duration::from_millis(700)];
/// Between two refusals: a gate that refuses, and has not opened yet, answers at once.
const PAUSE: Duration = Duration::from_millis(200);

/// How the service's port looks without a knock.
pub(super) fn before(service: SocketAddr) -> Answer {
    probe(service, &BEFORE)
}

/// Sends one knock to `to`, and looks whether `service` opens.
pub(super) fn attempt(knocker: &Knocker<'_>, to: SocketAddr, service: SocketAddr) -> Trial {
    let mut trial = Trial {
        knock_port: to.port(),
        bound: None,
        not_sent: None,
        rejected: None,
        answer: Answer::Silent,
    };
    let sent = match knocker.seal_for(to, own_address(to).ok()) {
        Ok((binding, packet)) => {
            trial.bound = binding.address();
            send(to, &packet).map_err(|error| plain(&error))
        }
        Err(error) => Err(error.to_string()),
    };
    match sent {
        Ok(socket) => {
            trial.answer = probe(service, &ATTEMPTS);
            trial.rejected = rejection(&socket);
        }
        Err(why) => trial.not_sent = Some(why),
    }
    trial
}

/// Connected, so that the system tells the ICMP errors that come back for it.
fn send(to: SocketAddr, packet: &[u8]) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    socket.send(packet)?;
    Ok(socket)
}

/// What has come back for the knock. Linux has "administratively prohibited" as "no route to
/// host" (IPv4) and "permission denied" (IPv6).
fn rejection(socket: &UdpSocket) -> Option<Rejection> {
    let error = match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        Ok(None) => socket.recv(&mut [0]).err()?,
    };
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Some(Rejection::Port),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::PermissionDenied => Some(Rejection::Forbidden),
        _ => None,
    }
}

fn probe(service: SocketAddr, attempts: &[Duration]) -> Answer {
    let start = Instant::now();
    let mut answer = Answer::Silent;
    for (number, limit) in (1..).zip(attempts) {
        let begun = Instant::now();
        let error = match TcpStream::connect_timeout(&service, *limit) {
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                // TCP's simultaneous open with itself, on a port of this very machine.
                io::ErrorKind::ConnectionRefused.into()
            }
            Ok(_) => {
                let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Answer::Open { milliseconds };
            }
            Err(error) => error,
        };
        answer = match error.kind() {
            io::ErrorKind::TimedOut => Answer::Silent,
            io::ErrorKind::ConnectionRefused => Answer::Refused,
            _ => Answer::Unreachable(plain(&error)),
        };
        if answer != Answer::Silent && number < attempts.len() {
            std::thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
        }
    }
    answer
}
