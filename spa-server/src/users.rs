//! The users that the units run the daemon's two processes as, and what root leaves to them.
//!
//! Where a host has them not, or the daemon is started by hand, all of it is root's.

use nix::unistd::{Gid, Group, Uid, User, fchown, geteuid};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Runs the worker; its group reads the keys.
const WORKER: &str = "spa";
/// Runs the gate helper; its group, to which the worker belongs, reads the rest of the configuration.
const HELPER: &str = "spa-gate";
/// Tells Prometheus how the daemon is.
const OBSERVER: &str = "spa-metrics";

/// From here on users are humans' (login.defs(5)).
const FIRST_HUMAN: u32 = 1000;

/// More links, one after another, are a circle.
const MOST_LINKS: usize = 8;

/// Both users of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// The worker's.
    pub worker: Account,
    /// The gate helper's.
    pub helper: Account,
}

/// The user of this host who may ask the daemon how it is, and for nothing else. He is looked up once.
pub fn observer() -> Option<Account> {
    static OBSERVERS: OnceLock<Option<Account>> = OnceLock::new();
    *OBSERVERS.get_or_init(|| Account::of(OBSERVER))
}

/// A user, and the group that is his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub user: Uid,
    /// The group.
    pub group: Gid,
}

impl Users {
    /// Those of this host, if it has both. They are looked up once.
    pub fn of_this_host() -> Option<Self> {
        static USERS: OnceLock<Option<Users>> = OnceLock::new();
        *USERS.get_or_init(|| {
            Some(Self { worker: Account::of(WORKER)?, helper: Account::of(HELPER)? })
        })
    }

    /// Whether this is one of them.
    pub fn has(&self, user: Uid) -> bool {
        user == self.worker.user || user == self.helper.user
    }
}

impl Account {
    /// Somebody who is called so, and is no user of the system with a group of its own, is another one.
    fn of(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok().flatten()?;
        let group = Group::from_gid(user.gid).ok().flatten()?;
        let is_ours = user.uid.as_raw() < FIRST_HUMAN && group.name == name;
        is_ours.then_some(Self { user: user.uid, group: user.gid })
    }
}

impl Account {
    /// The first directory on the way to `path` that he does not get into, in whatever other groups he is;
    /// those are left out that `lent` are.
    pub fn is_barred_by(&self, path: &Path, others: &[Gid], lent: &[&Path]) -> Option<PathBuf> {
        let may_enter = |directory: &Path| {
            let Ok(metadata) = fs::metadata(directory) else { return true };
            let group = Gid::from_raw(metadata.gid());
            let shift = if Uid::from_raw(metadata.uid()) == self.user {
                6
            } else if group == self.group || others.contains(&group) {
                3
            } else {
                0
            };
            (metadata.mode() >> shift) & 1 == 1
        };
        let above: Vec<_> = path.ancestors().skip(1).collect();
        let barred = above.iter().rev().find(|it| !lent.contains(it) && !may_enter(it));
        barred.map(|directory| directory.to_path_buf())
    }
}

/// What stands in the way of trusting a path: whoever has this could have put there what is behind it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("others than root could have put it there: {} is not root's alone, or leads nowhere", .0.display())]
pub struct NotRoots(pub PathBuf);

/// Where the file is that `path` leads to, if nobody but root can have put it there, nor any of the links
/// on the way.
pub fn placed_by_root(path: &Path) -> Result<PathBuf, NotRoots> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let theirs = || NotRoots(path.clone());
        let directory = path.parent().ok_or_else(theirs)?;
        if let Some(other_s) = first_not_root_s(directory, MOST_LINKS) {
            return Err(NotRoots(other_s));
        }
        let metadata = fs::symlink_metadata(&path).map_err(|_| theirs())?;
        if !metadata.is_symlink() {
            return Ok(path);
        }
        let target = fs::read_link(&path).ok().filter(|_| metadata.uid() == 0);
        path = directory.join(target.ok_or_else(theirs)?);
    }
    Err(NotRoots(path))
}

