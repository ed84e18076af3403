//! Packets as clients really send them, judged by their statistics: nothing in them repeats or
//! differs from random. `tests/interop/randomness.py` says how sure that is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use ring::rand::{SecureRandom as _, SystemRandom};
use spa_keys::{
    AnnouncementSecret, Announcing, InvitationSecret, PrivateKey, mask_key, pair_secret_for_client,
};
use spa_proto::{
    Item, MessageType, Nonce, PacketLength, Request, UnixMicros, seal, seal_announcement,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NOW: u64 = 1_800_000_000;
const OF_ONE_CLIENT: u64 = 100_000;
const OF_MANY_CLIENTS: u64 = 100_000;
const CLIENTS: usize = 1000;
const REPEATED: u64 = 20_000;

/// Packets every quarter of a second: 240 of them have the same epoch.
fn stamp(at: u64) -> UnixMicros {
    UnixMicros(NOW * 1_000_000 + at * 250_000)
}

fn nonce(random: &SystemRandom) -> Nonce {
    let mut nonce = [0; 24];
    random.fill(&mut nonce).unwrap();
    Nonce(nonce)
}

/// Knocks that all ask for the same, by turns from each client.
fn knocks(clients: usize, count: u64) -> Vec<u8> {
    let random = SystemRandom::new();
    let server = PrivateKey::generate(&random).unwrap().public();
    let pairs: Vec<_> = (0..clients)
        .map(|_| PrivateKey::generate(&random).unwrap())
        .map(|client| pair_secret_for_client(&client, &server, None).unwrap())
        .collect();
    let request = Request {
        message_type: MessageType::Open,
        items: vec!["ssh".parse::<Item>().unwrap()].try_into().unwrap(),
        bound_source: None,
        lifetime: None,
    };
    let mask = mask_key(&server);
    (0..count)
        .zip(pairs.iter().cycle())
        .flat_map(|(at, pair)| {
            let length = PacketLength::default();
            seal(pair, &mask, &request, stamp(at), nonce(&random), length).unwrap()
        })
        .collect()
}

/// Enrolments at one server, by turns from each client, each by an invitation and with a key of its
/// own.
fn enrolments(clients: usize, count: u64) -> Vec<u8> {
    let random = SystemRandom::new();
    let server = PrivateKey::generate(&random).unwrap().public();
    let enrolments: Vec<_> = (0..clients)
        .map(|_| {
            let new = PrivateKey::generate(&random).unwrap();
            let secret = InvitationSecret::generate(&random).unwrap();
            let pair = secret.keys(&server).pair;
            let secret = AnnouncementSecret::of_invitation(&secret);
            let announcing = Announcing::new(&secret, &new, &server).unwrap();
            (pair, announcing)
        })
        .collect();
    let (mask, source) = (mask_key(&server), "2001:db8::1".parse().unwrap());
    (0..count)
        .zip(enrolments.iter().cycle())
        .flat_map(|(at, (pair, announcing))| {
            let message = announcing.message(Some(source));
            let length = PacketLength::default();
            seal_announcement(pair, &mask, &message, stamp(at), nonce(&random), length).unwrap()
        })
        .collect()
}

/// The interpreter and the program.
fn judge() -> Command {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python: PathBuf = workspace.join("target/interop-venv/bin/python");
    assert!(
        python.is_file(),
        "{} is missing; make it with: tests/interop/run (`make test` does)",
        python.display()
    );
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(workspace.join("tests/interop/randomness.py"));
    command
}

/// What the judge says of these packets, and whether he noticed something.
fn judged(packets: &[u8], options: &[&str]) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("packets");
    fs::write(&file, packets).unwrap();
    let length = PacketLength::default().packet().to_string();
    let output = judge().args(options).arg(&file).arg(length).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let noticed = match output.status.code() {
        Some(0) => false,
        Some(1) => true,
        _ => panic!("{said}"),
    };
    (noticed, said)
}

#[test]
fn the_knocks_of_one_client_look_like_noise() {
    let packets = knocks(1, OF_ONE_CLIENT);
    let (noticed, said) = judged(&packets, &[]);
    assert!(!noticed, "{said}");
    // The same packets, spoiled in known ways: each is noticed.
    let (missed, said) = judged(&packets, &["--controls"]);
    assert!(!missed, "{said}");
}

#[test]
fn the_knocks_of_many_clients_look_like_noise() {
    let (noticed, said) = judged(&knocks(CLIENTS, OF_MANY_CLIENTS), &[]);
    assert!(!noticed, "{said}");
}

#[test]
fn an_enrolment_that_is_repeated_looks_like_noise() {
    let mut packets = enrolments(1, REPEATED);
    let (noticed, said) = judged(&packets, &[]);
    assert!(!noticed, "{said}");
    // One of them sent a second time as it was.
    packets
        .copy_within(..PacketLength::default().packet(), 5000 * PacketLength::default().packet());
    let (noticed, said) = judged(&packets, &[]);
    assert!(noticed, "{said}");
}

#[test]
fn the_enrolments_of_many_clients_look_like_noise() {
    let (noticed, said) = judged(&enrolments(CLIENTS, REPEATED), &[]);
    assert!(!noticed, "{said}");
}
