//! The client builds where there is no libpcap and no Linux.

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

#[test]
fn what_only_unix_has_stays_where_it_is_fenced_in() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut fenced = Vec::new();
    let mut directories = vec![sources.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("os::linux"), "{}", path.display());
            if text.contains("os::unix") && path.file_name().unwrap() != "tests.rs" {
                fenced.push(path.strip_prefix(&sources).unwrap().to_path_buf());
            }
        }
    }
    fenced.sort();
    assert_eq!(fenced, ["config.rs", "unix.rs"].map(std::path::Path::new));
}
