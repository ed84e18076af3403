//! What this process may do, and gives up when it needs it no more.
//!
//! On Linux capabilities are those of a thread, and of the threads that it starts from then on
//! (capabilities(7)). So they are given up before there is another thread that stays. A program that root
//! executes gets them back, unless the unit says `NoNewPrivileges`, as ours does.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};
use std::io;

/// This thread loads no programs into the kernel any more. What is loaded works on.
pub(crate) fn give_up_loading() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::BPF);
    }
    Ok(set_capabilities(None, sets)?)
}

/// This thread keeps what changes the firewall, and no program that it executes gets more. The legacy
/// variant of iptables reads its rules over a raw socket.
pub(crate) fn keep_to_the_gate() -> io::Result<()> {
    keep(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE)
}

/// This thread keeps what captures, and no program that it executes gets more. The prefilter may need
/// its own (see [`give_up_loading`]).
pub(crate) fn keep_to_the_capture() -> io::Result<()> {
    keep(CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE | CapabilitySet::BPF)
}

fn keep(those: CapabilitySet) -> io::Result<()> {
    set_no_new_privs(true)?;
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set &= those;
    }
    Ok(set_capabilities(None, sets)?)
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
