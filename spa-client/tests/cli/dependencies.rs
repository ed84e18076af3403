//! The client builds where there is no libpcap and no Linux.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The packages that `spa-client` is built from on this machine.
fn packages(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(String::from).collect()
}

#[test]
fn neither_capture_nor_runtime_nor_kernel_interfaces_are_linked() {
    let client = packages("spa-client");
    for needed in ["spa-proto", "spa-keys", "mio"] {
        assert!(client.iter().any(|package| package == needed), "{needed}: {client:?}");
    }
    for unwanted in [
        "spa-server",
        "pcap",
        "tokio",
        "netlink-sys",
        "rtnetlink",
        "aya",
        "caps",
        "seccompiler",
        "landlock",
        "sd-notify",
    ] {
        assert!(!client.iter().any(|package| package == unwanted), "{unwanted}: {client:?}");
    }
    // The names above are those that the server's tree has.
    assert!(packages("spa-server").iter().any(|package| package == "pcap"));
}

/// What nothing but the fenced files may hold: words that only Unix understands.
const UNIX_ONLY: [&str; 16] = [
    "os::unix",
    "os::linux",
    "os::fd",
    "cfg(unix)",
    "cfg!(unix)",
    "cfg!(target",
    "cfg(target",
    "nix::",
    "libc::",
    "rustix::",
    "signal_hook",
    "SIGTERM",
    "\"/proc",
    "\"/dev/",
    "\"/etc/",
    "\"/run/",
];

/// The files below `directory` that hold any of it, tests left out.
fn with_unix_only(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.file_name().unwrap() != "tests.rs" {
                let text = std::fs::read_to_string(&path).unwrap();
                if UNIX_ONLY.iter().any(|word| text.contains(word)) {
                    found.push(path.strip_prefix(directory).unwrap().to_path_buf());
                }
            }
        }
    }
    found
}

#[test]
fn what_only_unix_has_stays_where_it_is_fenced_in() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(with_unix_only(&here.join("src")), [Path::new("unix.rs")]);
    // `file.rs` says which of the two it takes, and that its tests are for Unix.
    let mut keys = with_unix_only(&here.join("../keys/src"));
    keys.sort();
    assert_eq!(keys, ["file/unix.rs", "file.rs"].map(Path::new));
}
