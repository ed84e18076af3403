use super::waiting::Waiting;
use super::*;
use crate::clock::{BootMicros, Step, StepWatch};
use crate::policy::{ClientRules, Policy, Prefixes, Rate};
use crate::service::Service;
use spa_proto::{
    ClientId, Freshness, Item, MaskKey, MessageType, Nonce, PacketLength, PairSecret, Receiver,
    Request, ServerKey, Settings, seal,
};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

const NOW: Now =
    Now { realtime: UnixMicros::from_secs(1_800_000_000), boottime: BootMicros(5_000_000) };
const CLIENT: ClientId = ClientId([1; 32]);

fn secret() -> PairSecret {
    PairSecret::new([1; 32], [2; 32], [3; 32])
}

fn judge() -> Judge {
    let mut receiver = Receiver::new(Settings::default(), MaskKey::new([9; 32]));
    receiver.set_clients([(CLIENT, secret())]);
    let rules = ClientRules {
        prefixes: Prefixes::default(),
        enabled: true,
        allow: ["ssh".parse().unwrap()].into(),
        max_lifetime: Duration::from_secs(60),
        default_lifetime: Duration::from_secs(30),
        sources: Vec::new(),
        not_before: None,
        expires: None,
        require_bound_source: false,
        rate: Rate::default(),
        max_sources: 16,
    };
    let ssh = ("ssh".parse().unwrap(), Service::plain(["tcp/22".parse().unwrap()]));
    let policy = Policy::new([ssh].into(), [(CLIENT, "laptop", rules)]);
    Judge::new(receiver, Arc::new(policy), Freshness::default(), NOW)
}

fn knock(nonce: u8, item: &str) -> Vec<u8> {
    knock_at(NOW.realtime, nonce, item)
}

fn knock_now(nonce: u8) -> Vec<u8> {
    knock_at(Now::realtime(), nonce, "ssh")
}

fn knock_at(stamp: UnixMicros, nonce: u8, item: &str) -> Vec<u8> {
    let request = Request {
        message_type: MessageType::Open,
        items: item.parse::<Item>().unwrap().try_into().unwrap(),
        bound_source: None,
        lifetime: None,
    };
    let mask = MaskKey::new([9; 32]);
    let length = PacketLength::default();
    seal(&secret(), &mask, &request, stamp, Nonce([nonce; 24]), length).unwrap()
}

/// Captured there at [`NOW`].
fn on(interface: u32) -> Arrival {
    Arrival { interface, at: NOW.realtime }
}

fn candidate(judged: Result<Judged, Dropped>) -> Candidate {
    match judged {
        Ok(Judged::Knock(candidate)) => candidate,
        other => panic!("{other:?}"),
    }
}

fn source() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

fn later(millis: u64) -> Now {
    let passed = Duration::from_millis(millis);
    Now {
        realtime: NOW.realtime.saturating_add(passed),
        boottime: NOW.boottime.saturating_add(passed),
    }
}

#[test]
fn a_jump_of_the_clock_is_told_although_nothing_comes() {
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    let telling: Told = Arc::new(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let mut judge = judge();
    let now = Now::read();
    let set_back = Now { realtime: now.realtime.saturating_add(Duration::from_secs(90)), ..now };
    judge.steps = StepWatch::new(set_back);
    let mut pipeline =
        pipeline(SharedJudge::telling(judge, telling), &Arc::default(), mpsc::channel(1).0);
    pipeline.settle();
    assert_eq!(told.load(Ordering::Relaxed), 1, "no more than at the beginning");
    pipeline.steps = StepWatch::new(set_back);
    pipeline.settle();
    assert_eq!(told.load(Ordering::Relaxed), 2);
    pipeline.settle();
    assert_eq!(told.load(Ordering::Relaxed), 2);
}

#[test]
fn a_twin_on_another_interface_is_a_duplicate_and_a_replay_is_a_replay() {
    let mut judge = judge();
    let packet = knock(1, "ssh");
    let candidate = candidate(judge.judge(NOW, source(), on(2), &packet));
    // Before the first one is committed, and after.
    assert_eq!(judge.judge(later(1), source(), on(3), &packet).unwrap_err(), Dropped::Duplicate);
    judge.receiver.commit(&candidate.knock, &["tcp/22".parse().unwrap()]).unwrap();
    assert_eq!(judge.judge(later(2), source(), on(3), &packet).unwrap_err(), Dropped::Duplicate);
    let replay = Dropped::Protocol(DropReason::Replay);
    assert_eq!(judge.judge(later(3), source(), on(2), &packet).unwrap_err(), replay);
    assert_eq!(judge.judge(later(500), source(), on(3), &packet).unwrap_err(), replay);
}

#[test]
fn a_refused_knock_is_noted_with_its_reason_and_noise_is_not() {
    let mut judge = judge();
    let refused = judge.judge(NOW, source(), on(2), &knock(1, "db")).unwrap_err();
    assert_eq!(refused.as_str(), "service-not-allowed");
    let noise = judge.judge(NOW, source(), on(2), &[0x5a; 216]).unwrap_err();
    assert_eq!(noise, Dropped::Protocol(DropReason::UnknownTag));
    let lines = judge.refusals.due(NOW.boottime);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].detail, "service-not-allowed (db)");
}

