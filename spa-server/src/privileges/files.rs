//! What of the file system and of the network a process does without: Landlock (landlock(7)), inherited
//! by all threads and programs that it starts. Where the kernel knows less of it, less is refused.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use std::path::Path;

/// The newest that was tried; what of it an older kernel lacks is left out.
const NEWEST: ABI = ABI::V6;

/// How much of it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// All.
    Whole,
    /// What this kernel knows.
    InPart,
    /// Nothing: the kernel is built or started without it.
    NotAtAll,
}

/// This thread, and those that it starts from now on, write only below these directories, execute
/// nothing, and speak no TCP. What they read is for the permissions of files to say: the configuration
/// names key files anywhere.
pub(super) fn confine_to(writable: &[&Path]) -> Result<Held, RulesetError> {
    let reads = AccessFs::from_read(NEWEST) & !AccessFs::Execute;
    let writes = AccessFs::from_all(NEWEST) & !AccessFs::Execute;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        // Not abstract sockets: that of NOTIFY_SOCKET may be one.
        .scope(Scope::Signal)?
        .create()?
        .no_new_privs(true);
    for (path, access) in
        [(Path::new("/"), reads)].into_iter().chain(writable.iter().map(|path| (*path, writes)))
    {
        if let Ok(opened) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(held(&rules.restrict_self()?.ruleset))
}

/// This thread, and what it starts from now on, speak no TCP.
pub(super) fn refuse_tcp() -> Result<Held, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()?
        .no_new_privs(true);
    Ok(held(&rules.restrict_self()?.ruleset))
}

const fn held(status: &RulesetStatus) -> Held {
    match status {
        RulesetStatus::FullyEnforced => Held::Whole,
        RulesetStatus::PartiallyEnforced => Held::InPart,
        RulesetStatus::NotEnforced => Held::NotAtAll,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{TcpListener, TcpStream};

    /// Where the kernel has none of it nothing is refused, and this test says so by failing: all that
    /// the project is tried on have it.
    #[test]
    fn a_confined_thread_writes_where_it_may_and_speaks_no_tcp() {
        let directory = tempfile::tempdir().unwrap();
        let (state, other) = (directory.path().join("state"), directory.path().join("other"));
        for directory in [&state, &other] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), "text").unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect(address).unwrap();
        let held = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let held = confine_to(&[&state]).unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        fs::write(state.join("new"), "text").unwrap();
                        fs::rename(state.join("new"), state.join("file")).unwrap();
                        fs::remove_file(state.join("file")).unwrap();
                        assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "text");
                        for path in
                            [other.join("new"), other.join("file"), directory.path().join("x")]
                        {
                            let error = fs::write(&path, "text").unwrap_err();
                            assert_eq!(error.kind(), PermissionDenied, "{}", path.display());
                        }
                        let error = fs::remove_file(other.join("file")).unwrap_err();
                        assert_eq!(error.kind(), PermissionDenied);
                        let error = TcpStream::connect(address).unwrap_err();
                        assert_eq!(error.kind(), PermissionDenied);
                        let error = TcpListener::bind("127.0.0.1:0").unwrap_err();
                        assert_eq!(error.kind(), PermissionDenied);
                        let error = std::process::Command::new("/bin/true").status().unwrap_err();
                        assert_eq!(error.kind(), PermissionDenied);
                    });
                });
                held
            });
            there.join().unwrap()
        });
        assert_eq!(held, Held::Whole);
        // Nobody else is confined.
        fs::write(other.join("new"), "text").unwrap();
    }

    #[test]
    fn a_thread_without_tcp_still_writes_and_executes() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(refuse_tcp().unwrap(), Held::Whole);
                fs::write(directory.path().join("file"), "text").unwrap();
                assert!(std::process::Command::new("/bin/true").status().unwrap().success());
                let error = TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(error.kind(), PermissionDenied);
            });
        });
    }
}
