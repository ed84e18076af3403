//! `spa-server metrics`: for Prometheus, on standard output, or as the answer to an HTTP request.
//!
//! The daemon has no HTTP in it: systemd listens, and starts this command for each connection
//! (`spa-metrics.socket`).

use super::output::print;
use super::{CommandError, Done};
use crate::causes::with_causes;
use crate::config::Settings;
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::metrics;
use std::io::{self, Read, Write};
use std::path::Path;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

pub(crate) fn run(config: &Path, http: bool) -> Done {
    if !http {
        return print(&read(config)?);
    }
    let (stdin, stdout) = (io::stdin().lock(), io::stdout().lock());
    answer(stdin, stdout, || read(config)).map_err(CommandError::Output)
}

/// The metrics of the running daemon; where none runs, that is what they say.
fn read(config: &Path) -> Result<String, CommandError> {
    match call(&Settings::control_socket_of(config), &ControlRequest::Status) {
        Ok(ControlResponse::Status(status)) => metrics::render(&status),
        Ok(other) => return Err(super::daemon::unexpected(&other)),
        Err(error @ CallError::NotRunning { .. }) => {
            eprintln!("spa-server: {}", with_causes(&error));
            metrics::render_down()
        }
        Err(error) => return Err(error.into()),
    }
    .map_err(|error| CommandError::Failed(format!("the metrics can't be written: {error}")))
}

/// Reads one request and answers it. Whoever goes before the end of his request gets nothing.
fn answer(
    mut from: impl Read,
    mut to: impl Write,
    read: impl FnOnce() -> Result<String, CommandError>,
) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    let asked = loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend(buffer.iter().take(count)),
        }
        match judge(&head) {
            Some(asked) => break asked,
            None if head.len() > MAX_HEAD => break Err("431 Request Header Fields Too Large"),
            None => {}
        }
    };
    let (status, kind, body) = match asked.map(|Wanted { body }| (body, read())) {
        Ok((wants_body, Ok(text))) => {
            ("200 OK", metrics::CONTENT_TYPE, Body { text, is_left_out: !wants_body })
        }
        Ok((_, Err(error))) => {
            let text = format!("{}\n", with_causes(&error));
            ("503 Service Unavailable", PLAIN, Body { text, is_left_out: false })
        }
        Err(status) => (status, PLAIN, Body { text: format!("{status}\n"), is_left_out: false }),
    };
    write!(
        to,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
        Connection: close\r\n\r\n",
        body.text.len()
    )?;
    if !body.is_left_out {
        to.write_all(body.text.as_bytes())?;
    }
    to.flush()
}

const PLAIN: &str = "text/plain; charset=utf-8";

struct Body {
    text: String,
    is_left_out: bool,
}

/// A request for the metrics.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Not by HEAD.
    body: bool,
}

/// What is asked for, or the status that says why there is none of it; nothing before the request's
/// head is whole (RFC 9112).
fn judge(head: &[u8]) -> Option<Result<Wanted, &'static str>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(parsed) if parsed.is_partial() => return None,
        Ok(_) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Some(Err("431 Request Header Fields Too Large"));
        }
        Err(_) => return Some(Err("400 Bad Request")),
    }
    let path = request.path.unwrap_or_default();
    Some(match (request.method.unwrap_or_default(), path.split('?').next()) {
        ("GET", Some("/metrics")) => Ok(Wanted { body: true }),
        ("HEAD", Some("/metrics")) => Ok(Wanted { body: false }),
        ("GET" | "HEAD", _) => Err("404 Not Found"),
        _ => Err("405 Method Not Allowed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(request: &[u8]) -> String {
        let mut answer = Vec::new();
        super::answer(request, &mut answer, || Ok("spa_up 1\n".to_owned())).unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn metrics_are_answered_and_nothing_else_is() {
        let get = answered(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(
            get.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"),
            "{get}"
        );
        assert!(get.contains("\r\nContent-Length: 9\r\n") && get.ends_with("\r\n\r\nspa_up 1\n"));
        let head = answered(b"HEAD /metrics?x HTTP/1.0\r\n\r\n");
        assert!(
            head.contains("200 OK") && head.contains("Length: 9") && head.ends_with("\r\n\r\n")
        );
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\0\0\r\n\r\n", "400"),
        ] {
            let answer = answered(request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
    }

    #[test]
    fn whoever_goes_early_gets_nothing_and_whoever_talks_on_is_stopped() {
        assert_eq!(answered(b"GET /metrics HTTP/1.1\r\nHost: a\r\n"), "");
        let endless = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(2 * MAX_HEAD));
        assert!(answered(endless.as_bytes()).starts_with("HTTP/1.1 431 "));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(MAX_HEADERS + 1));
        assert!(answered(many.as_bytes()).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn what_can_not_be_read_is_an_answer_too() {
        let mut answer = Vec::new();
        let fails = || Err(CommandError::Failed("no".to_owned()));
        super::answer(b"GET /metrics HTTP/1.1\r\n\r\n".as_slice(), &mut answer, fails).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 503 ") && answer.ends_with(b"\r\n\r\nno\n"));
    }
}
