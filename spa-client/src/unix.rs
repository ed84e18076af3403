//! All that the client asks of Unix alone, in one place; what other systems have instead is in
//! `portable.rs`, under the same names.

use crate::clock::Synchronised;
use core::time::Duration;
use std::fs::DirBuilder;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Makes directories that only their owner can look into.
pub(crate) fn private_directory() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Whether the system keeps its clock by others, as far as anybody may ask.
///
/// systemd-timesyncd leaves a file in `/run` as soon as it has set the clock; chronyd tells
/// everybody on this machine who asks by `chronyc`. Both are Linux in practice; elsewhere neither is
/// there.
pub(crate) fn clock_state() -> Synchronised {
    if let Some(state) = timesyncd(Path::new("/run/systemd/timesync")) {
        return state;
    }
    CHRONYC.iter().find_map(|path| chronyd(Path::new(path))).unwrap_or(Synchronised::NotKnown)
}

fn timesyncd(directory: &Path) -> Option<Synchronised> {
    if directory.join("synchronized").exists() {
        Some(Synchronised::Yes("systemd-timesyncd"))
    } else {
        directory.exists().then_some(Synchronised::No("systemd-timesyncd"))
    }
}

const CHRONYC: [&str; 2] = ["/usr/bin/chronyc", "/usr/sbin/chronyc"];
const CHRONYC_TIME_LIMIT: Duration = Duration::from_secs(1);

/// Asks by `program`; `None`: it is not there, or nobody answers it.
fn chronyd(program: &Path) -> Option<Synchronised> {
    let mut child = Command::new(program)
        .args(["-n", "-c", "tracking"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let start = Instant::now();
    let succeeded = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if start.elapsed() < CHRONYC_TIME_LIMIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let mut answer = String::new();
    child.stdout.take()?.take(4096).read_to_string(&mut answer).ok()?;
    // The last of the fields is the leap status.
    match answer.trim_end().rsplit(',').next() {
        _ if !succeeded => None,
        Some("Not synchronised" | "") | None => Some(Synchronised::No("chronyd")),
        Some(_) => Some(Synchronised::Yes("chronyd")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_state_that_timesyncd_leaves_is_read() {
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("timesync");
        assert_eq!(timesyncd(&directory), None);
        fs::create_dir(&directory).unwrap();
        assert_eq!(timesyncd(&directory), Some(Synchronised::No("systemd-timesyncd")));
        fs::write(directory.join("synchronized"), "").unwrap();
        assert_eq!(timesyncd(&directory), Some(Synchronised::Yes("systemd-timesyncd")));
    }

    #[test]
    fn what_chronyc_says_is_read_and_a_silent_one_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let said = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            chronyd(&path)
        };
        let tracking = "echo 7F7F0101,,10,1764374400.1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,";
        let yes = Some(Synchronised::Yes("chronyd"));
        assert_eq!(said("a", &format!("{tracking}Normal")), yes);
        let not = format!("{tracking}'Not synchronised'");
        assert_eq!(said("b", &not), Some(Synchronised::No("chronyd")));
        assert_eq!(said("c", "echo '506 Cannot talk to daemon'; exit 1"), None);
        let start = Instant::now();
        assert_eq!(said("d", "exec /bin/sleep 20"), None);
        assert!(start.elapsed() < Duration::from_secs(15));
        assert_eq!(chronyd(&directory.path().join("none")), None);
    }
}
