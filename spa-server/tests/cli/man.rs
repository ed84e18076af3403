//! The manual pages, as groff sees them.

#[path = "../../../man/tests/groff/mod.rs"]
mod groff;

use crate::host::Host;

#[test]
fn each_command_has_a_page_that_groff_finds_nothing_wrong_with() {
    let host = Host::new();
    let directory = host.path("man");
    let ran = host.run(&["man", directory.to_str().unwrap()]).done();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    let pages = groff::sound_pages(&directory, "System Administration");
    let has = |name: &str| pages.iter().any(|page| page == name);
    assert!(has("spa-server.8") && has("spa-server-init.8") && has("spa-server-client-add.8"));
    assert!(!has("spa-server-man.8"), "a hidden command");
    insta::assert_snapshot!("man_status", groff::plain(&directory.join("spa-server-status.8")));

    let there = host.path("server.toml");
    host.run(&["man", there.to_str().unwrap()]).failed(1, "server.toml can't be written");
}
