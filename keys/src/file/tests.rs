//! Key files on a real file system.

use super::*;
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use proptest::prelude::*;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

fn private(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes(Zeroizing::new([byte; 32]))
}

fn pre_shared() -> PreSharedKey {
    PreSharedKey::from_bytes(Zeroizing::new([3; 32])).unwrap()
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A good private key file, of key 1, to be spoiled.
fn key_file(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("a.key");
    write_private_key(&path, &private(1), Overwrite::Refuse).unwrap();
    assert_eq!(read_private_key(&path).unwrap().public(), private(1).public());
    path
}

fn file_with(directory: &TempDir, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join("written.key");
    fs::write(&path, content).unwrap();
    set_mode(&path, 0o600);
    path
}

#[test]
fn every_kind_of_key_survives_its_file() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);

    write_private_key(path("private"), &private(1), Overwrite::Refuse).unwrap();
    assert_eq!(read_private_key(path("private")).unwrap().to_text(), private(1).to_text());
    write_pre_shared_key(path("psk"), &pre_shared(), Overwrite::Refuse).unwrap();
    assert_eq!(read_pre_shared_key(path("psk")).unwrap().to_text(), pre_shared().to_text());
    write_public_key(path("public"), &private(1).public(), Overwrite::Refuse).unwrap();
    assert_eq!(read_public_key(path("public")).unwrap(), private(1).public());

    for (name, mode) in [("private", 0o600), ("psk", 0o600), ("public", 0o644)] {
        let metadata = fs::symlink_metadata(path(name)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{name}");
        assert_eq!(metadata.nlink(), 1, "{name}");
    }
    assert_eq!(names(&directory), ["private", "psk", "public"]);
}

#[test]
fn a_private_key_file_names_its_public_key() {
    let directory = directory();
    let content = fs::read_to_string(key_file(&directory)).unwrap();
    assert!(content.contains(&format!("# {}\n", private(1).public())), "{content}");
    assert!(content.ends_with(&format!("\n{}\n", *private(1).to_text())), "{content}");
}

#[test]
fn comments_blank_lines_and_line_ends_of_other_systems_are_fine() {
    let directory = directory();
    let key = private(1).to_text();
    let path = file_with(&directory, format!("# a\r\n\r\n  # b\r\n  {}  \r\n\n#", *key));
    assert_eq!(read_private_key(path).unwrap().to_text(), key);
}

#[test]
fn a_secret_file_that_others_can_use_is_refused() {
    let directory = directory();
    let path = key_file(&directory);
    for bit in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
        set_mode(&path, 0o600 | bit);
        let error = read_private_key(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Mode { mode, .. } if mode == 0o600 | bit), "{error}");
    }
    set_mode(&path, 0o644);
    assert_eq!(
        read_private_key(&path).unwrap_err().to_string(),
        format!(
            "the key file {path} is open to other users (mode 0644); if none of them can have read it: chmod 600 {path}, else make a new key",
            path = path.display()
        )
    );
    for mode in [0o600, 0o400] {
        set_mode(&path, mode);
        assert!(read_private_key(&path).is_ok());
    }

    let path = directory.path().join("psk");
    write_pre_shared_key(&path, &pre_shared(), Overwrite::Refuse).unwrap();
    assert!(read_pre_shared_key(&path).is_ok());
    set_mode(&path, 0o640);
    let error = read_pre_shared_key(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::Mode { mode: 0o640, .. }), "{error}");
}

#[test]
fn a_public_key_file_may_be_anybody_s() {
    let directory = directory();
    let path = directory.path().join("public");
    write_public_key(&path, &private(1).public(), Overwrite::Refuse).unwrap();
    set_mode(&path, 0o666);
    if geteuid().is_root() {
        chown(&path, Some(65_534), Some(65_534)).unwrap();
    }
    assert_eq!(read_public_key(&path).unwrap(), private(1).public());
}

