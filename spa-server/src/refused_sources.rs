//! Addresses and networks for which nothing is opened for a time, whoever knocks: an administrator
//! has said so, or a program that reads the log of a service behind the gate.
//!
//! It must not know of datagrams. The sender of one that was not accepted may be anybody, and would
//! have others refused; so nothing that comes from the network gets here.

use crate::clock::BootMicros;
use crate::replay_store::BootId;
use crate::source::Source;
use crate::state_file::{StateFile, StateFileError};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No more are refused at a time.
pub const MOST: usize = 4096;
/// The shortest time.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// The longest time: a year. Whoever is to stay away for good has no business with a key.
pub const LONGEST: Duration = Duration::from_secs(366 * 86_400);

const FILE: &str = "refused-sources";

/// Who is refused, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedSources {
    /// Those whose time is over are in it until the next [`prune`](Self::prune).
    until: BTreeMap<Source, BootMicros>,
}

/// Why somebody is not refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRefused {
    /// There is no room.
    #[error(
        "{MOST} addresses and networks are refused, and there is no room for more: refuse the network around them, or lift some; `spa-server refuse --list` shows all"
    )]
    Full,
    /// It needs no knock, so that refusing knocks would not keep it out.
    #[error("{refused} can't be refused, since {admitted} needs no knock: {why}")]
    NeedsNoKnock {
        /// Who was to be refused.
        refused: Source,
        /// Who needs no knock.
        admitted: Source,
        /// Where that stands.
        why: &'static str,
    },
}

impl RefusedSources {
    /// Refuses it until then, or until later if that was said before.
    pub fn refuse(
        &mut self,
        source: Source,
        until: BootMicros,
        now: BootMicros,
    ) -> Result<BootMicros, NotRefused> {
        self.prune(now);
        if !self.until.contains_key(&source) && self.until.len() >= MOST {
            return Err(NotRefused::Full);
        }
        let kept = self.until.entry(source).or_insert(until);
        *kept = until.max(*kept);
        Ok(*kept)
    }

    /// Refuses just this address or network no more; whether it was.
    pub fn lift(&mut self, source: Source, now: BootMicros) -> bool {
        self.until.remove(&source).is_some_and(|until| until > now)
    }

    /// Refuses none of these any more, nor who is among them or around them; says which were.
    pub fn lift_all_of(&mut self, nets: &[IpNet]) -> Vec<Source> {
        let is_one = |source: &Source| nets.iter().any(|net| Source::from(*net).overlaps(*source));
        let lifted: Vec<_> = self.until.keys().copied().filter(is_one).collect();
        for source in &lifted {
            self.until.remove(source);
        }
        lifted
    }

    /// What is refused of these addresses, or around them; the one that lasts longest.
    ///
    /// It is asked for each knock: networks lie in each other or apart, so that a few look-ups find
    /// all there can be.
    pub fn refusing(&self, source: Source, now: BootMicros) -> Option<(Source, BootMicros)> {
        if self.until.is_empty() {
            return None;
        }
        let net = source.net();
        let around = (0..net.prefix_len())
            .filter_map(|prefix| self.until.get_key_value(&Source::around(net.addr(), prefix)));
        let within = self.until.range(source..=Source::host(net.broadcast()));
        let live = around.chain(within).filter(|(_, until)| **until > now);
        live.max_by_key(|(_, until)| **until).map(|(source, until)| (*source, *until))
    }

    /// Forgets those whose time is over; whether there were any.
    pub fn prune(&mut self, now: BootMicros) -> bool {
        let before = self.until.len();
        self.until.retain(|_, until| *until > now);
        self.until.len() < before
    }

    /// Those who are refused now.
    pub fn iter(&self, now: BootMicros) -> impl Iterator<Item = (Source, BootMicros)> {
        let live = self.until.iter().filter(move |(_, until)| **until > now);
        live.map(|(source, until)| (*source, *until))
    }
}

/// Whether this may be refused where these networks are always admitted.
pub fn judge(source: Source, always_admit: &[IpNet]) -> Result<(), NotRefused> {
    let loopback =
        [Source::around(Ipv4Addr::LOCALHOST.into(), 8), Source::host(Ipv6Addr::LOCALHOST.into())];
    let of_this_host = loopback.into_iter().map(|net| (net, "it is this host itself"));
    let admitted = always_admit.iter().map(|net| (Source::from(*net), "gate.always-admit has it"));
    match of_this_host.chain(admitted).find(|(admitted, _)| admitted.overlaps(source)) {
        Some((admitted, why)) => Err(NotRefused::NeedsNoKnock { refused: source, admitted, why }),
        None => Ok(()),
    }
}

