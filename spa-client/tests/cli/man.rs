//! The manual pages, as groff sees them.

#[path = "../../../man/tests/groff/mod.rs"]
mod groff;

use crate::support::Home;

#[test]
fn each_command_has_a_page_that_groff_finds_nothing_wrong_with() {
    let home = Home::empty();
    let directory = home.file("man");
    let ran = home.run(&["man", directory.to_str().unwrap()]);
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    let pages = groff::sound_pages(&directory, "User Commands");
    let has = |name: &str| pages.iter().any(|page| page == name);
    assert!(has("spa-client.1") && has("spa-client-open.1") && has("spa-client-server-add.1"));
    assert!(!has("spa-client-complete.1") && !has("spa-client-man.1"), "hidden commands");
    insta::assert_snapshot!("man_list", groff::plain(&directory.join("spa-client-list.1")));
}
