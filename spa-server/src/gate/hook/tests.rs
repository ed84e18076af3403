//! The whole back-end with a real script, which notes what it is told and fails when it is told to.

use super::ledger::{Ledger, Phase, Record};
use super::*;
use crate::clock::BootMicros;
use crate::gate::types::{Guarded, Mode, Refusal};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

const DEADLINE: Duration = Duration::from_secs(30);

/// One line at the beginning of each run and one at its end. A file `slow`, `fail-ACTION` or
/// `hang-SOURCE` beside the script has it behave so.
const SCRIPT: &str = "#!/bin/sh
here=${0%/*}
say() { echo \"$1 $SPA_ACTION $SPA_PROTOCOL/$SPA_PORT $SPA_SOURCE $SPA_SECONDS\" >>\"$here/log\"; }
say begin
[ -e \"$here/slow\" ] && sleep 0.2
[ -e \"$here/hang-$SPA_SOURCE\" ] && exec sleep 600
[ -e \"$here/fail-$SPA_ACTION\" ] && { echo \"told to fail\" >&2; exit 1; }
say end
";

struct Place {
    directory: tempfile::TempDir,
    settings: HookSettings,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("hook");
        fs::write(&script, SCRIPT).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let line = CommandLine::parse(&[script.to_string_lossy().into_owned()]).unwrap();
        let settings = HookSettings {
            open: line.clone(),
            close: line,
            refresh: false,
            time_limit: Duration::from_secs(20),
            directory: directory.path().join("state"),
        };
        Self { directory, settings }
    }

    async fn gate(&self) -> HookGate {
        let gate = HookGate::new(self.settings.clone()).unwrap();
        gate.install(&plan()).await.unwrap();
        gate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }

    fn take(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What has been begun, without the seconds.
    fn begun(&self) -> Vec<String> {
        let begun = self.log().into_iter().filter_map(|line| {
            let line = line.strip_prefix("begin ")?.to_owned();
            Some(line.rsplit_once(' ')?.0.to_owned())
        });
        begun.collect()
    }

    async fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !reached() {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn records(&self) -> usize {
        fs::read_dir(&self.settings.directory).map_or(0, Iterator::count)
    }
}

fn plan() -> Plan {
    Plan {
        mode: Mode::Guard,
        refusal: Refusal::Drop,
        guarded: vec![Guarded::plain("tcp/22".parse().unwrap())],
        knock_ports: vec![62201],
        always_admit: Vec::new(),
        max_elements: 100,
        trial_seconds: None,
    }
}

fn element(source: &str) -> Element {
    Element { source: source.parse().unwrap(), ports: "tcp/22".parse().unwrap() }
}

fn admit(source: &str, seconds: u32) -> Change {
    Change::Admit { element: element(source), seconds }
}

fn withdraw(source: &str) -> Change {
    Change::Withdraw { element: element(source) }
}

#[tokio::test]
async fn what_is_opened_is_closed_in_time() {
    let place = Place::new();
    let gate = place.gate().await;
    let began = Instant::now();
    gate.apply(&[admit("192.0.2.7", 2), admit("2001:db8::/64", 600)]).await.unwrap();
    place.until("the short one is to be closed", || place.records() == 1).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let mut begun = place.begun();
    begun.sort();
    let done = ["close tcp/22 192.0.2.7", "open tcp/22 192.0.2.7", "open tcp/22 2001:db8::/64"];
    assert_eq!(begun, done);
    assert!(place.log().contains(&"end close tcp/22 192.0.2.7 0".to_owned()));
    let live = gate.snapshot().await.unwrap();
    assert_eq!(
        live.iter().map(|live| live.element).collect::<Vec<_>>(),
        [element("2001:db8::/64")]
    );
    assert!((300..=600).contains(&live[0].seconds_left), "{live:?}");
    gate.apply(&[withdraw("2001:db8::/64"), withdraw("192.0.2.7")]).await.unwrap();
    assert_eq!(place.begun().last().unwrap(), "close tcp/22 2001:db8::/64");
    assert_eq!(gate.look(Doubt::Everything).await.unwrap(), Look::default());
}

#[tokio::test]
async fn another_time_extends_without_another_opening_unless_it_is_wanted() {
    let mut place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 60)]).await.unwrap();
    gate.apply(&[admit("192.0.2.7", 500)]).await.unwrap();
    assert_eq!(place.begun(), ["open tcp/22 192.0.2.7"]);
    assert!(gate.snapshot().await.unwrap()[0].seconds_left > 400);
    drop(gate);
    place.settings.refresh = true;
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 90)]).await.unwrap();
    assert_eq!(place.log().last().unwrap(), "end refresh tcp/22 192.0.2.7 90");
    assert!((60..=90).contains(&gate.snapshot().await.unwrap()[0].seconds_left));
    // One that fails changes nothing.
    place.put("fail-refresh");
    let error = gate.apply(&[admit("192.0.2.7", 600)]).await.unwrap_err();
    assert!(matches!(error, GateError::Hook { action: "refresh", .. }), "{error}");
    assert!((30..=90).contains(&gate.snapshot().await.unwrap()[0].seconds_left));
}

#[tokio::test]
async fn commands_of_one_element_never_overlap_and_others_do_not_wait() {
    let place = Place::new();
    let gate = place.gate().await;
    place.put("slow");
    let one = "192.0.2.7";
    let mut changes = vec![admit(one, 60), withdraw(one), admit(one, 60), withdraw(one)];
    let others: Vec<_> = (1..=6).map(|number| format!("2001:db8::{number}")).collect();
    changes.extend(others.iter().map(|source| admit(source, 60)));
    // The second batch waits for the first, and its element is closed by nobody's order.
    let once_more = [admit(one, 1)];
    let (first, second) = tokio::join!(gate.apply(&changes), gate.apply(&once_more));
    first.and(second).unwrap();
    place.until("the last one is to be closed", || place.records() == 6).await;
    let of_one: Vec<_> = place.log().into_iter().filter(|line| line.contains(one)).collect();
    let words: Vec<_> =
        of_one.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>()).collect();
    let run = |action| [["begin", action], ["end", action]];
    assert_eq!(words, ["open", "close", "open", "close", "open", "close"].map(run).concat());
    // Positive control: elements beside each other do overlap.
    let log = place.log();
    let begins = log.iter().take_while(|line| line.starts_with("begin")).count();
    assert!(begins > 1, "{log:#?}");
}

#[tokio::test]
async fn an_opening_that_fails_is_an_error_and_cleaned_up() {
    let place = Place::new();
    let gate = place.gate().await;
    place.put("fail-open");
    let error = gate.apply(&[admit("192.0.2.7", 60)]).await.unwrap_err();
    let text = crate::causes::with_causes(&error);
    assert!(text.starts_with("the hook command to open tcp/22 from 192.0.2.7 failed: "), "{text}");
    assert!(text.ends_with("(exit status: 1): told to fail"), "{text}");
    place.until("it is to be cleaned up", || place.records() == 0).await;
    assert_eq!(place.begun(), ["open tcp/22 192.0.2.7", "close tcp/22 192.0.2.7"]);
    place.take("fail-open");
    gate.apply(&[admit("192.0.2.7", 60)]).await.unwrap();
}

#[tokio::test]
async fn a_closing_that_fails_is_told_and_tried_until_it_works() {
    let place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 60), admit("192.0.2.8", 1)]).await.unwrap();
    place.put("fail-close");
    let closes = |source: &str| {
        place.begun().iter().filter(|line| **line == format!("close tcp/22 {source}")).count()
    };
    gate.apply(&[withdraw("192.0.2.7")]).await.unwrap_err();
    // Asked again, it says what it knows, and runs nothing for it.
    let error = gate.apply(&[withdraw("192.0.2.7")]).await.unwrap_err();
    assert!(matches!(error, GateError::HookCloses { .. }), "{error}");
    place.until("the other is to be over and to fail too", || closes("192.0.2.8") >= 2).await;
    // What is over by itself fails nobody.
    gate.apply(&[withdraw("192.0.2.8")]).await.unwrap();
    let told = gate.examine(&plan()).await.unwrap().warnings;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("tcp/22 from 192.0.2.7 is over, but may still be open: "), "{told:?}");
    let left: Vec<_> =
        gate.snapshot().await.unwrap().iter().map(|live| live.seconds_left).collect();
    assert_eq!(left, [0, 0]);
    place.take("fail-close");
    place.until("both are to be closed", || place.records() == 0).await;
    gate.apply(&[withdraw("192.0.2.7")]).await.unwrap();
    assert!(gate.examine(&plan()).await.unwrap().warnings.is_empty());
}

#[tokio::test]
async fn the_next_process_closes_what_is_over_and_keeps_what_is_not() {
    let place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.1", 600), admit("192.0.2.2", 600)]).await.unwrap();
    drop(gate);
    let ledger = Ledger::new(place.settings.directory.clone());
    let boot_id = BootId::read().unwrap().to_string();
    let now = BootMicros::now();
    let later = now.saturating_add(Duration::from_secs(600));
    for (source, phase, boot_id, expires) in [
        ("192.0.2.3", Phase::Open, &boot_id, now),
        ("192.0.2.4", Phase::Opening, &boot_id, later),
        ("192.0.2.5", Phase::Open, &"another".to_owned(), later),
        ("192.0.2.6", Phase::Closing, &boot_id, later),
    ] {
        let record = Record {
            element: element(source),
            target: Target::Here,
            phase,
            boot_id: boot_id.clone(),
            expires,
            running: None,
            failure: None,
        };
        ledger.write(&record).unwrap();
    }
    // One whose record is lost.
    fs::write(place.settings.directory.join("tcp-22-22-192.0.2.2"), "").unwrap();
    fs::remove_file(place.path("log")).unwrap();
    let gate = place.gate().await;
    // An installation waits for the first attempt of each.
    let mut begun = place.begun();
    begun.sort();
    assert_eq!(begun, [2, 3, 4, 5, 6].map(|last| format!("close tcp/22 192.0.2.{last}")));
    let live = gate.snapshot().await.unwrap();
    assert_eq!(live.iter().map(|live| live.element).collect::<Vec<_>>(), [element("192.0.2.1")]);
    assert!((300..=600).contains(&live[0].seconds_left), "{live:?}");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_and_holds_up_no_other_batch() {
    let mut place = Place::new();
    place.settings.time_limit = Duration::from_secs(1);
    let gate = place.gate().await;
    let sources: Vec<_> = (1..=40).map(|number| format!("192.0.2.{number}")).collect();
    for source in &sources {
        place.put(&format!("hang-{source}"));
    }
    let changes: Vec<_> = sources.iter().map(|source| admit(source, 600)).collect();
    let error = gate.apply(&changes).await.unwrap_err();
    assert!(keeper::hangs(&error), "{error}");
    let opened = place.begun().iter().filter(|line| line.starts_with("open")).count();
    assert!((1..=AT_ONCE).contains(&opened), "{opened}");
    gate.apply(&[admit("2001:db8::1", 600)]).await.unwrap();
    for source in &sources {
        place.take(&format!("hang-{source}"));
    }
    place.until("all are to be cleaned up", || place.records() == 1).await;
}

#[tokio::test]
async fn a_knock_does_not_wait_for_the_closing_of_others_that_hangs() {
    let place = Place::new();
    let gate = place.gate().await;
    let sources: Vec<_> = (1..=20).map(|number| format!("192.0.2.{number}")).collect();
    let for_seconds =
        |seconds| sources.iter().map(|source| admit(source, seconds)).collect::<Vec<_>>();
    gate.apply(&for_seconds(600)).await.unwrap();
    for source in &sources {
        place.put(&format!("hang-{source}"));
    }
    gate.apply(&for_seconds(1)).await.unwrap();
    let closing = || -> Vec<_> {
        place.begun().into_iter().filter(|line| line.starts_with("close")).collect()
    };
    let all_are_over = || sources.iter().all(|source| gate.keeper.is_over(element(source)));
    place.until("all are to be over", all_are_over).await;
    place.until("as many as can are to be closed", || closing().len() == 8).await;
    let waits = sources
        .iter()
        .find(|source| !closing().contains(&format!("close tcp/22 {source}")))
        .unwrap();
    let again = [admit(waits, 600)];
    let within = place.settings.time_limit / 2;
    tokio::time::timeout(within, gate.apply(&again)).await.unwrap().unwrap();
    // Positive control: those others still hang.
    assert_eq!((closing().len(), place.records()), (8, sources.len()));
}

#[tokio::test]
async fn where_closing_hangs_a_removal_gives_up_and_what_is_left_can_be_removed_later() {
    let mut place = Place::new();
    place.settings.time_limit = Duration::from_secs(2);
    let gate = place.gate().await;
    let sources: Vec<_> = (1..=40).map(|number| format!("192.0.2.{number}")).collect();
    let changes: Vec<_> = sources.iter().map(|source| admit(source, 600)).collect();
    gate.apply(&changes).await.unwrap();
    for source in &sources {
        place.put(&format!("hang-{source}"));
    }
    let error = gate.remove().await.unwrap_err();
    assert!(keeper::hangs(&error), "{error}");
    let closes = place.begun().iter().filter(|line| line.starts_with("close")).count();
    // Those that hung may have been tried again by now.
    assert!((1..=2 * AT_ONCE).contains(&closes), "{closes}");
    for source in &sources {
        place.take(&format!("hang-{source}"));
    }
    gate.remove().await.unwrap();
    assert!(!place.settings.directory.exists());
}

#[tokio::test]
async fn what_leads_elsewhere_now_is_closed_where_it_was_first() {
    let place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 600)]).await.unwrap();
    let mut elsewhere = plan();
    elsewhere.guarded[0].target = Target::LocalPort(std::num::NonZeroU16::new(2222).unwrap());
    gate.install(&elsewhere).await.unwrap();
    place.put("fail-close");
    let again = [admit("192.0.2.7", 600)];
    for _ in 0..2 {
        let error = gate.apply(&again).await.unwrap_err();
        assert!(matches!(error, GateError::Hook { action: "close", .. }), "{error}");
        // The next process must not take it for open.
        assert_eq!(gate.snapshot().await.unwrap()[0].seconds_left, 0);
    }
    let opens = || place.begun().iter().filter(|line| line.starts_with("open")).count();
    assert_eq!(opens(), 1);
    place.take("fail-close");
    gate.apply(&again).await.unwrap();
    assert_eq!((opens(), place.log().last().unwrap().split(' ').nth(1)), (2, Some("open")));
}

#[tokio::test]
async fn a_removal_closes_everything_or_says_that_it_has_not() {
    let place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 600), admit("192.0.2.8", 600)]).await.unwrap();
    // Another process only looks, and takes nothing away.
    let other = HookGate::new(place.settings.clone()).unwrap();
    assert_eq!(other.snapshot().await.unwrap().len(), 2);
    for error in [other.install(&plan()).await.unwrap_err(), other.remove().await.unwrap_err()] {
        assert!(matches!(error, GateError::Ledger(LedgerError::Held(_))), "{error}");
    }
    place.put("fail-close");
    assert!(gate.remove().await.is_err());
    assert!(!gate.snapshot().await.unwrap().is_empty());
    place.take("fail-close");
    gate.remove().await.unwrap();
    assert!(!place.settings.directory.exists());
    assert!(matches!(gate.snapshot().await, Err(GateError::NotInstalled)));
    assert!(matches!(gate.apply(&[admit("192.0.2.7", 1)]).await, Err(GateError::NotInstalled)));
    gate.remove().await.unwrap();
    // The other one is free to take over now.
    assert!(other.install(&plan()).await.unwrap().changed);
}

#[tokio::test]
async fn a_directory_that_was_deleted_comes_back_with_what_is_open() {
    let place = Place::new();
    let gate = place.gate().await;
    gate.apply(&[admit("192.0.2.7", 600)]).await.unwrap();
    fs::remove_dir_all(&place.settings.directory).unwrap();
    let look = gate.look(Doubt::Everything).await.unwrap();
    assert!(look.missing.len() == 1 && look.elements == 1, "{look:?}");
    assert!(gate.install(&plan()).await.unwrap().changed);
    assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, Vec::<String>::new());
    assert_eq!((gate.snapshot().await.unwrap().len(), place.records()), (1, 1));
    gate.apply(&[withdraw("192.0.2.7")]).await.unwrap();
    assert_eq!(place.begun(), ["open tcp/22 192.0.2.7", "close tcp/22 192.0.2.7"]);
}

#[tokio::test]
async fn what_hooks_can_not_do_is_said() {
    let place = Place::new();
    let gate = HookGate::new(place.settings.clone()).unwrap();
    assert!(matches!(gate.apply(&[admit("192.0.2.7", 1)]).await, Err(GateError::NotInstalled)));
    assert!(matches!(gate.look(Doubt::Everything).await, Err(GateError::NotInstalled)));
    assert!(gate.examine(&plan()).await.unwrap().changed);
    assert!(!Path::new(&place.settings.directory).exists());
    let mut limited = plan();
    limited.guarded[0].connections = Connections::One;
    assert!(matches!(gate.install(&limited).await, Err(GateError::Plan(_))));
    let mut more = plan();
    more.always_admit = vec!["192.0.2.0/24".parse().unwrap()];
    more.trial_seconds = Some(60);
    assert_eq!(gate.install(&more).await.unwrap().warnings.len(), 2);
    assert!(matches!(gate.sever(&[]).await, Err(GateError::Unable { .. })));
    fs::set_permissions(place.path("hook"), fs::Permissions::from_mode(0o777)).unwrap();
    for error in [
        gate.install(&plan()).await.unwrap_err(),
        gate.examine(&plan()).await.unwrap_err(),
        gate.apply(&[admit("192.0.2.7", 1)]).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}
