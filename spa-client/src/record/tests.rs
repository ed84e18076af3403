//! The record outlives what may become of its file, and no clock makes an entry live too long.

use super::*;

fn moment(wall: u64, steady: Option<u64>) -> Moment {
    Moment { unix_milliseconds: wall * 1000, steady_milliseconds: steady.map(|it| it * 1000) }
}

fn entry(item: &str, asked: Moment) -> Entry {
    Entry {
        server: "work".into(),
        key: "key".into(),
        item: item.into(),
        to: "192.0.2.1".parse().unwrap(),
        from: "192.0.2.7".parse().unwrap(),
        asked,
        watched: false,
        lifetime_seconds: 30,
        lifetime_asked: false,
        seen_open: None,
    }
}

fn left(asked: Moment, now: Moment) -> Option<u64> {
    entry("ssh", asked).left(now).map(|left| left.as_secs())
}

#[test]
fn time_passes_by_whichever_clock_says_more() {
    let asked = moment(1000, Some(50));
    assert_eq!(left(asked, moment(1010, Some(60))), Some(20));
    // Suspended for 25 s: the steady clock stood still.
    assert_eq!(left(asked, moment(1025, Some(50))), Some(5));
    assert_eq!(left(asked, moment(1031, Some(51))), None);
    // The clock on the wall was set back by 15 s, 20 s after it was asked.
    assert_eq!(left(asked, moment(1005, Some(70))), Some(10));
    assert_eq!(left(asked, moment(1005, Some(81))), None);
    // Set forward: over at once, which costs a knock.
    assert_eq!(left(asked, moment(5000, Some(51))), None);
}

#[test]
fn a_clock_that_ran_backwards_ends_an_entry() {
    let asked = moment(1000, Some(50));
    assert_eq!(left(asked, moment(999, Some(51))), None, "set back");
    assert_eq!(left(asked, moment(1010, Some(3))), None, "started anew");
    assert_eq!(left(asked, moment(1010, None)), None, "another system's file");
    assert_eq!(left(moment(1000, None), moment(1010, None)), Some(20));
}

#[test]
fn what_was_added_is_there_and_the_later_one_counts() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path().join("state"));
    assert_eq!(record.entries(), []);
    let [first, second] = ["ssh", "web"].map(|item| entry(item, Moment::now()));
    record.lock().unwrap().add(vec![first.clone(), second.clone()]);
    assert_eq!(record.entries(), [first.clone(), second.clone()]);
    let mut later = Entry { lifetime_seconds: 60, ..first.clone() };
    record.lock().unwrap().add(vec![later.clone()]);
    assert_eq!(record.entries(), [second.clone(), later.clone()]);
    // What nobody saw open may have been refused. What was open is not shortened.
    record.lock().unwrap().add(vec![first.clone()]);
    assert_eq!(record.entries(), [second.clone(), first.clone()]);
    later.seen_open = Some(later.asked);
    record.lock().unwrap().add(vec![later.clone()]);
    record.lock().unwrap().add(vec![first.clone()]);
    let longer = Entry { lifetime_seconds: 60, ..first.clone() };
    assert_eq!(record.entries(), [second.clone(), longer]);
    // What was open is so no longer: its time is none to go on.
    record.lock().unwrap().add(vec![later]);
    record.lock().unwrap().add_anew(vec![first.clone()]);
    assert_eq!(record.entries(), [second, first]);
    record.lock().unwrap().change(Vec::clear);
    assert_eq!(record.entries(), []);
}

#[test]
fn a_damaged_record_is_as_none_and_mended_by_the_next_entry() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path());
    let ssh = entry("ssh", Moment::now());
    let all = [ssh.clone()];
    for damage in ["", "{", "[{\"server\": 1}]", "\0\0\0\0", "null"] {
        record.lock().unwrap().add(all.to_vec());
        assert_eq!(record.entries(), all, "the control");
        fs::write(record.file(), damage).unwrap();
        assert_eq!(record.entries(), [], "{damage:?}");
    }
    fs::remove_file(record.file()).unwrap();
    fs::create_dir(record.file()).unwrap();
    assert_eq!(record.entries(), []);
    record.lock().unwrap().add(vec![ssh]);
}

