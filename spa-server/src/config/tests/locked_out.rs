//! Who is locked out by a configuration of which nothing else can be had.

use super::*;

#[test]
fn who_is_locked_out_by_a_configuration_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let server_toml = directory.path().join("server.toml");
    let clients = Settings::clients_directory_of(&server_toml);
    std::fs::create_dir(&clients).unwrap();
    let keys = [1, 2, 3].map(|byte| spa_keys::PrivateKey::from_bytes([byte; 32].into()).public());
    let ids: Vec<(spa_proto::ClientId, &str)> =
        keys.iter().map(|key| (*key).into()).zip(["one", "two", "three"]).collect();
    let introductions: BTreeMap<_, _> =
        ids.iter().map(|(id, _)| (*id, Introduction::Key((*id).into()))).collect();
    let path = |name: &str| clients.join(format!("{name}.toml"));
    let write = |name: &str, key: usize, rest: &str| {
        std::fs::write(path(name), format!("public-key = \"{}\"\n{rest}", keys[key])).unwrap();
    };
    let out = || -> Vec<&str> {
        let clients = ids.iter().map(|(id, name)| (*id, introductions[id].clone(), *name));
        let out = locked_out(&server_toml, clients);
        ids.iter().filter(|(id, _)| out.contains(id)).map(|(_, name)| *name).collect()
    };
    write("one", 0, "");
    write("two", 1, "allow = [\"nothing that is known\"]\n");
    write("three", 2, "enabled = true\n");
    assert!(out().is_empty());

    write("two", 1, "enabled = false\n");
    assert_eq!(out(), ["two"]);
    // Also if others could have written it, and whatever else is wrong.
    std::fs::set_permissions(path("two"), Permissions::from_mode(0o666)).unwrap();
    std::fs::write(path("four"), "public-key = [").unwrap();
    assert_eq!(out(), ["two"]);
    // One that is gone may just be being written, as long as another one is.
    std::fs::remove_file(path("one")).unwrap();
    assert_eq!(out(), ["two"]);
    std::fs::remove_file(path("four")).unwrap();
    assert_eq!(out(), ["one", "two"]);
    // By another name he is in.
    write("other", 0, "");
    assert_eq!(out(), ["two"]);
    std::fs::remove_file(path("other")).unwrap();
    // A link that leads nowhere: what it leads to may come back.
    std::os::unix::fs::symlink("/nowhere/one.toml", path("one")).unwrap();
    assert_eq!(out(), ["two"]);
    std::fs::remove_dir_all(&clients).unwrap();
    assert!(out().is_empty());
}

#[test]
fn who_was_invited_is_locked_out_by_a_configuration_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let server_toml = directory.path().join("server.toml");
    let clients = Settings::clients_directory_of(&server_toml);
    std::fs::create_dir(&clients).unwrap();
    let path = |name: &str| clients.join(format!("{name}.toml"));
    let secret = |byte: u8| spa_keys::InvitationSecret::from_bytes([byte; 32].into()).unwrap();
    let write = |name: &str, byte: u8, rest: &str| {
        let file = clients.join(format!("{byte}.invitation"));
        spa_keys::write_invitation_secret(&file, &secret(byte), Overwrite::Replace).unwrap();
        let text = format!("{rest}\n[invitation]\nsecret-file = \"{}\"\n", file.display());
        std::fs::write(path(name), text).unwrap();
    };
    let introduction = Introduction::Invitation(secret(1).fingerprint());
    let id = spa_proto::ClientId([1; 32]);
    let is_out =
        || !locked_out(&server_toml, [(id, introduction.clone(), "laptop")].into_iter()).is_empty();
    write("laptop", 1, "");
    assert!(!is_out());
    // Whatever other invitations there are, of clients that are not known.
    write("carol", 2, "");
    write("laptop", 1, "enabled = false");
    assert!(is_out());
    std::fs::remove_file(path("laptop")).unwrap();
    assert!(is_out());
    // By another name he is in.
    write("notebook", 1, "");
    assert!(!is_out());
    // Another invitation in his place is not his.
    std::fs::remove_file(path("notebook")).unwrap();
    write("laptop", 3, "enabled = false");
    assert!(!is_out());
    // A secret that can't be read may be anybody's.
    std::fs::remove_file(path("laptop")).unwrap();
    std::fs::remove_file(clients.join("2.invitation")).unwrap();
    assert!(!is_out());
}
