//! The client builds where there is no libpcap and no Linux.

use std::path::{Path, PathBuf};
use std::process::Command;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The packages that `package` is built from, for this machine or for `target`.
fn packages(package: &str, target: Option<&str>, depth: &str) -> Vec<String> {
    // Not `--offline`: what only another system needs may not have been fetched yet.
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--package", package, "--prefix", "none", "--format", "{p}"]);
    tree.args(["--edges", if target.is_some() { "normal,no-proc-macro" } else { "normal,build" }]);
    tree.args(target.iter().flat_map(|target| ["--target", target])).args(["--depth", depth]);
    let output = tree.current_dir(HERE).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(String::from).collect()
}

#[test]
fn neither_capture_nor_runtime_nor_kernel_interfaces_are_linked() {
    let client = packages("spa-client", None, "99");
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
    assert!(packages("spa-server", None, "99").iter().any(|package| package == "pcap"));
}

#[test]
fn on_other_systems_nothing_is_linked_that_they_do_not_have() {
    // As far as Unix goes, macOS has it; Windows has none of it, not even deep down.
    let unix_only = ["nix", "rustix", "libc", "signal-hook", "zbus", "inotify"];
    let windows = packages("spa-client", Some("x86_64-pc-windows-msvc"), "99");
    let found: Vec<_> = windows.iter().filter(|it| unix_only.contains(&it.as_str())).collect();
    assert!(found.is_empty(), "{found:?}");
    let mac = packages("spa-client", Some("aarch64-apple-darwin"), "99");
    for linux_only in ["netlink-sys", "procfs", "inotify", "linux-keyutils"] {
        assert!(!mac.iter().any(|package| package == linux_only), "{linux_only}: {mac:?}");
    }
    // The tree is that of the other system, and names are found where they are.
    assert!(windows.iter().any(|package| package == "windows-sys"), "{windows:?}");
    assert!(mac.iter().any(|package| package == "rustix"), "{mac:?}");
    // Nor does the client itself call the system's library anywhere.
    let direct = packages("spa-client", Some("aarch64-apple-darwin"), "1");
    assert!(!direct.iter().any(|package| package == "libc"), "{direct:?}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn the_client_builds_without_the_server_and_without_what_only_unix_has() {
    let workspace = Path::new(HERE).parent().unwrap();
    // The same place each time, so that what the three need is built once.
    let alone = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alone");
    let members = ["spa-proto", "keys", "man", "spa-client"];
    for member in members {
        let _ = std::fs::remove_dir_all(alone.join(member));
        copy(&workspace.join(member), &alone.join(member));
    }
    for file in ["Cargo.lock", "clippy.toml"] {
        std::fs::copy(workspace.join(file), alone.join(file)).unwrap();
    }
    let manifest = std::fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
    let mut manifest: toml_edit::DocumentMut = manifest.parse().unwrap();
    manifest["workspace"]["members"] =
        toml_edit::value(members.into_iter().collect::<toml_edit::Array>());
    std::fs::write(alone.join("Cargo.toml"), manifest.to_string()).unwrap();
    let check = || {
        Command::new(env!("CARGO"))
            .args(["check", "--offline", "--quiet", "--package", "spa-client"])
            .current_dir(&alone)
            .env("CARGO_TARGET_DIR", alone.join("target"))
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap()
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let built = check();
    assert!(built.status.success(), "{}", said(&built));

    // As on a system that is not Unix: what is fenced in, replaced by what stands beside it.
    for (fenced, portable) in [
        ("spa-client/src/unix.rs", "spa-client/src/portable.rs"),
        ("keys/src/file/unix.rs", "keys/src/file/portable.rs"),
    ] {
        // Written, not renamed: cargo goes by the time of the change.
        let text = std::fs::read(alone.join(portable)).unwrap();
        std::fs::write(alone.join(fenced), text).unwrap();
    }
    let portable = check();
    assert!(portable.status.success(), "{}", said(&portable));
    // The control: without it, it does not build.
    std::fs::write(alone.join("spa-client/src/unix.rs"), "//! Nothing.\n").unwrap();
    assert!(said(&check()).contains("system"));
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
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
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
    let here = Path::new(HERE);
    let mut client = with_unix_only(&here.join("src"));
    client.sort();
    // The keyring of each system has a crate of its own.
    assert_eq!(client, ["key_source/secret_service.rs", "unix.rs"].map(Path::new));
    // `file.rs` says which of the two it takes, and that its tests are for Unix.
    let mut keys = with_unix_only(&here.join("../keys/src"));
    keys.sort();
    assert_eq!(keys, ["file/unix.rs", "file.rs"].map(Path::new));
}