/// The first of this directory and all above it that root does not have to himself.
fn first_not_root_s(directory: &Path, links: usize) -> Option<PathBuf> {
    directory.ancestors().find_map(|it| {
        let theirs = Some(it.to_path_buf());
        let Ok(metadata) = fs::symlink_metadata(it) else { return theirs };
        let mode = metadata.mode();
        if metadata.is_symlink() {
            let target = fs::read_link(it).ok().filter(|_| links > 0 && metadata.uid() == 0);
            let above = it.parent().unwrap_or(it);
            return target
                .map_or(theirs, |target| first_not_root_s(&above.join(target), links - 1));
        }
        // In a directory that is everybody's, as /tmp, nobody moves what is another's.
        let is_root_s =
            metadata.is_dir() && metadata.uid() == 0 && (mode & 0o022 == 0 || mode & 0o1000 != 0);
        theirs.filter(|_| !is_root_s)
    })
}

/// Whether what belongs to `owner` is as trusted as what is this process's own, where the daemon keeps
/// what it knows: root has given it to the daemon's users.
pub fn is_trusted_with_state(owner: u32) -> bool {
    let (owner, user) = (Uid::from_raw(owner), geteuid());
    owner.is_root()
        || owner == user
        || user.is_root() && Users::of_this_host().is_some_and(|users| users.has(owner))
}

/// What root makes in a directory that was given to another user is that user's as well.
pub fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let directory = fs::metadata(directory)?;
    let made = file.metadata()?;
    // What has another name elsewhere may be anybody's.
    if directory.uid() == 0 || made.uid() != 0 || made.is_file() && made.nlink() > 1 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(directory.uid()), Gid::from_raw(directory.gid()));
    Ok(fchown(file, Some(user), Some(group))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown};

    #[test]
    fn the_first_directory_that_he_does_not_get_into_is_found() {
        let account = Account { user: Uid::from_raw(4711), group: Gid::from_raw(4711) };
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (directory.path(), directory.path().join("inner"));
        fs::create_dir(&inner).unwrap();
        let file = inner.join("file");
        let barred = |outer_is: (u32, u32), inner_is: (u32, u32)| {
            for (path, (group, mode)) in [(outer, outer_is), (&inner, inner_is)] {
                chown(path, Some(0), Some(group)).unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            account.is_barred_by(&file, &[Gid::from_raw(4712)], &[])
        };
        assert_eq!(barred((0, 0o755), (0, 0o711)), None);
        assert_eq!(barred((4711, 0o710), (4712, 0o710)), None);
        assert_eq!(barred((0, 0o755), (4713, 0o710)).as_deref(), Some(&*inner));
        assert_eq!(barred((0, 0o700), (0, 0o700)).as_deref(), Some(outer));
        assert_eq!(account.is_barred_by(&file, &[], &[outer, &inner]), None);
        chown(outer, Some(4711), None).unwrap();
        assert_eq!(account.is_barred_by(&file, &[], &[]).as_deref(), Some(&*inner));
    }

    /// Tests run as root.
    #[test]
    fn what_root_makes_in_a_given_directory_is_its_owner_s() {
        let directory = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = directory.path().join(name);
            let file = File::create(&path).unwrap();
            give_to_owner_of(directory.path(), &file).unwrap();
            let metadata = file.metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!(made("before"), (0, 0));
        chown(directory.path(), Some(4711), Some(4712)).unwrap();
        assert_eq!(made("after"), (4711, 4712));
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::hard_link(elsewhere.path(), directory.path().join("linked")).unwrap();
        give_to_owner_of(directory.path(), elsewhere.as_file()).unwrap();
        assert_eq!(elsewhere.as_file().metadata().unwrap().uid(), 0);
        assert!(is_trusted_with_state(0) && !is_trusted_with_state(4711));
    }
}
