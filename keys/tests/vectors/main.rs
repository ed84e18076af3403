//! The vectors of `tests/vectors/`, which a second implementation wrote from `docs/protocol.md`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod announcements;
mod invitations;

use ring::hkdf;
use serde::Deserialize;
use spa_keys::{
    InvitationSecret, PreSharedKey, PrivateKey, PublicKey, mask_key, pair_secret_for_client,
    pair_secret_for_server,
};
use spa_proto::{
    ClientId, DropReason, Epoch, Freshness, Item, MaskKey, MessageType, Nonce, PacketLength,
    PairSecret, PortRange, Receiver, Request, Settings, Tag, UnixMicros, Verdict, masked, seal,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;
use zeroize::Zeroizing;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Positive {
    name: String,
    client_private: String,
    client_public: String,
    server_private: String,
    server_public: String,
    psk: Option<String>,
    nonce: String,
    timestamp_us: u64,
    message_type: String,
    bound_source: Option<IpAddr>,
    lifetime_s: u32,
    items: Vec<String>,
    plaintext_length: u16,
    shared: String,
    ikm: String,
    hkdf_output: String,
    k_mask: String,
    epoch: u64,
    tag: String,
    mask: String,
    masked_tag: String,
    plaintext: String,
    ciphertext: String,
    aead_tag: String,
    mac: String,
    packet: String,
}

#[derive(Deserialize)]
struct Negative {
    name: String,
    server_private: String,
    server_public: String,
    clients: Vec<Client>,
    freshness_s: u64,
    plaintext_length: u16,
    window_capacity: usize,
    barrier_us: Option<u64>,
    history: Vec<Event>,
    now_us: u64,
    source: IpAddr,
    packet: String,
    ports: Vec<String>,
    drop_reason: String,
    controls: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    client_public: String,
    psk: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    now_us: u64,
    source: IpAddr,
    packet: String,
    ports: Vec<String>,
    /// Whether the server is to accept it, or only to judge it.
    #[serde(default = "yes")]
    accept: bool,
}

#[derive(Deserialize)]
struct Keys {
    valid: Vec<ValidKey>,
    invalid: Vec<InvalidKey>,
    server_private: String,
    refused_clients: Vec<RefusedClient>,
}

#[derive(Deserialize)]
struct RefusedClient {
    why: String,
    client_public: String,
    psk: Option<String>,
}

#[derive(Deserialize)]
struct ValidKey {
    kind: String,
    key: String,
    text: String,
}

#[derive(Deserialize)]
struct InvalidKey {
    kind: String,
    why: String,
    text: String,
}

const fn yes() -> bool {
    true
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|n| char::from_digit(n.into(), 16).unwrap())
        .collect()
}

fn array<const N: usize>(hex: &str) -> [u8; N] {
    bytes(hex).try_into().unwrap()
}

fn private(hex: &str) -> PrivateKey {
    PrivateKey::from_bytes(Zeroizing::new(array(hex)))
}

fn psk(hex: Option<&String>) -> Option<PreSharedKey> {
    hex.map(|hex| PreSharedKey::from_bytes(Zeroizing::new(array(hex))).unwrap())
}

fn secret(hex: &str) -> InvitationSecret {
    InvitationSecret::from_bytes(Zeroizing::new(array(hex))).unwrap()
}

fn ports(texts: &[String]) -> Vec<PortRange> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(ikm: &[u8], info: &[u8], length: usize) -> Vec<u8> {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"single-packet-authorization v1");
    let mut output = vec![0; length];
    salt.extract(ikm).expand(&[info], Length(length)).unwrap().fill(&mut output).unwrap();
    output
}