/// Only root can give a file away; who is judged how is tested for every user in `unix.rs`.
#[test]
fn a_secret_file_of_another_user_is_refused() {
    if !geteuid().is_root() {
        return;
    }
    let directory = directory();
    let path = key_file(&directory);
    chown(&path, Some(65_534), None).unwrap();
    let error = read_private_key(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::Owner { owner: 65_534, user: 0, .. }), "{error}");
    assert!(error.to_string().contains("chown 0 "), "{error}");
    chown(&path, Some(0), Some(65_534)).unwrap();
    assert!(read_private_key(&path).is_ok());
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let directory = directory();
    let target = key_file(&directory);
    let link = directory.path().join("link");
    symlink(&target, &link).unwrap();
    let is_link = |error: &KeyFileError| matches!(error, KeyFileError::SymbolicLink { .. });
    assert!(is_link(&read_private_key(&link).unwrap_err()));
    assert!(is_link(&read_pre_shared_key(&link).unwrap_err()));
    assert!(is_link(&read_public_key(&link).unwrap_err()));
    let dangling = directory.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    assert!(is_link(&read_private_key(&dangling).unwrap_err()));
    // A directory on the way may be one.
    let other = directory.path().join("other");
    symlink(directory.path(), &other).unwrap();
    assert!(read_private_key(other.join("a.key")).is_ok());
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("directory")).unwrap();
    // Nobody writes to it: an open that waits would wait for ever.
    mkfifo(&path("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _listener = UnixListener::bind(path("socket")).unwrap();
    for (path, what) in [
        (path("directory"), "a directory"),
        (path("pipe"), "a named pipe"),
        (path("socket"), "a socket"),
        ("/dev/null".into(), "a device"),
    ] {
        let (send, receive) = std::sync::mpsc::channel();
        let opened = path.clone();
        std::thread::spawn(move || {
            send.send([read_private_key(&opened).map(drop), read_public_key(&opened).map(drop)])
        });
        let patience = std::time::Duration::from_secs(60);
        for result in receive.recv_timeout(patience).expect("the open waits") {
            assert_eq!(
                result.unwrap_err().to_string(),
                format!("{} is {what}, not a key file; name a regular file", path.display())
            );
        }
    }
    assert!(read_private_key(key_file(&directory)).is_ok());
}

#[test]
fn a_file_has_at_most_4_kib() {
    let directory = directory();
    let mut content = format!("{}\n#", *private(1).to_text());
    while content.len() < MAX_KEY_FILE_LENGTH {
        content.push('x');
    }
    assert!(read_private_key(file_with(&directory, &content)).is_ok());
    content.push('x');
    let error = read_private_key(file_with(&directory, &content)).unwrap_err();
    assert!(matches!(error, KeyFileError::TooLong { .. }), "{error}");
    let error = read_private_key(file_with(&directory, vec![b'#'; 1 << 20])).unwrap_err();
    assert!(matches!(error, KeyFileError::TooLong { .. }), "{error}");
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_line() {
    let directory = directory();
    let (key, public) = (private(1).to_text(), private(1).public());
    let of = |content: &[u8]| {
        let path = file_with(&directory, content);
        let message = read_private_key(&path).unwrap_err().to_string();
        message.replace(&path.display().to_string(), "FILE")
    };
    assert_eq!(of(b""), "there is no key in FILE; a private key file holds one line spa-private-…");
    assert_eq!(of(b"# \n\n"), of(b""));
    assert_eq!(
        of(b"\xff\xfe"),
        "FILE is no text file; a private key file holds one line spa-private-…"
    );
    assert_eq!(
        of(format!("#\n{}\n{}\n", *key, *key).as_bytes()),
        "FILE, line 3: a key file holds one key; remove the line or put # in front of it"
    );
    assert_eq!(
        of(format!("#\n\n{public}").as_bytes()),
        "FILE, line 3: this is a public key (spa-public-…), but a private key (spa-private-…) \
         belongs here; a public key is no secret and can't take the place of one"
    );
    let typo = key.replace("AQEBAQ", "AQEBAg");
    assert_eq!(
        of(typo.as_bytes()),
        "FILE, line 1: there is a typing error in this private key (its checksum does not match); \
         copy it again"
    );
}

#[test]
fn a_file_that_is_not_there_is_told() {
    let directory = directory();
    let path = directory.path().join("absent");
    let error = read_private_key(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::NotFound { .. }), "{error}");
    let error = write_private_key(path.join("below"), &private(1), Overwrite::Refuse).unwrap_err();
    let expected = format!("can't create a file in {}: ", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    for no_name in ["/", "..", "a/.."] {
        let error = write_private_key(no_name, &private(1), Overwrite::Replace).unwrap_err();
        assert!(matches!(error, KeyFileError::NotAFile { .. }), "{error}");
    }
    let bare = directory_and_name(Path::new("a.key")).unwrap();
    assert_eq!(bare, (Path::new("."), OsStr::new("a.key")));
}

#[test]
fn what_is_there_is_never_overwritten_unasked() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), "precious").unwrap();
    fs::write(path("empty"), "").unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    symlink(path("file"), path("link")).unwrap();
    fs::create_dir(path("directory")).unwrap();
    mkfifo(&path("pipe"), Mode::S_IRUSR).unwrap();
    let before = names(&directory);
    for name in &before {
        for error in [
            write_private_key(path(name), &private(1), Overwrite::Refuse).unwrap_err(),
            write_pre_shared_key(path(name), &pre_shared(), Overwrite::Refuse).unwrap_err(),
            write_public_key(path(name), &private(1).public(), Overwrite::Refuse).unwrap_err(),
        ] {
            assert!(matches!(error, KeyFileError::Exists { .. }), "{name}: {error}");
        }
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(path("empty")).unwrap(), "");
    assert_eq!(fs::read_link(path("dangling")).unwrap(), Path::new("nowhere"));
    assert_eq!(names(&directory), before, "nothing is left behind");
}

