//! Which system calls a process does without: a filter of seccomp(2), inherited by all that it starts.
//!
//! It names what is refused, not what is let through: a libc that begins to use another call must not
//! lock anybody out. The unit's own filter, which systemd keeps up, lets through what a service needs
//! (`@system-service`); this one holds without systemd too, and takes from that what we do not need.

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
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
/// What the worker does without besides: it executes nothing.
const NO_PROGRAMS: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// The x32 variant of a call on x86-64; where the kernel has it, it is a second way in.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// Those of the above that have numbers of their own there: `execve`, `ptrace`, `kexec_load`,
/// `process_vm_readv`, `process_vm_writev`, `execveat` (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const OF_X32: &[libc::c_long] = &[520, 521, 528, 539, 540, 545];

/// Refuses with EPERM, in this thread and all that it starts from now on. It takes `no_new_privs`.
pub(super) fn refuse(programs_too: bool) -> Result<(), String> {
    let filter = filter(programs_too).map_err(|error| error.to_string())?;
    apply_filter(&filter).map_err(|error| error.to_string())
}

fn filter(programs_too: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = NEVER.iter().chain(if programs_too { NO_PROGRAMS } else { &[] });
    let mut rules: BTreeMap<i64, Vec<_>> = refused.map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    {
        let x32 = rules.keys().copied().chain(
            OF_X32.iter().copied().filter(|call| programs_too || !matches!(call, 520 | 545)),
        );
        let x32: Vec<_> = x32.map(|call| (call | X32, Vec::new())).collect();
        rules.extend(x32);
    }
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
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
            refuse(true).unwrap();
            // And the threads that it starts.
            std::thread::spawn(run).join().unwrap()
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let runs = apart(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            refuse(false).unwrap();
            run()
        });
        assert!(runs.unwrap().success());
    }

    /// Tests run as root: it is nothing but the filter that refuses.
    #[test]
    fn neither_leaves_its_namespaces_nor_mounts() {
        for programs_too in [true, false] {
            let leave = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
            apart(leave).unwrap();
            let refused = apart(|| {
                rustix::thread::set_no_new_privs(true).unwrap();
                refuse(programs_too).unwrap();
                leave()
            });
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));
        }
    }
}