/// The file that keeps them over a restart of the daemon. After a reboot nothing is refused: the
/// clock by which it ends has begun anew.
#[derive(Debug, Clone)]
pub struct RefusedSourcesFile {
    file: StateFile,
    boot: BootId,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Record {
    boot_id: String,
    until: BTreeMap<Source, BootMicros>,
}

/// Why it is not known who was refused.
#[derive(Debug, thiserror::Error)]
pub enum RefusedSourcesError {
    /// The file can't be read.
    #[error("{} can't be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing, if there are too many.
        source: Option<serde_json::Error>,
    },
}

impl RefusedSourcesFile {
    /// The file in this state directory, as seen in this boot.
    pub fn new(state_directory: &Path, boot: BootId) -> Self {
        Self { file: StateFile::new(state_directory, FILE), boot }
    }

    /// Who is refused still.
    ///
    /// # Errors
    ///
    /// That can't be known.
    pub fn read(&self, now: BootMicros) -> Result<RefusedSources, RefusedSourcesError> {
        let path = self.file.path();
        let text = match self.file.read() {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(RefusedSources::default()),
            Err(source) => return Err(RefusedSourcesError::Unreadable { path, source }),
        };
        let record: Record = match serde_json::from_str(text.trim_end()) {
            Ok(record) => record,
            Err(error) => {
                return Err(RefusedSourcesError::Damaged { path, source: Some(error) });
            }
        };
        if record.boot_id != self.boot.to_string() {
            return Ok(RefusedSources::default());
        }
        if record.until.len() > MOST {
            return Err(RefusedSourcesError::Damaged { path, source: None });
        }
        let mut refused = RefusedSources { until: record.until };
        refused.prune(now);
        Ok(refused)
    }

