//! What one datagram costs, step by step: `make bench-micro`. Times; for instructions, run it under
//! `valgrind --tool=callgrind`.

use divan::{Bencher, black_box};
use spa_proto::{
    ClientId, Item, MaskKey, MessageType, Nonce, PacketLength, PairSecret, PortRange, Receiver,
    Request, Settings, UnixMicros, Verdict, seal,
};
use spa_server::frame::{self, LinkType};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Clients that the server knows.
const CLIENTS: [u32; 3] = [1, 1_000, 100_000];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    divan::main();
}

fn secret(client: u32) -> PairSecret {
    let mut tag = [1; 32];
    let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = &mut tag;
    let [a, b, c, d, ..] = first;
    [*a, *b, *c, *d] = client.to_be_bytes();
    PairSecret::new(tag, [2; 32], [3; 32])
}

fn mask() -> MaskKey {
    MaskKey::new([9; 32])
}

fn receiver(clients: u32) -> Receiver {
    let mut receiver = Receiver::new(Settings::default(), mask());
    let id = |client: u32| {
        let mut id = [0; 32];
        let [a, b, c, d, ..] = &mut id;
        [*a, *b, *c, *d] = client.to_be_bytes();
        ClientId(id)
    };
    receiver.set_clients((0..clients).map(|client| (id(client), secret(client))));
    receiver.roll(NOW);
    receiver
}

fn knock(number: u64) -> Result<Vec<u8>> {
    let request = Request {
        message_type: MessageType::Open,
        items: "ssh".parse::<Item>()?.try_into()?,
        bound_source: None,
        lifetime: None,
    };
    let mut nonce = [7; 24];
    for (byte, of_number) in nonce.iter_mut().zip(number.to_be_bytes()) {
        *byte = of_number;
    }
    let length = PacketLength::default();
    Ok(seal(&secret(0), &mask(), &request, NOW, Nonce(nonce), length)?)
}

/// Datagrams of the right length and random content: so many that none is in the cache for having
/// been looked at before.
fn noise() -> Result<Vec<Vec<u8>>> {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let random = SystemRandom::new();
    let mut all = vec![vec![0; PacketLength::default().packet()]; 4096];
    for datagram in &mut all {
        random.fill(datagram).map_err(|_| "no random numbers")?;
    }
    Ok(all)
}

/// Runs over and over through some inputs.
fn each<T>(
    bencher: Bencher<'_, '_>,
    inputs: Result<Vec<Vec<u8>>>,
    mut work: impl FnMut(&[u8]) -> T,
) {
    let Ok(inputs) = inputs else { return };
    let mut inputs = inputs.iter().cycle();
    bencher.bench_local(|| work(black_box(inputs.next().map_or(&[], Vec::as_slice))));
}

#[divan::bench]
fn frame_of_a_datagram(bencher: Bencher<'_, '_>) {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 244, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend([0x30, 0x39, 0xf2, 0xf9, 0, 224, 0, 0]);
    frame.extend([0x5a; 216]);
    each(bencher, Ok(vec![frame]), |frame| {
        frame::parse(LinkType::Ethernet, frame).map(|it| it.payload.len())
    });
}

#[divan::bench(args = CLIENTS, sample_size = 1000)]
fn noise_in_the_sieve(bencher: Bencher<'_, '_>, clients: u32) {
    let sieve = receiver(clients).sieve();
    each(bencher, noise(), |datagram| sieve.sift(NOW, datagram));
}

#[divan::bench]
fn right_tag_wrong_mac(bencher: Bencher<'_, '_>) {
    let mut receiver = receiver(1_000);
    let broken = knock(1).map(|mut knock| {
        if let Some(last) = knock.last_mut() {
            *last ^= 1;
        }
        vec![knock]
    });
    each(bencher, broken, |datagram| receiver.receive(NOW, SOURCE, datagram));
}

#[divan::bench]
fn verbatim_replay(bencher: Bencher<'_, '_>) {
    let mut receiver = receiver(1_000);
    let Ok(replay) = knock(1) else { return };
    if let Verdict::Authentic(knock) = receiver.receive(NOW, SOURCE, &replay) {
        let _ = receiver.commit(&knock, &[]);
    }
    each(bencher, Ok(vec![replay]), |datagram| receiver.receive(NOW, SOURCE, datagram));
}

#[divan::bench]
fn open_a_valid_knock(bencher: Bencher<'_, '_>) {
    let mut receiver = receiver(1_000);
    let valid = knock(1).map(|knock| vec![knock]);
    each(bencher, valid, |datagram| receiver.receive(NOW, SOURCE, datagram));
}

#[divan::bench]
fn seal_a_knock(bencher: Bencher<'_, '_>) {
    bencher.bench(|| knock(black_box(1)).map(|knock| knock.len()).unwrap_or_default());
}

/// Into a window that is as full as it gets.
#[divan::bench]
fn enter_the_replay_window(bencher: Bencher<'_, '_>) {
    let mut receiver = receiver(1);
    let ports: [PortRange; 0] = [];
    let Ok(first) = knock(0) else { return };
    let Verdict::Authentic(mut knock) = receiver.receive(NOW, SOURCE, &first) else { return };
    let mut number = 0u64;
    bencher.bench_local(|| {
        number = number.wrapping_add(1);
        for (byte, of_number) in knock.nonce.0.iter_mut().zip(number.to_be_bytes()) {
            *byte = of_number;
        }
        knock.stamp = NOW.saturating_add(Duration::from_micros(number));
        receiver.commit(&knock, &ports).is_ok()
    });
}

/// What the tags of the next minute cost, for all clients together.
#[divan::bench(args = CLIENTS, sample_count = 10, sample_size = 1)]
fn tags_of_the_next_minute(bencher: Bencher<'_, '_>, clients: u32) {
    let receiver = receiver(clients);
    let later = NOW.saturating_add(Duration::from_secs(60));
    bencher.bench(|| receiver.begin_roll(later).map(spa_proto::BegunRoll::compute).is_some());
}
