//! What this process may do, and gives up when it needs it no more.
//!
//! On Linux capabilities are those of a thread, and of the threads that it starts from then on
//! (capabilities(7)). So they are given up before there is another thread that stays. A program that root
//! executes gets them back, unless it was given `no_new_privs`.

mod calls;
mod files;

use calls::Whose;
use files::Held;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Its number is part of the kernel's interface (`PROC_USER_INIT_INO` of include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
const UNLIMITED: Rlimit = Rlimit { current: None, maximum: None };

/// This thread loads no programs into the kernel any more. What is loaded works on.
pub(crate) fn give_up_loading() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::BPF);
    }
    Ok(set_capabilities(None, sets)?)
}

/// Nothing of this process's memory is written to a disk by a crash, and nobody but root looks into it:
/// there are keys in it.
pub(crate) fn leave_no_dumps() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // The unit sets it, and lets nobody change limits.
    if getrlimit(Resource::Core) != none {
        setrlimit(Resource::Core, none)?;
    }
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Nothing of this process's memory is written to a swap: there are keys in it, and copies of them. What
/// it has asked for and never touches takes no memory by that.
///
/// Where there is a limit to what may be locked (`RLIMIT_MEMLOCK`), memory that is asked for later would
/// be refused; so nothing is locked there, and that is an error.
pub(crate) fn stay_in_memory() -> io::Result<()> {
    if is_lock_limited()
        && let Err(error) = setrlimit(Resource::Memlock, UNLIMITED)
        && !locks_beyond_limits()
    {
        return Err(error.into());
    }
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

fn is_lock_limited() -> bool {
    getrlimit(Resource::Memlock) != UNLIMITED
}

/// For that the capability counts in the first user namespace alone, and may be had in others.
fn locks_beyond_limits() -> bool {
    let namespace = std::fs::metadata("/proc/self/ns/user").map(|namespace| namespace.ino());
    has(CapabilitySet::IPC_LOCK) && namespace.is_ok_and(|it| it == FIRST_USER_NAMESPACE)
}

/// Whether this thread, and what it starts, may change the firewall.
pub(crate) fn may_change_the_firewall() -> bool {
    has(CapabilitySet::NET_ADMIN)
}

fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// This thread keeps what changes the firewall, and no program that it executes gets more. The legacy
/// variant of iptables reads its rules over a raw socket.
pub(crate) fn keep_to_the_gate() -> io::Result<()> {
    let those = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE;
    keep(those, those)
}

/// This thread keeps what captures, and no program that it executes gets more. The prefilter may need
/// its own (see [`give_up_loading`]), and memory that is locked beyond a limit.
pub(crate) fn keep_to_the_capture() -> io::Result<()> {
    let mut those = CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE | CapabilitySet::BPF;
    those.set(CapabilitySet::IPC_LOCK, is_lock_limited() && locks_beyond_limits());
    keep(those, CapabilitySet::empty())
}

/// The same for the worker's other ways out: it executes nothing, writes nothing but its state, and
/// speaks no TCP. What this kernel can't keep up is told, and goes on without.
pub(crate) fn confine_the_worker(writable: &[&Path]) {
    told("the worker's files", files::confine_to(writable).map_err(|error| error.to_string()));
    told("the worker's system calls", calls::refuse(Whose::Worker).map(|()| Held::Whole));
}

/// The same for the helper, which executes the firewall's tools.
pub(crate) fn confine_the_helper() {
    told("the helper's connections", files::refuse_tcp().map_err(|error| error.to_string()));
    told("the helper's system calls", calls::refuse(Whose::Helper).map(|()| Held::Whole));
}

fn told(what: &str, held: Result<Held, String>) {
    match held {
        Ok(Held::Whole) => tracing::debug!("{what} are confined"),
        Ok(Held::InPart) => tracing::info!("{what} are confined as far as this kernel knows how"),
        Ok(Held::NotAtAll) => {
            tracing::warn!("{what} are not confined: this kernel has no Landlock");
        }
        Err(why) => tracing::warn!("{what} are not confined: {why}"),
    }
}

/// Keeps these at most, and passes on what is executed no more than the others.
fn keep(those: CapabilitySet, inherited: CapabilitySet) -> io::Result<()> {
    set_no_new_privs(true)?;
    let mut sets = capabilities(None)?;
    let before = sets;
    for set in [&mut sets.effective, &mut sets.permitted] {
        *set &= those;
    }
    sets.inheritable &= inherited;
    // Of a process that never had more, a unit may refuse the call.
    if sets != before {
        set_capabilities(None, sets)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run as root.
    #[test]
    fn what_was_given_up_is_gone_for_what_is_started_then_and_for_nobody_else() {
        let may_load = || capabilities(None).unwrap().permitted.contains(CapabilitySet::BPF);
        assert!(may_load());
        let there = std::thread::spawn(move || {
            give_up_loading().unwrap();
            (may_load(), std::thread::spawn(may_load).join().unwrap())
        });
        assert_eq!(there.join().unwrap(), (false, false));
        assert!(may_load());
    }
}
