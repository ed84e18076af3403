//! The manual pages, as groff sees them.

use crate::support::Home;
use std::process::{Command, Stdio};

#[test]
fn each_command_has_a_page_that_groff_finds_nothing_wrong_with() {
    let home = Home::empty();
    let directory = home.file("man");
    let ran = home.run(&["man", directory.to_str().unwrap()]);
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    let mut pages: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|page| page.unwrap().path()).collect();
    pages.sort();
    let has = |name: &str| pages.iter().any(|page| page.file_name().unwrap() == name);
    assert!(has("spa-client.1") && has("spa-client-open.1") && has("spa-client-server-add.1"));
    assert!(!has("spa-client-complete.1") && !has("spa-client-man.1"), "hidden commands");
    for page in &pages {
        let output = Command::new("/usr/bin/groff")
            .args(["-man", "-ww", "-Tutf8", "-P-c", "-P-b", "-P-u", "-rLL=100n"])
            .arg(page)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{}: {told}", page.display());
        let text = String::from_utf8(output.stdout).unwrap();
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(text.contains(heading), "{}: no {heading}", page.display());
        }
        assert!(text.contains("User Commands"), "{text}");
    }
    let list = directory.join("spa-client-list.1");
    let output = Command::new("/usr/bin/groff")
        .args(["-man", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=100n"])
        .arg(list)
        .output()
        .unwrap();
    insta::assert_snapshot!("man_list", String::from_utf8(output.stdout).unwrap());
}