    /// Keeps who is refused. Not over a power failure, after which it says nothing anyway.
    pub fn write(&self, refused: &RefusedSources) -> Result<(), StateFileError> {
        let until = refused.until.clone();
        self.file.replace_json(&Record { boot_id: self.boot.to_string(), until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::with_causes;
    use proptest::prelude::*;
    use std::fs;

    const BOOT: BootId = BootId([7; 16]);

    fn at(second: u64) -> BootMicros {
        BootMicros(second * 1_000_000)
    }

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    fn refusing(texts: &[&str]) -> RefusedSources {
        let mut refused = RefusedSources::default();
        for text in texts {
            refused.refuse(source(text), at(100), at(1)).unwrap();
        }
        refused
    }

    #[test]
    fn an_address_is_refused_for_its_time_and_nobody_else_is() {
        for (text, other) in [("192.0.2.7", "192.0.2.8"), ("2001:db8::7", "2001:db8::8")] {
            let refused = refusing(&[text]);
            assert_eq!(refused.refusing(source(text), at(99)), Some((source(text), at(100))));
            assert_eq!(refused.refusing(source(text), at(100)), None);
            assert_eq!(refused.refusing(source(other), at(99)), None);
        }
        // However it is written.
        let refused = refusing(&["::ffff:192.0.2.7"]);
        assert!(refused.refusing(source("192.0.2.7"), at(1)).is_some());
    }

    #[test]
    fn a_network_is_refused_with_all_within_and_who_would_be_admitted_along() {
        let refused = refusing(&["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]);
        for (text, by) in [
            ("192.0.2.255", Some("192.0.2.0/24")),
            ("192.0.2.128/25", Some("192.0.2.0/24")),
            ("192.0.0.0/16", Some("192.0.2.0/24")),
            ("192.0.3.0", None),
            ("2001:db8:ffff::1", Some("2001:db8::/32")),
            ("2001:db9::", None),
            ("198.51.100.0/24", Some("198.51.100.7")),
            ("198.51.100.8/29", None),
        ] {
            let found = refused.refusing(source(text), at(1)).map(|(by, _)| by);
            assert_eq!(found, by.map(source), "{text}");
        }
        assert!(refused.refusing(source("0.0.0.0/0"), at(1)).is_some());
    }

    #[test]
    fn a_longer_time_replaces_and_a_shorter_one_does_not() {
        let mut refused = refusing(&["192.0.2.7"]);
        let it = source("192.0.2.7");
        assert_eq!(refused.refuse(it, at(50), at(1)), Ok(at(100)));
        assert_eq!(refused.refuse(it, at(200), at(1)), Ok(at(200)));
        // One that was over before counts no more.
        assert_eq!(refused.refuse(it, at(210), at(205)), Ok(at(210)));
        assert_eq!(refused.iter(at(205)).count(), 1);
        assert!(refused.lift(it, at(205)) && !refused.lift(it, at(205)));
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_over_make_room() {
        let mut refused = RefusedSources::default();
        let address = |number: usize| {
            let number = u32::try_from(number).unwrap();
            Source::host(Ipv4Addr::from_bits(0x0a00_0000 + number).into())
        };
        for number in 0..MOST {
            refused.refuse(address(number), at(100), at(1)).unwrap();
        }
        assert_eq!(refused.refuse(address(MOST), at(100), at(99)), Err(NotRefused::Full));
        refused.refuse(address(0), at(150), at(99)).expect("it is one of them");
        refused.refuse(address(MOST), at(150), at(100)).expect("the others are over");
        assert_eq!(refused.iter(at(100)).count(), 2);
    }

    #[test]
    fn who_needs_no_knock_is_not_refused() {
        let always_admit = ["192.0.2.0/24".parse().unwrap(), "2001:db8::5/128".parse().unwrap()];
        for text in ["192.0.2.7", "192.0.0.0/16", "2001:db8::/64", "127.0.0.1", "::1", "::/0"] {
            let error = judge(source(text), &always_admit).unwrap_err().to_string();
            assert!(error.contains("needs no knock"), "{error}");
        }
        for text in ["192.0.3.7", "2001:db8::6", "198.51.100.0/24"] {
            judge(source(text), &always_admit).unwrap();
        }
        let mut refused = refusing(&["192.0.2.7", "192.0.0.0/16", "192.0.3.7"]);
        let lifted = refused.lift_all_of(&always_admit);
        assert_eq!(lifted, [source("192.0.0.0/16"), source("192.0.2.7")]);
        assert_eq!(refused.iter(at(1)).count(), 1);
    }

    fn any_source() -> impl Strategy<Value = Source> {
        // Few addresses, so that they meet.
        let v4 = (0..8_u32, 27..=32_u8)
            .prop_map(|(low, prefix)| Source::around(Ipv4Addr::from_bits(low).into(), prefix));
        let v6 = (0..8_u128, 123..=128_u8)
            .prop_map(|(low, prefix)| Source::around(Ipv6Addr::from_bits(low).into(), prefix));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn looking_up_finds_what_comparing_with_all_would(
            entries in prop::collection::vec((any_source(), 1..9_u64), 0..12),
            asked in any_source(),
            now in 0..9_u64,
        ) {
            let mut refused = RefusedSources::default();
            for (source, until) in &entries {
                refused.refuse(*source, at(*until), at(0)).unwrap();
            }
            let overlapping =
                entries.iter().filter(|(source, _)| source.overlaps(asked)).map(|(_, until)| until);
            let expected = overlapping.max().filter(|until| **until > now).map(|until| at(*until));
            let found = refused.refusing(asked, at(now)).map(|(_, until)| until);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn they_outlive_the_process_and_neither_their_time_nor_a_reboot() {
        let directory = tempfile::tempdir().unwrap();
        let file = RefusedSourcesFile::new(directory.path(), BOOT);
        assert_eq!(file.read(at(1)).unwrap(), RefusedSources::default());
        let refused = refusing(&["192.0.2.7", "2001:db8::/32"]);
        file.write(&refused).unwrap();
        assert_eq!(file.read(at(99)).unwrap(), refused);
        assert_eq!(file.read(at(100)).unwrap(), RefusedSources::default());
        let later = RefusedSourcesFile::new(directory.path(), BootId([8; 16]));
        assert_eq!(later.read(at(1)).unwrap(), RefusedSources::default());
    }

    #[test]
    fn as_many_as_there_may_be_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = RefusedSourcesFile::new(directory.path(), BOOT);
        let mut refused = RefusedSources::default();
        for number in 0..u128::try_from(MOST).unwrap() {
            let address = Ipv6Addr::from_bits(u128::MAX - (number << 1));
            refused
                .refuse(Source::around(address.into(), 127), BootMicros(u64::MAX), at(1))
                .unwrap();
        }
        file.write(&refused).unwrap();
        assert_eq!(file.read(at(1)).unwrap(), refused);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_told_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = RefusedSourcesFile::new(directory.path(), BOOT);
        file.write(&refusing(&["192.0.2.7"])).unwrap();
        let path = directory.path().join(FILE);
        let whole = fs::read_to_string(&path).unwrap();
        let named = whole.replace("192.0.2.7", "example.org");
        assert_ne!(named, whole);
        for text in ["", "null", "\u{0}", &whole[..whole.len() / 2], &named] {
            fs::write(&path, text).unwrap();
            let error = with_causes(&file.read(at(1)).unwrap_err());
            assert!(error.contains("refused-sources is damaged"), "{text}: {error}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = with_causes(&file.read(at(1)).unwrap_err());
        assert!(error.contains("refused-sources can't be read"), "{error}");
    }
}
