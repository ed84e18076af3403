//! The library's examples, run for real; and what happens to a wait that nobody wants any more.

use crate::support::{Ear, Home};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Builds the examples, as cargo does not for a single test, and gives back where they are.
fn built() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "--examples", "--features", "tokio"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Path::new(env!("CARGO_BIN_EXE_spa-client")).parent().unwrap().join("examples")
}

#[test]
fn the_examples_knock_wait_and_connect() {
    let examples = built();
    for name in ["open", "open_async"] {
        let ear = Ear::v4();
        let lines = format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port());
        let home = Home::with_server(&lines);
        let run = |port: u16| -> Output {
            let mut example = Command::new(examples.join(name));
            example.args(["work", &port.to_string()]).env("SPA_CONFIG_DIR", home.path());
            example.output().unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ran = run(port);
        let told = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{name}: {ran:?}");
        assert!(told.contains("open at 127.0.0.1 after "), "{name}: {told}");
        assert!(told.contains(&format!("connected to 127.0.0.1:{port}")), "{name}: {told}");
        let asked = ear.knock().request;
        assert_eq!(asked.items.iter().next().unwrap().to_string(), format!("tcp/{port}"));

        // What can't be done is an error, not a panic.
        std::fs::remove_file(home.file("identity.key")).unwrap();
        let failed = run(port);
        let told = String::from_utf8_lossy(&failed.stderr);
        assert!(!failed.status.success() && told.contains("Missing"), "{name}: {told}");
    }
}
