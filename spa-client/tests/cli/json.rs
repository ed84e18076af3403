//! `--json`: one object on standard output and nothing else, for each command that has a result.

use crate::support::{Ear, Home, server_key};
use serde_json::{Value, json};

fn object(home: &Home, words: &[&str], status: i32) -> Value {
    let ran = home.run(&[words, &["--json"]].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (status, ""), "{words:?}");
    assert!(ran.stdout.ends_with("}\n") && ran.stdout.lines().count() == 1, "{words:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn every_command_that_has_a_result_writes_it_as_one_object() {
    let home = Home::empty();
    let made = object(&home, &["keygen"], 0);
    assert_eq!(made["file"], "[dir]/identity.key");
    let key = spa_keys::read_private_key(home.file("identity.key")).unwrap();
    assert_eq!(made["public_key"], key.public().to_string());

    let ear = Ear::v4();
    let (port, key) = (ear.port().to_string(), server_key().to_string());
    let add = ["server", "add", "work", "--host", "127.0.0.1", "--public-key", &key];
    let added = object(&home, &[&add[..], &["--knock-port", &port]].concat(), 0);
    assert_eq!(added, json!({ "server": "work", "file": "[dir]/config.toml", "default": true }));
    assert_eq!(object(&home, &["list"], 0)["default"], "work");
    for action in ["open", "close"] {
        let asked = object(&home, &[action, "udp/53", "--quiet"], 0);
        assert_eq!(asked["action"], action);
        assert_eq!(asked["servers"][0]["items"][0]["state"], "asked");
        let _ = ear.hear();
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp/{}", listener.local_addr().unwrap().port());
    let looked = object(&home, &["doctor", "--service", &target], 0);
    assert_eq!((&looked["ok"], &looked["host"]), (&json!(true), &json!("127.0.0.1")));
    let removed = object(&home, &["server", "remove", "work"], 0);
    assert_eq!((&removed["server"], &removed["default"]), (&json!("work"), &json!(false)));

    let to = home.file("copy.key");
    let (from, copy) = (home.file("identity.key"), to.to_str().unwrap());
    let copied = object(&home, &["key", "copy", from.to_str().unwrap(), "--to", copy], 0);
    assert_eq!(
        (&copied["public_key"], &copied["to"]),
        (&made["public_key"], &json!("[dir]/copy.key"))
    );
    let changed = object(&home, &["key", "passphrase", copy, "--remove"], 0);
    assert_eq!(
        changed,
        json!({ "source": "[dir]/copy.key", "passphrase": false, "changed": false })
    );
    let new = home.file("new");
    let refuse = spa_keys::Overwrite::Refuse;
    spa_keys::write_secret_text(&new, "correct horse battery staple\n", refuse).unwrap();
    let words = ["key", "passphrase", copy, "--new-passphrase-file", new.to_str().unwrap()];
    let changed = object(&home, &words, 0);
    assert_eq!(changed, json!({ "source": "[dir]/copy.key", "passphrase": true, "changed": true }));

    let export = home.file("work.export");
    let export = export.to_str().unwrap();
    object(&home, &["server", "add", "work", "--host", "gw", "--public-key", &key], 0);
    let ran = home.run(&["export", "--output", export, "--plain", "--yes", "--json"]);
    let exported: Value = serde_json::from_str(&ran.stdout).unwrap();
    let file = "[dir]/work.export";
    assert_eq!(exported, json!({ "server": "work", "file": file, "passphrase": false }));
    let other = Home::empty();
    let imported = object(&other, &["import", export], 0);
    let (file, key) = ("[dir]/config.toml", "[dir]/work.key");
    let expected = json!({
        "server": "work", "file": file, "key": key, "passphrase": false, "default": true
    });
    assert_eq!(imported, expected);

    // What can't be done is an error, as ever; what doctor finds wrong is its result.
    let failed = home.run(&["keygen", "--json"]);
    assert_eq!((failed.status, failed.stdout.as_str()), (1, ""));
    let looked = object(&home, &["doctor"], 1);
    assert_eq!(looked["checks"][0]["check"], "configuration");
}