#[test]
fn every_value_on_the_way_to_a_packet_is_that_of_the_second_implementation() {
    let vectors: Vec<Positive> = read("positive.json");
    assert!(vectors.len() >= 12);
    for v in &vectors {
        let name = &v.name;
        let (client, server) = (private(&v.client_private), private(&v.server_private));
        assert_eq!(hex(client.public().as_bytes()), v.client_public, "{name}");
        assert_eq!(hex(server.public().as_bytes()), v.server_public, "{name}");

        let (c, s) = (array::<32>(&v.client_private), array::<32>(&v.server_public));
        let shared = x25519_dalek::x25519(c, s);
        assert_eq!(hex(&shared), v.shared, "{name}");
        let psk = psk(v.psk.as_ref());
        let psk_bytes = v.psk.as_ref().map_or([0; 32], |hex| array(hex));
        let ikm = [&shared[..], &[u8::from(psk.is_some())], &psk_bytes].concat();
        assert_eq!(hex(&ikm), v.ikm, "{name}");
        let info = [&b"client-to-server"[..], client.public().as_bytes(), &s].concat();
        let output = expand(&ikm, &info, 96);
        assert_eq!(hex(&output), v.hkdf_output, "{name}");
        let k_mask = expand(&s, b"tag-mask", 32);
        assert_eq!(hex(&k_mask), v.k_mask, "{name}");

        let key = |at: usize| -> [u8; 32] { output[at..at + 32].try_into().unwrap() };
        let by_hand = PairSecret::new(key(0), key(32), key(64));
        let mask = MaskKey::new(k_mask.try_into().unwrap());
        let stamp = UnixMicros(v.timestamp_us);
        let nonce = Nonce(array(&v.nonce));
        assert_eq!(Epoch::of(stamp), Epoch(v.epoch), "{name}");
        let tag = Tag::of(&by_hand, Epoch(v.epoch));
        assert_eq!(hex(&tag.0), v.tag, "{name}");
        assert_eq!(hex(&masked(&mask, &nonce, Tag([0; 16])).0), v.mask, "{name}");
        assert_eq!(hex(&masked(&mask, &nonce, tag).0), v.masked_tag, "{name}");
        let parts = [&v.masked_tag, &v.nonce, &v.ciphertext, &v.aead_tag, &v.mac];
        assert_eq!(parts.map(String::as_str).concat(), v.packet, "{name}");

        let request = request(v);
        let length = PacketLength::try_from(v.plaintext_length).unwrap();
        assert_eq!(v.plaintext.len(), 2 * length.plaintext(), "{name}");
        let public = (client.public(), server.public());
        for pair in [
            by_hand,
            pair_secret_for_client(&client, &public.1, psk.as_ref()).unwrap(),
            pair_secret_for_server(&server, &public.0, psk.as_ref()).unwrap(),
        ] {
            let packet = seal(&pair, &mask_key(&public.1), &request, stamp, nonce, length).unwrap();
            assert_eq!(hex(&packet), v.packet, "{name}");
        }

        // And the receiver reads from the packet what went into it.
        let settings = Settings { length, ..Settings::default() };
        let mut receiver = Receiver::new(settings, mask_key(&public.1));
        let pair = pair_secret_for_server(&server, &public.0, psk.as_ref()).unwrap();
        receiver.set_clients([(public.0.into(), pair)]);
        let source = v.bound_source.unwrap_or_else(|| "192.0.2.1".parse().unwrap());
        let verdict = receiver.receive(stamp, source, &bytes(&v.packet));
        if v.timestamp_us == 0 {
            // 1970 is not later than a barrier that was never put up.
            assert!(matches!(verdict, Verdict::Dropped(d) if d.reason == DropReason::Barrier));
        } else {
            assert!(
                matches!(&verdict, Verdict::Authentic(k) if k.request == request && k.stamp == stamp),
                "{name}: {verdict:?}"
            );
        }
    }
}

fn request(v: &Positive) -> Request {
    let items: Vec<Item> = v.items.iter().map(|item| item.parse().unwrap()).collect();
    Request {
        message_type: match v.message_type.as_str() {
            "open" => MessageType::Open,
            _ => MessageType::Close,
        },
        items: items.try_into().unwrap(),
        bound_source: v.bound_source,
        lifetime: NonZeroU32::new(v.lifetime_s),
    }
}

fn receiver(v: &Negative) -> Receiver {
    let server = private(&v.server_private);
    assert_eq!(hex(server.public().as_bytes()), v.server_public);
    let settings = Settings {
        length: PacketLength::try_from(v.plaintext_length).unwrap(),
        freshness: Freshness::try_from(Duration::from_secs(v.freshness_s)).unwrap(),
        window_capacity: v.window_capacity,
    };
    let mut receiver = Receiver::new(settings, mask_key(&server.public()));
    receiver.set_clients(v.clients.iter().map(|client| {
        let public = PublicKey::from_bytes(array(&client.client_public));
        let psk = psk(client.psk.as_ref());
        let pair = pair_secret_for_server(&server, &public, psk.as_ref()).unwrap();
        (ClientId::from(public), pair)
    }));
    if let Some(barrier) = v.barrier_us {
        receiver.set_barrier(UnixMicros(barrier));
    }
    receiver
}

