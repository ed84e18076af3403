//! Which system calls a process does without: a filter of seccomp(2), inherited by all that it starts.
//!
//! It names what is refused, not what is let through: a libc that begins to use another call must not
//! lock anybody out. The unit's own filter, which systemd keeps up, lets through what a service needs
//! (`@system-service`); this one holds without systemd too, and takes from that what we do not need.

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// What no process of ours needs once it runs: other processes' memory, mounts, modules, keys, clocks,
/// namespaces, interfaces of the kernel that holes were found in again and again.
const NEVER: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];
/// What the worker does without besides: it executes nothing, and gives files of root's to nobody, which
/// Landlock does not know of.
const OF_WORKERS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fsetxattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_lsetxattr,
    libc::SYS_setxattr,
];
/// New namespaces, in which a process has all capabilities (clone(2)).
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The x32 variant of a call on x86-64; where the kernel has it, it is a second way in.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// Those of the above that have numbers of their own there: `execve`, `ptrace`, `kexec_load`,
/// `process_vm_readv`, `process_vm_writev`, `execveat` (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const OF_X32: &[libc::c_long] = &[520, 521, 528, 539, 540, 545];

/// Whose filter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Worker,
    Helper,
}

/// Refuses with EPERM, in this thread and all that it starts from now on. It takes `no_new_privs`.
pub(super) fn refuse(whose: Whose) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    // What this one is asked for lies in memory, where no filter looks. Without it a libc takes clone.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (rules, errno) in
        [(unknown, libc::ENOSYS), (refused(whose).map_err(|e| text(&e))?, libc::EPERM)]
    {
        let filter = filter(rules, errno).map_err(|error| text(&error))?;
        apply_filter(&filter).map_err(|error| text(&error))?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refused(whose: Whose) -> Result<Rules, BackendError> {
    let of_workers = if whose == Whose::Worker { OF_WORKERS } else { &[] };
    let mut rules: Rules = NEVER.iter().chain(of_workers).map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    {
        // execve and execveat are the worker's alone.
        let own = OF_X32.iter().filter(|call| whose == Whose::Worker || !matches!(call, 520 | 545));
        let x32 = rules.keys().chain(own).map(|call| (call | X32, Vec::new()));
        let x32: Vec<_> = x32.collect();
        rules.extend(x32);
    }
    let into_a_namespace = NAMESPACES.map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        let is_asked_for =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![is_asked_for])
    });
    let into_a_namespace: Vec<_> = into_a_namespace.into_iter().collect::<Result<_, _>>()?;
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_clone | X32, into_a_namespace.clone());
    rules.insert(libc::SYS_clone, into_a_namespace);
    Ok(rules)
}

fn filter(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refusal = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::process::Command;

    /// In a thread of its own, which others do not inherit from.
    fn apart<T: Send>(there: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    #[test]
    fn a_worker_executes_nothing_and_a_helper_its_tools() {
        let run = || Command::new("/bin/true").status();
        assert!(run().unwrap().success(), "the control");
        let refused = apart(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            refuse(Whose::Worker).unwrap();
            // And the threads that it starts.
            std::thread::spawn(run).join().unwrap()
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let runs = apart(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            refuse(Whose::Helper).unwrap();
            run()
        });
        assert!(runs.unwrap().success());
    }

    /// Tests run as root: it is nothing but the filter that refuses.
    #[test]
    fn neither_leaves_its_namespaces_nor_starts_others() {
        use nix::sched::{CloneFlags, unshare};
        let leave = || unshare(CloneFlags::CLONE_NEWNS);
        apart(leave).unwrap();
        for whose in [Whose::Worker, Whose::Helper] {
            let refused = apart(|| {
                rustix::thread::set_no_new_privs(true).unwrap();
                refuse(whose).unwrap();
                leave()
            });
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));
        }
    }

    /// No safe function of ours makes this call.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn nothing_is_started_in_a_namespace_of_its_own() {
        let (clone, with) = (libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD);
        let program = format!("exit(syscall({clone}, {with}, 0, 0, 0, 0) < 0 ? $! : 0)");
        let start = || Command::new("/usr/bin/perl").args(["-e", &program]).status().unwrap();
        assert_eq!(start().code(), Some(0), "the control");
        let refused = apart(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            refuse(Whose::Helper).unwrap();
            start()
        });
        assert_eq!(refused.code(), Some(libc::EPERM));
    }

    #[test]
    fn a_worker_gives_no_file_to_others() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let file = tempfile::NamedTempFile::new().unwrap();
        let open_up = || {
            let mode = std::fs::Permissions::from_mode(0o666);
            (std::fs::set_permissions(file.path(), mode), chown(file.path(), Some(4711), None))
        };
        let (mode, owner) = apart(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            refuse(Whose::Worker).unwrap();
            open_up()
        });
        for refused in [mode, owner] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        let (mode, owner) = open_up();
        mode.and(owner).unwrap();
    }
}