#[test]
fn a_clock_that_jumps_forward_puts_up_the_barrier_before_anything_opens() {
    let mut judge = judge();
    let before = candidate(judge.judge(NOW, source(), on(2), &knock(1, "ssh")));
    let port = ["tcp/22".parse().unwrap()];
    judge.receiver.commit(&before.knock, &port).unwrap();
    let jumped = Now { realtime: NOW.realtime.saturating_add(Duration::from_secs(30)), ..NOW };
    let candidate = candidate(judge.judge(jumped, source(), on(2), &knock(2, "ssh")));
    assert_eq!(judge.receiver.commit(&candidate.knock, &port), Err(DropReason::Barrier));
}

#[test]
fn a_clock_that_was_years_ahead_for_a_moment_locks_nobody_out() {
    let mut judge = judge();
    let years = Duration::from_secs(5 * 365 * 86_400);
    judge.watch_clock(Now { realtime: NOW.realtime.saturating_add(years), ..NOW });
    assert_eq!(judge.take_step(), Some(Step::Forward(years)));
    judge.watch_clock(NOW);
    assert_eq!(judge.take_step(), Some(Step::Back(years)));
    assert_eq!(judge.take_step(), None);
    assert_eq!(judge.receiver.barrier(), NOW.realtime.saturating_add(Freshness::MAX));
}

fn datagram(payload: &[u8]) -> Datagram<'_> {
    Datagram {
        source: source(),
        source_port: 4000,
        destination: source(),
        destination_port: 62201,
        interface_index: None,
        payload,
    }
}

fn pipeline(
    judge: SharedJudge,
    counters: &Arc<Counters>,
    queue: mpsc::Sender<Candidate>,
) -> Pipeline {
    let (announcements, _) = mpsc::channel(1);
    Pipeline::new(judge, Arc::clone(counters), queue, announcements, Arc::default())
}

impl Pipeline {
    /// As a capture thread hands over what it has read together.
    fn read(&mut self, together: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for payload in together {
            self.datagram(on(2), &datagram(payload.as_ref()));
        }
        self.settle();
    }
}

#[test]
fn a_knock_takes_the_short_way_if_nobody_is_before_it() {
    let (queue, mut waiting) = mpsc::channel(8);
    let mut judge = judge();
    judge.steps = StepWatch::new(Now::read());
    let mut pipeline = pipeline(SharedJudge::new(judge), &Arc::default(), queue);
    let (is_free, carried_out) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::default()));
    let carry_out = {
        let (is_free, carried_out) = (Arc::clone(&is_free), Arc::clone(&carried_out));
        move |candidate: Candidate| {
            if !is_free.load(Ordering::Relaxed) {
                return Some(candidate);
            }
            let nonces: &Mutex<Vec<u8>> = &carried_out;
            nonces.lock().unwrap().push(candidate.knock.nonce.0[0]);
            None
        }
    };
    let mut queued = || -> Vec<u8> {
        std::iter::from_fn(|| waiting.try_recv().ok())
            .map(|candidate| candidate.knock.nonce.0[0])
            .collect()
    };
    // Before the daemon has started.
    pipeline.read([knock_now(1)]);
    assert_eq!(queued(), [1]);
    pipeline.shortcut.caught_up(1);
    pipeline.shortcut.open(Box::new(carry_out));
    pipeline.read([vec![0x5a; 216], knock_now(2), vec![0x5a; 216]]);
    assert_eq!((queued(), std::mem::take(&mut *carried_out.lock().unwrap())), (vec![], vec![2]));
    pipeline.read([3, 4, 5].map(knock_now));
    assert_eq!(queued(), [3, 4, 5]);
    // They were taken from the queue, and not carried out yet.
    pipeline.shortcut.caught_up(2);
    pipeline.read([knock_now(9)]);
    assert_eq!(queued(), [9]);
    pipeline.shortcut.caught_up(2);
    is_free.store(false, Ordering::Relaxed);
    pipeline.read([knock_now(6)]);
    is_free.store(true, Ordering::Relaxed);
    pipeline.read([knock_now(7)]);
    assert_eq!(queued(), [6, 7]);
    pipeline.shortcut.caught_up(2);
    pipeline.read([knock_now(8)]);
    assert_eq!((queued(), std::mem::take(&mut *carried_out.lock().unwrap())), (vec![], vec![8]));
}

