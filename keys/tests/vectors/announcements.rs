//! Announcements of keys: every value on the way to a packet. Those that a server refuses are run
//! by what `spa-server` judges with.

use super::{array, bytes, expand, hex, private, psk, read, secret};
use serde::Deserialize;
use spa_keys::{
    AnnouncementSecret, Announcing, mask_key, open_announcement, pair_secret_for_client,
    pair_secret_for_server,
};
use spa_proto::{
    AnnouncementKeys, AnnouncementKind, ClientId, Epoch, Item, MaskKey, MessageType, NewKey, Nonce,
    PacketLength, PairSecret, Receiver, Request, Sender, ServerKey, Settings, Tag, UnixMicros,
    Verdict, masked, seal, seal_announcement,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Deserialize)]
struct File {
    positive: Vec<Positive>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Positive {
    name: String,
    message_type: String,
    server_private: String,
    server_public: String,
    invitation_secret: Option<String>,
    client_private: Option<String>,
    client_public: Option<String>,
    old_psk: Option<String>,
    ephemeral_private: String,
    new_private: String,
    nonce: String,
    timestamp_us: u64,
    bound_source: Option<IpAddr>,
    plaintext_length: u16,
    shared: Option<String>,
    ikm: String,
    hkdf_output: String,
    k_tag: String,
    k_enc: String,
    k_mac: String,
    i_id: Option<String>,
    x: String,
    derived_ephemeral: String,
    ephemeral_public: String,
    new_public: String,
    es: String,
    ns: String,
    k_new: String,
    k_proof: String,
    psk: String,
    sealed_key: String,
    proof: String,
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
    pair_hkdf_output: String,
}

/// What the two kinds of announcement have each for itself.
struct Sealing {
    kind: AnnouncementKind,
    sender: Sender,
    of_client: AnnouncementSecret,
    of_server: AnnouncementSecret,
    pair: PairSecret,
}

/// The three keys of a packet, as they stand in the output of a derivation.
fn pair_of(output: &[u8]) -> PairSecret {
    let key = |at: usize| output[at..at + 32].try_into().unwrap();
    PairSecret::new(key(0), key(32), key(64))
}

/// Checks what stands before the announcement: 9.1 or 3.2, and `X`.
fn sealing(v: &Positive) -> Sealing {
    let name = &v.name;
    let server = private(&v.server_private);
    let s = server.public();
    if let Some(invitation) = &v.invitation_secret {
        assert_eq!((v.message_type.as_str(), &v.ikm, &v.x), ("enrolment", invitation, invitation));
        let nothing = [&v.shared, &v.client_private, &v.client_public, &v.old_psk];
        assert!(nothing.iter().all(|field| field.is_none()), "{name}");
        let output =
            expand(&bytes(invitation), &[b"invitation".as_slice(), s.as_bytes()].concat(), 128);
        assert_eq!(hex(&output), v.hkdf_output, "{name}");
        let keys = secret(invitation).keys(&s);
        assert_eq!(Some(hex(&keys.id.0)), v.i_id, "{name}");
        assert_eq!(keys.id.0, output[96..], "{name}");
        return Sealing {
            kind: AnnouncementKind::Enrolment,
            sender: Sender::Invitation(keys.id),
            of_client: AnnouncementSecret::of_invitation(&secret(invitation)),
            of_server: AnnouncementSecret::of_invitation(&secret(invitation)),
            pair: keys.pair,
        };
    }
    assert_eq!(v.message_type, "rotation", "{name}");
    assert_eq!(v.i_id, None, "{name}");
    let client = private(v.client_private.as_ref().unwrap());
    let c = client.public();
    assert_eq!(Some(hex(c.as_bytes())), v.client_public, "{name}");
    let shared = x25519_dalek::x25519(array(v.client_private.as_ref().unwrap()), *s.as_bytes());
    assert_eq!(Some(hex(&shared)), v.shared, "{name}");
    let old = psk(v.old_psk.as_ref());
    let old_bytes = v.old_psk.as_ref().map_or([0; 32], |hex| array(hex));
    let ikm = [&shared[..], &[u8::from(old.is_some())], &old_bytes].concat();
    assert_eq!(hex(&ikm), v.ikm, "{name}");
    let both = [c.as_bytes(), s.as_bytes()].map(<[u8; 32]>::as_slice).concat();
    let output = expand(&ikm, &[b"client-to-server".as_slice(), &both].concat(), 96);
    assert_eq!(hex(&output), v.hkdf_output, "{name}");
    let x = expand(&ikm, &[b"rotation".as_slice(), &both].concat(), 32);
    assert_eq!(hex(&x), v.x, "{name}");
    Sealing {
        kind: AnnouncementKind::Rotation,
        sender: Sender::Client(c.into()),
        of_client: AnnouncementSecret::of_client(&client, &s, old.as_ref()).unwrap(),
        of_server: AnnouncementSecret::of_server(&server, &c, old.as_ref()).unwrap(),
        pair: pair_secret_for_client(&client, &s, old.as_ref()).unwrap(),
    }
}

#[test]
fn every_value_on_the_way_to_an_announcement_is_that_of_the_second_implementation() {
    let file: File = read("announcements.json");
    assert!(file.positive.len() >= 33, "{}", file.positive.len());
    let names: BTreeSet<_> = file.positive.iter().map(|v| &v.name).collect();
    assert_eq!(names.len(), file.positive.len());
    for v in &file.positive {
        check(v);
    }
}

fn check(v: &Positive) {
    let name = &v.name;
    let server = private(&v.server_private);
    let s = server.public();
    assert_eq!(hex(s.as_bytes()), v.server_public, "{name}");
    let Sealing { kind, sender, of_client, of_server, pair } = sealing(v);
    assert_eq!([&*v.k_tag, &v.k_enc, &v.k_mac].concat(), v.hkdf_output[..192], "{name}");
    let by_hand = pair_of(&bytes(&v.hkdf_output));

    // 9.2.
    let (new, ephemeral) = (private(&v.new_private), private(&v.ephemeral_private));
    let (n, e) = (new.public(), ephemeral.public());
    assert_eq!(hex(n.as_bytes()), v.new_public, "{name}");
    assert_eq!(hex(e.as_bytes()), v.ephemeral_public, "{name}");
    let ikm = bytes(&[&*v.new_private, &v.x].concat());
    let derived = expand(&ikm, &[b"ephemeral".as_slice(), s.as_bytes()].concat(), 32);
    assert_eq!(hex(&derived), v.derived_ephemeral, "{name}");
    let es = x25519_dalek::x25519(array(&v.ephemeral_private), *s.as_bytes());
    let ns = x25519_dalek::x25519(array(&v.new_private), *s.as_bytes());
    assert_eq!((hex(&es), hex(&ns)), (v.es.clone(), v.ns.clone()), "{name}");
    let label = v.message_type.as_bytes();
    let info = [label, b" key", e.as_bytes(), s.as_bytes()].concat();
    let k_new = expand(&bytes(&[&*v.x, &v.es].concat()), &info, 32);
    assert_eq!(hex(&k_new), v.k_new, "{name}");
    let info = [label, b" proof", e.as_bytes(), n.as_bytes(), s.as_bytes()].concat();
    let output = expand(&bytes(&[&*v.x, &v.es, &v.ns].concat()), &info, 64);
    assert_eq!(hex(&output), [&*v.k_proof, &v.psk].concat(), "{name}");
    let announcing = Announcing::with_ephemeral(&of_client, &new, &s, &ephemeral).unwrap();
    let new_psk = psk(Some(&v.psk)).unwrap();
    assert!(announcing.pre_shared_key().is(&new_psk), "{name}");
    let by_itself = Announcing::new(&of_client, &new, &s).unwrap();
    let derived = private(&v.derived_ephemeral).public();
    assert_eq!(by_itself.message(None).ephemeral, *derived.as_bytes(), "{name}");

    // Section 4, and 9.3.
    let k_mask = expand(s.as_bytes(), b"tag-mask", 32);
    assert_eq!(hex(&k_mask), v.k_mask, "{name}");
    let mask = MaskKey::new(k_mask.try_into().unwrap());
    let (stamp, nonce) = (UnixMicros(v.timestamp_us), Nonce(array(&v.nonce)));
    assert_eq!(Epoch::of(stamp), Epoch(v.epoch), "{name}");
    let tag = Tag::of(&by_hand, Epoch(v.epoch));
    assert_eq!(hex(&tag.0), v.tag, "{name}");
    assert_eq!(hex(&masked(&mask, &nonce, Tag([0; 16])).0), v.mask, "{name}");
    assert_eq!(hex(&masked(&mask, &nonce, tag).0), v.masked_tag, "{name}");
    let length = PacketLength::try_from(v.plaintext_length).unwrap();
    let parts = [&v.masked_tag, &v.nonce, &v.ciphertext, &v.aead_tag, &v.mac];
    assert_eq!(parts.map(String::as_str).concat(), v.packet, "{name}");
    let head = format!("01{:02x}{:016x}", if v.i_id.is_some() { 3 } else { 4 }, v.timestamp_us);
    let body = [&*v.ephemeral_public, &v.sealed_key, &v.proof].concat();
    assert!(v.plaintext.starts_with(&head), "{name}");
    assert_eq!(v.plaintext[52..244], body, "{name}");
    assert_eq!(v.plaintext[244..], "0".repeat(2 * length.plaintext() - 244), "{name}");
    let keys = AnnouncementKeys::new(array(&v.k_new), array(&v.k_proof));
    let message = NewKey {
        kind,
        ephemeral: *e.as_bytes(),
        key: *n.as_bytes(),
        keys: &keys,
        bound_source: v.bound_source,
    };
    for (pair, message) in [(&by_hand, message), (&pair, announcing.message(v.bound_source))] {
        let packet = seal_announcement(pair, &mask, &message, stamp, nonce, length).unwrap();
        assert_eq!(hex(&packet), v.packet, "{name}");
    }

    // The server reads from the packet what went into it.
    let mut receiver = Receiver::new(Settings { length, ..Settings::default() }, mask_key(&s));
    receiver.set_senders(ServerKey::Present, mask_key(&s), [(sender, pair)]);
    let source = v.bound_source.unwrap_or_else(|| "192.0.2.1".parse().unwrap());
    let Verdict::Announced(read) = receiver.receive(stamp, source, &bytes(&v.packet)) else {
        panic!("{name}");
    };
    assert_eq!((read.sender, read.stamp, read.nonce), (sender, stamp, nonce), "{name}");
    let announcement = &read.announcement;
    assert_eq!((announcement.kind(), announcement.ephemeral()), (kind, *e.as_bytes()), "{name}");
    assert_eq!(announcement.open_key(&array(&v.k_new)), Some(*n.as_bytes()), "{name}");
    assert!(announcement.proof_holds(&array(&v.k_proof)), "{name}");
    let opened = open_announcement(&of_server, &server, announcement).unwrap();
    assert_eq!(opened.key, n, "{name}");
    assert!(opened.pre_shared.is(&new_psk), "{name}");
    assert!(receiver.commit_announced(&read).is_ok(), "{name}");

    // And the new key knocks.
    let request = Request {
        message_type: MessageType::Open,
        items: vec!["ssh".parse::<Item>().unwrap()].try_into().unwrap(),
        bound_source: None,
        lifetime: None,
    };
    let knocks = [
        pair_of(&bytes(&v.pair_hkdf_output)),
        pair_secret_for_client(&new, &s, Some(announcing.pre_shared_key())).unwrap(),
        pair_secret_for_server(&server, &opened.key, Some(&opened.pre_shared)).unwrap(),
    ]
    .map(|pair| seal(&pair, &mask, &request, stamp, nonce, length).unwrap());
    assert!(knocks.iter().all(|knock| *knock == knocks[0]), "{name}");
    let pair = pair_secret_for_server(&server, &opened.key, Some(&opened.pre_shared)).unwrap();
    receiver.add_client(ClientId::from(n), ServerKey::Present, pair);
    let verdict = receiver.receive(stamp, source, &knocks[0]);
    assert!(matches!(&verdict, Verdict::Authentic(knock) if knock.client == n.into()), "{name}");
}