#[test]
fn who_keeps_the_lock_keeps_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path());
    let held = record.lock().unwrap();
    assert!(record.lock().is_none(), "it waits for a while, and goes on");
    drop(held);
    assert!(record.lock().is_some());
    // Nor does a place that can't be written.
    fs::write(directory.path().join("file"), "").unwrap();
    assert!(Record::new(directory.path().join("file")).lock().is_none());
}

#[cfg(unix)]
#[test]
fn the_record_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path().join("state"));
    record.lock().unwrap().add(vec![entry("ssh", Moment::now())]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&record.directory), mode(&record.file())), (0o700, 0o600));
}

#[test]
fn what_somebody_reads_without_the_lock_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path());
    let all = ["ssh", "web", "mail", "dns"].map(|item| entry(item, Moment::now()));
    let [first, second, third, fourth] = all.clone();
    record.lock().unwrap().add(vec![first.clone()]);
    let opened = || File::open(record.file()).unwrap();
    let (slow, heedless) = (opened(), opened());
    slow.lock_shared().unwrap();
    record.lock().unwrap().add(vec![second.clone()]);
    record.lock().unwrap().add(vec![third.clone()]);
    assert_eq!(read(slow), Some(vec![first.clone()]));
    assert_eq!(read(heedless), Some(vec![first.clone()]), "the same file");
    // The control: where nobody reads, it is.
    let gone = opened();
    record.lock().unwrap().add(vec![fourth]);
    record.lock().unwrap().change(|entries| entries.truncate(1));
    if cfg!(target_os = "linux") {
        assert_eq!(read(gone), Some(vec![first.clone()]), "the later one");
    }
    assert_eq!(record.entries(), [first]);
}

#[test]
fn whoever_reads_without_the_lock_sees_all_or_nothing_of_a_change() {
    const CHANGES: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path());
    // Of one length, so that a mixture would be read without an error.
    let [one, other] = ["a", "b"].map(|item| {
        let entry = entry(&item.repeat(30), Moment::now());
        let at = |to: u8| Entry { to: [192, 0, 2, to].into(), ..entry.clone() };
        (0..40).map(at).collect::<Vec<_>>()
    });
    record.lock().unwrap().change(|entries| entries.clone_from(&one));
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for entry in [&other, &one].into_iter().cycle().take(CHANGES) {
                record.lock().unwrap().change(|entries| entries.clone_from(entry));
            }
        });
        while !writing.is_finished() {
            let entries = record.entries();
            assert!(entries == one || entries == other, "{entries:?}");
        }
    });
    assert_eq!(record.entries(), one);
}

#[cfg(unix)]
#[test]
fn the_record_is_written_into_no_file_but_its_own() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let directory = tempfile::tempdir().unwrap();
    let record = Record::new(directory.path());
    let other = directory.path().join("other");
    let open_for_all = || fs::Permissions::from_mode(0o644);
    let add = |name: &str| {
        let all = vec![entry("ssh", Moment::now())];
        record.lock().unwrap().change(|entries| entries.clone_from(&all));
        assert_eq!(record.entries(), all, "{name}");
        let found = fs::symlink_metadata(record.file()).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600, "{name}");
        let _ = fs::remove_file(record.spare());
    };
    fs::write(&other, "mine").unwrap();
    symlink(&other, record.spare()).unwrap();
    add("a symbolic link");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&other, record.spare()).unwrap();
    add("another name of a file");
    fs::write(record.spare(), "").unwrap();
    fs::set_permissions(record.spare(), open_for_all()).unwrap();
    add("one that others can read");
    assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
}