#[test]
fn whoever_changes_who_is_known_tells_it_when_nobody_is_kept_waiting() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let slot: Arc<OnceLock<SharedJudge>> = Arc::default();
    let tell: Told = {
        let (told, slot) = (Arc::clone(&told), Arc::clone(&slot));
        Arc::new(move |sieve, generation| {
            // The lock is free: this would wait for ever.
            drop(slot.get().map(SharedJudge::lock));
            told.lock().unwrap().push((generation, sieve.tag_heads().count()));
        })
    };
    let mut judge = judge();
    judge.receiver.roll(NOW.realtime);
    let first = judge.receiver.generation();
    let shared = SharedJudge::telling(judge, tell);
    assert!(slot.set(shared.clone()).is_ok());
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first, 8)]);
    // Who only looks has nothing to tell.
    assert_eq!(shared.lock().receiver.generation(), first);
    shared.lock().receiver.add_client(ClientId([2; 32]), ServerKey::Present, secret());
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first + 1, 16)]);
    {
        let mut judge = shared.lock();
        judge.receiver.remove_client(CLIENT);
        judge.receiver.remove_client(ClientId([2; 32]));
        assert!(told.lock().unwrap().is_empty());
    }
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first + 3, 0)]);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (queue, mut waiting) = mpsc::channel(1);
    let counters = Arc::new(Counters::default());
    let mut judge = judge();
    // The sink reads the real clock.
    judge.steps = StepWatch::new(Now::read());
    let shared = SharedJudge::new(judge);
    let mut pipeline = pipeline(shared, &counters, queue);
    pipeline.read((0..3).map(knock_now));
    assert!(waiting.try_recv().is_ok());
    assert_eq!(counters.dropped().get("overloaded"), Some(&2));
}

/// The authorizer has to wait for a tool of the system, say.
#[test]
fn whoever_floods_meanwhile_leaves_room_for_others() {
    let (queue, mut knocks) = mpsc::channel(2 * Waiting::SHARE);
    let mut judge = judge();
    judge.steps = StepWatch::new(Now::read());
    let shared = SharedJudge::new(judge);
    let counters = Arc::new(Counters::default());
    let mut pipeline = pipeline(shared.clone(), &counters, queue.clone());
    // What has not been accepted yet is no replay.
    let knock = knock_now(1);
    let mut flood = |count| (0..count).for_each(|_| pipeline.read([&knock]));
    flood(2 * Waiting::SHARE);
    assert_eq!(queue.capacity(), Waiting::SHARE);
    let overloaded = || counters.dropped()["overloaded"];
    assert_eq!(overloaded(), u64::try_from(Waiting::SHARE).unwrap());
    // As the authorizer does; then there is room for one more.
    let taken = knocks.try_recv().unwrap();
    shared.lock().taken(&taken.knock.client);
    flood(2);
    assert_eq!(overloaded(), u64::try_from(Waiting::SHARE).unwrap() + 1);
}

/// Somebody else has the judge for as long as this takes.
#[test]
fn noise_waits_for_nobody() {
    let (queue, _knocks) = mpsc::channel(1);
    let counters = Arc::new(Counters::default());
    let shared = SharedJudge::new(judge());
    // As it is once the daemon has started.
    shared.lock().receiver.roll(Now::realtime());
    let mut pipeline = pipeline(shared.clone(), &counters, queue);
    let held = shared.lock();
    let (done, is_done) = std::sync::mpsc::channel();
    let sifting = std::thread::spawn(move || {
        pipeline.read([[0x5a; 216].as_slice(), &[0x5a; 20]]);
        done.send(()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(()));
    drop(held);
    sifting.join().unwrap();
    let dropped = counters.dropped();
    assert_eq!((dropped["unknown-tag"], dropped["length"]), (1, 1));
}

#[test]
fn whoever_becomes_known_gets_through_with_the_next_datagram() {
    let (queue, mut waiting) = mpsc::channel(8);
    let mut judge = judge();
    judge.steps = StepWatch::new(Now::read());
    judge.receiver.set_clients([]);
    judge.receiver.roll(Now::realtime());
    let shared = SharedJudge::new(judge);
    let counters = Arc::new(Counters::default());
    let mut pipeline = pipeline(shared.clone(), &counters, queue);
    let mut knocks = |nonce: u8| {
        pipeline.read([knock_now(nonce)]);
        waiting.try_recv().is_ok()
    };
    assert!(!knocks(1));
    shared.lock().receiver.add_client(CLIENT, ServerKey::Present, secret());
    assert!(knocks(2));
    shared.lock().receiver.remove_client(CLIENT);
    assert!(!knocks(3));
    assert_eq!(counters.dropped()["unknown-tag"], 2);
    // It holds on to no former table, also when nothing comes.
    shared.lock().receiver.add_client(CLIENT, ServerKey::Present, secret());
    pipeline.settle();
    assert_eq!(pipeline.generation, shared.lock().receiver.generation());
}