fn deliver(receiver: &mut Receiver, event: &Event) -> Result<(), DropReason> {
    let packet = bytes(&event.packet);
    match receiver.receive(UnixMicros(event.now_us), event.source, &packet) {
        Verdict::Dropped(dropped) => Err(dropped.reason),
        Verdict::Authentic(knock) if event.accept => {
            receiver.commit(&knock, &ports(&event.ports)).map(drop)
        }
        Verdict::Authentic(_) => Ok(()),
        Verdict::Announced(announced) => panic!("{announced:?}"),
    }
}

#[test]
fn every_packet_that_must_be_dropped_is_dropped_for_its_reason() {
    let vectors: Vec<Negative> = read("negative.json");
    assert!(vectors.len() >= 20);
    let mut reasons = BTreeSet::new();
    let mut controls = 0;
    for v in &vectors {
        let prepared = || {
            let mut receiver = receiver(v);
            for event in &v.history {
                let delivered = deliver(&mut receiver, event);
                assert!(!event.accept || delivered == Ok(()), "{}: {delivered:?}", v.name);
            }
            receiver
        };
        let event = Event {
            now_us: v.now_us,
            source: v.source,
            packet: v.packet.clone(),
            ports: v.ports.clone(),
            accept: true,
        };
        let reason = deliver(&mut prepared(), &event).map_err(DropReason::as_str);
        assert_eq!(reason, Err(v.drop_reason.as_str()), "{}", v.name);
        for control in &v.controls {
            assert_eq!(deliver(&mut prepared(), control), Ok(()), "control of {}", v.name);
            controls += 1;
        }
        reasons.insert(v.drop_reason.clone());
    }
    let all: BTreeSet<_> = DropReason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(reasons, all, "a reason has no vector");
    assert!(controls > 0);
}

#[test]
fn keys_are_written_as_the_second_implementation_writes_them() {
    let keys: Keys = read("keys.json");
    assert!(keys.valid.len() >= 11 && keys.invalid.len() >= 26);
    for key in &keys.valid {
        let text = match key.kind.as_str() {
            "private" => private(&key.key).to_text().to_string(),
            "public" => PublicKey::from_bytes(array(&key.key)).to_string(),
            "psk" => psk(Some(&key.key)).unwrap().to_text().to_string(),
            "invitation" => secret(&key.key).to_text().to_string(),
            other => panic!("{other}"),
        };
        assert_eq!(text, key.text);
        assert!(is_key(&key.kind, &key.text), "{}", key.text);
    }
    for key in &keys.invalid {
        assert!(!is_key(&key.kind, &key.text), "{}: {}", key.why, key.text);
    }
}

fn is_key(kind: &str, text: &str) -> bool {
    match kind {
        "private" => text.parse::<PrivateKey>().is_ok(),
        "public" => text.parse::<PublicKey>().is_ok(),
        "psk" => text.parse::<PreSharedKey>().is_ok(),
        "invitation" => text.parse::<InvitationSecret>().is_ok(),
        other => panic!("{other}"),
    }
}

#[test]
fn clients_that_can_not_be_are_refused() {
    let keys: Keys = read("keys.json");
    let server = private(&keys.server_private);
    let (mut refused, mut twins) = (0, 0);
    for v in &keys.refused_clients {
        let psk = v.psk.as_ref().map(|hex| PreSharedKey::from_bytes(Zeroizing::new(array(hex))));
        let public = PublicKey::from_bytes(array(&v.client_public));
        let pair = match psk.transpose() {
            Ok(psk) => pair_secret_for_server(&server, &public, psk.as_ref()).is_ok(),
            Err(_) => false,
        };
        if v.why.contains("`clients`") {
            // The key is right: that another client has it is told by the server's configuration.
            assert!(pair, "{}", v.why);
            twins += 1;
        } else {
            assert!(!pair, "{}", v.why);
            refused += 1;
        }
    }
    assert!((refused, twins) >= (13, 1), "{refused}, {twins}");
}
