//! What of a process's memory could be written to a disk.

use anyhow::{Result, ensure};

/// That nothing that a process has written to its memory goes to a swap, by its `smaps` (proc(5)).
pub fn ensure_locked(smaps: &str) -> Result<()> {
    let swappable = swappable(smaps);
    ensure!(swappable.is_empty(), "what may be swapped out:\n{}", swappable.join("\n"));
    // A file that says nothing of the kind would do as well.
    ensure!(smaps.contains("[heap]") && smaps.contains("[stack]"), "{smaps}");
    Ok(())
}

/// The mappings that the process alone has, may write, and has not locked.
pub fn swappable(smaps: &str) -> Vec<&str> {
    let mut mapping = "";
    let mut swappable = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if !flags.split_whitespace().any(|flag| flag == "lo") {
                swappable.push(mapping);
            }
            mapping = "";
        } else if is_private_and_writable(line) {
            mapping = line;
        }
    }
    swappable.retain(|mapping| !mapping.is_empty());
    swappable
}

fn is_private_and_writable(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_range = words.next().is_some_and(|word| word.contains('-'));
    is_range
        && words
            .next()
            .is_some_and(|permissions| permissions.starts_with("rw") && permissions.ends_with('p'))
}
