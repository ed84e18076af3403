//! The vectors of `tests/vectors/announcements.json` that must be refused, by what the daemon
//! judges with.

use super::*;
use crate::enrolment::Invited;
use serde::Deserialize;
use spa_keys::{InvitationSecret, PrivateKey};
use spa_proto::{DropReason, Freshness, PacketLength, PortRange, Receiver, Settings, Verdict};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tempfile::TempDir;
use zeroize::Zeroizing;

/// Since when the records of enrolments are whole.
const SINCE: UnixMicros = UnixMicros::from_secs(1);

#[derive(Deserialize)]
struct File {
    negative: Vec<Negative>,
}

#[derive(Deserialize)]
struct Negative {
    name: String,
    server_private: String,
    previous_private: Option<String>,
    clients: Vec<Client>,
    invitations: Vec<Invitation>,
    freshness_s: u64,
    plaintext_length: u16,
    window_capacity: usize,
    barrier_us: Option<u64>,
    history: Vec<Event>,
    #[serde(flatten)]
    event: Event,
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
struct Invitation {
    secret: String,
    expiry_s: u64,
    void: bool,
}

#[derive(Deserialize)]
struct Event {
    now_us: u64,
    source: IpAddr,
    packet: String,
    ports: Vec<String>,
    /// Whether the server is to accept it, or only to judge it.
    #[serde(default = "yes")]
    accept: bool,
}

const fn yes() -> bool {
    true
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn array(hex: &str) -> [u8; 32] {
    bytes(hex).try_into().unwrap()
}

fn private(hex: &str) -> Arc<PrivateKey> {
    Arc::new(PrivateKey::from_bytes(Zeroizing::new(array(hex))))
}

/// A server as a vector describes it.
struct Scene {
    keys: Keys,
    receiver: Receiver,
    _directory: TempDir,
}

impl Scene {
    fn new(v: &Negative) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EnrolmentStore::open(directory.path(), SINCE).unwrap().0;
        let since = store.enrolments().since;
        let never = UnixMicros(u64::MAX);
        let server = ServerKeys {
            present: private(&v.server_private),
            previous: v.previous_private.as_ref().map(|hex| (private(hex), never)),
        };
        let mut roster = Roster::default();
        let mut senders = [(ServerKey::Present, Vec::new()), (ServerKey::Previous, Vec::new())];
        for client in &v.clients {
            let key = PublicKey::from_bytes(array(&client.client_public));
            let pre_shared = client
                .psk
                .as_ref()
                .map(|hex| Arc::new(PreSharedKey::from_bytes(Zeroizing::new(array(hex))).unwrap()));
            let pairs = server.pair_secrets(&key, pre_shared.as_deref()).unwrap();
            for (which, senders) in &mut senders {
                let pair = pairs.get(*which).cloned();
                senders.extend(pair.map(|pair| (Sender::Client(key.into()), pair)));
            }
            let introduction = Introduction::Key(key);
            roster.insert(key.into(), Member { introduction, pre_shared, is_pending: false });
        }
        for invitation in &v.invitations {
            let secret = InvitationSecret::from_bytes(Zeroizing::new(array(&invitation.secret)));
            let secret = Arc::new(secret.unwrap());
            for (which, senders) in &mut senders {
                let Some(private) = server.private(*which) else { continue };
                let derived = secret.keys(&private.public());
                senders.push((Sender::Invitation(derived.id), derived.pair));
                let invited = Invited {
                    introduction: Introduction::Invitation(secret.fingerprint()),
                    name: "invited".into(),
                    secret: Arc::clone(&secret),
                    issued: if invitation.void { UnixMicros(0) } else { since },
                    expires: UnixMicros::from_secs(invitation.expiry_s),
                };
                roster.invitations.insert(derived.id, invited);
            }
        }
        let settings = Settings {
            length: PacketLength::try_from(v.plaintext_length).unwrap(),
            freshness: Freshness::try_from(Duration::from_secs(v.freshness_s)).unwrap(),
            window_capacity: v.window_capacity,
        };
        let mask = spa_keys::mask_key(&server.present.public());
        let mut receiver = Receiver::new(settings, mask);
        for (which, mask) in server.masks() {
            let senders = senders.iter_mut().find(|(one, _)| *one == which).unwrap();
            receiver.set_senders(which, mask, senders.1.drain(..));
        }
        receiver.set_barrier(UnixMicros(v.barrier_us.unwrap_or_default()));
        Self { keys: Keys { server, roster, store }, receiver, _directory: directory }
    }

    fn deliver(&mut self, event: &Event) -> Result<(), String> {
        let dropped = |reason: DropReason| reason.as_str().to_owned();
        let now = UnixMicros(event.now_us);
        match self.receiver.receive(now, event.source, &bytes(&event.packet)) {
            Verdict::Dropped(why) => return Err(dropped(why.reason)),
            Verdict::Authentic(knock) if event.accept => {
                let ports: Vec<PortRange> =
                    event.ports.iter().map(|text| text.parse().unwrap()).collect();
                self.receiver.commit(&knock, &ports).map_err(dropped)?;
                self.replace(knock.client, now);
            }
            Verdict::Announced(announced) => {
                let proved =
                    self.keys.judge(&announced, now).map_err(|why| why.as_str().to_owned())?;
                if event.accept {
                    self.receiver.commit_announced(&announced).map_err(dropped)?;
                    self.take_in(proved, announced.sender, now);
                }
            }
            Verdict::Authentic(_) => {}
        }
        Ok(())
    }

    /// What a key that was announced does, as in the daemon.
    fn take_in(&mut self, proved: Proved, sender: Sender, at: UnixMicros) {
        let Proved { introduction, key, pre_shared, effect } = proved;
        if effect == Effect::Known {
            return;
        }
        for which in [ServerKey::Present, ServerKey::Previous] {
            let pairs = self.keys.server.pair_secrets(&key, Some(&pre_shared)).unwrap();
            if let Some(pair) = pairs.get(which) {
                self.receiver.add_client(key.into(), which, pair.clone());
            }
        }
        if let Sender::Client(of) = sender {
            self.receiver.add_kin(key.into(), of);
        }
        let is_pending = matches!(sender, Sender::Client(_));
        let member = Member {
            introduction: introduction.clone(),
            pre_shared: Some(Arc::clone(&pre_shared)),
            is_pending,
        };
        self.keys.roster.insert(key.into(), member);
        let record = if is_pending {
            Record::Announced { introduction, key, pre_shared, at }
        } else {
            Record::Enrolled { introduction, key, pre_shared, at }
        };
        self.keys.store.append(&record).unwrap();
    }

    /// What the first knock under a pending key does, as in the daemon.
    fn replace(&mut self, id: ClientId, at: UnixMicros) {
        let roster = &mut self.keys.roster;
        let Some(member) = roster.member(&id).filter(|member| member.is_pending) else { return };
        let introduction = member.introduction.clone();
        roster.insert(id, Member { is_pending: false, ..member });
        for old in roster.keys_of(&introduction).into_iter().filter(|old| *old != id) {
            roster.remove(&old);
            self.receiver.remove_client(old);
        }
        let record = Record::Replaced { introduction, key: id.into(), at };
        self.keys.store.append(&record).unwrap();
    }
}

#[test]
fn every_announcement_that_must_be_refused_is_refused_for_its_reason() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/announcements.json");
    let file: File = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut reasons = BTreeSet::new();
    let mut wrong = Vec::new();
    for v in &file.negative {
        let prepared = || {
            let mut scene = Scene::new(v);
            for (at, event) in v.history.iter().enumerate() {
                let delivered = scene.deliver(event);
                assert_eq!(event.accept, delivered.is_ok(), "{} {at}: {delivered:?}", v.name);
            }
            scene
        };
        let reason = prepared().deliver(&v.event);
        if reason.as_ref().err() != Some(&v.drop_reason) {
            wrong.push(format!("{}: {} is wanted, not {reason:?}", v.name, v.drop_reason));
        }
        assert!(!v.controls.is_empty(), "{}", v.name);
        for (at, control) in v.controls.iter().enumerate() {
            if let Err(reason) = prepared().deliver(control) {
                wrong.push(format!("control {at} of {}: {reason}", v.name));
            }
        }
        reasons.insert(v.drop_reason.as_str());
    }
    assert_eq!(wrong, Vec::<String>::new(), "of {} vectors", file.negative.len());
    assert!(file.negative.len() >= 200);
    let all = DropReason::ALL.iter().map(|reason| reason.as_str());
    let all: BTreeSet<_> = all.chain(Rejection::ALL.iter().copied()).collect();
    assert_eq!(reasons, all, "a reason has no vector");
}