#[test]
fn a_replaced_file_is_new_in_every_respect() {
    let directory = directory();
    let path = key_file(&directory);
    set_mode(&path, 0o666);
    write_private_key(&path, &private(2), Overwrite::Replace).unwrap();
    assert_eq!(read_private_key(&path).unwrap().public(), private(2).public());

    // A symbolic link is replaced, and what it points at is not touched.
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    write_private_key(&link, &private(3), Overwrite::Replace).unwrap();
    assert_eq!(read_private_key(&link).unwrap().public(), private(3).public());
    assert_eq!(read_private_key(&path).unwrap().public(), private(2).public());
    assert_eq!(names(&directory), ["a.key", "link"]);
}

#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let directory = directory();
    let path = directory.path().join("directory");
    fs::create_dir(&path).unwrap();
    let error = write_private_key(&path, &private(1), Overwrite::Replace).unwrap_err();
    assert!(matches!(error, KeyFileError::Io { action: "create", .. }), "{error}");
    assert_eq!(names(&directory), ["directory"]);
}

#[test]
fn the_temporary_file_is_never_somebody_else_s() {
    let directory = directory();
    let victim = directory.path().join("victim");
    let planted = directory.path().join("planted");
    symlink(&victim, &planted).unwrap();
    let error = system::create(&planted).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(!victim.exists());
    let path = directory.path().join("free");
    system::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0, "closed from the start");
}

#[test]
fn of_many_writers_at_once_exactly_one_creates_the_file() {
    const WRITERS: u8 = 8;
    let directory = directory();
    for round in 0..40 {
        let path = directory.path().join(format!("{round}.key"));
        let barrier = std::sync::Barrier::new(WRITERS.into());
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (1..=WRITERS)
                .map(|writer| {
                    let (path, barrier) = (&path, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        match write_private_key(path, &private(writer), Overwrite::Refuse) {
                            Ok(()) => Some(writer),
                            Err(KeyFileError::Exists { .. }) => None,
                            Err(error) => panic!("{error}"),
                        }
                    })
                })
                .collect();
            writers.into_iter().filter_map(|writer| writer.join().unwrap()).collect()
        });
        let [winner] = *winners else { panic!("{winners:?} all created the file") };
        assert_eq!(read_private_key(&path).unwrap().public(), private(winner).public());
    }
    assert_eq!(names(&directory).len(), 40, "no temporary file is left");
}

#[test]
fn who_reads_while_the_file_is_replaced_sees_a_whole_key() {
    let directory = directory();
    let path = key_file(&directory);
    let expected: Vec<_> = (1..=4).map(|byte| private(byte).public()).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..100 {
                write_private_key(&path, &private(round % 4 + 1), Overwrite::Replace).unwrap();
            }
        });
        loop {
            let finished = writer.is_finished();
            let read = read_private_key(&path).unwrap().public();
            assert!(expected.contains(&read), "{read}");
            if finished {
                break;
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_content_panics(
        content in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..5000),
            "(#\\PC{0,9}|spa-private-[A-Za-z0-9_-]{48}|[ \r\n]){0,6}".prop_map(String::into_bytes),
        ]
    ) {
        let directory = directory();
        let path = file_with(&directory, content);
        let _ = read_private_key(&path).map_err(|error| error.to_string());
        let _ = read_pre_shared_key(&path).map_err(|error| error.to_string());
        let _ = read_public_key(&path).map_err(|error| error.to_string());
    }
}
