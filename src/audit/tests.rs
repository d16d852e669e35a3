//! The log as a whole: chaining, tampering, crashes, rotation, sinks that fail.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;

use super::sink::Opened;
use super::sink::Output;
use super::sink::Tail;
use super::*;

fn record(subject: &str) -> Record {
    Record {
        at: timestamp(std::time::UNIX_EPOCH),
        subject: Some(subject.to_owned()),
        outcome: Some("answered"),
        ..Record::default()
    }
}

fn open(path: &Path) -> Arc<Audit> {
    Audit::open(&Config { sink: Sink::File(path.to_owned()), ..Config::default() }).unwrap()
}

fn write(path: &Path, subjects: &[&str]) {
    let audit = open(path);
    subjects.iter().for_each(|subject| audit.record(record(subject)));
    assert!(audit.flush());
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

fn check(lines: &[String]) -> Result<Summary, Broken> {
    check_with(lines, &Expect::default())
}

fn check_with(lines: &[String], expect: &Expect) -> Result<Summary, Broken> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    verify_reader(text.as_bytes(), expect)
}

#[track_caller]
fn broken(lines: &[String], line: u64, problem: Problem) {
    match check(lines) {
        Err(Broken::Line { line: at, problem: found }) => assert_eq!((at, found), (line, problem)),
        other => panic!("expected {problem:?} on line {line}, got {other:?}"),
    }
}

fn five() -> (tempfile::TempDir, PathBuf, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    write(&path, &["a", "b", "c", "d", "e"]);
    let lines = lines(&path);
    (dir, path, lines)
}

#[test]
fn records_are_chained_and_the_file_is_private() {
    let (_dir, path, lines) = five();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(lines.len(), 5);
    for pair in lines.windows(2) {
        assert_eq!(json(&pair[1])["prev"], json(&pair[0])["hash"]);
    }
    let summary = verify(&path, &Expect::default()).unwrap();
    assert_eq!((summary.records, summary.first, summary.last, summary.lost, summary.recovered), (5, 1, 5, 0, 0));
    assert_eq!(summary.last_hash, json(&lines[4])["hash"]);
    assert_eq!(summary.first_at.as_deref(), Some("1970-01-01T00:00:00.000000Z"));
}

#[test]
fn a_second_run_continues_the_chain() {
    let (_dir, path, _) = five();
    write(&path, &["f"]);
    assert_eq!(verify(&path, &Expect::default()).unwrap().last, 6);
    assert_eq!(json(&lines(&path)[5])["subject"], "f");
}

#[test]
fn the_status_tells_the_head_that_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = open(&path);
    audit.record(record("a"));
    audit.event("reloaded", &[("mode", "full")]);
    assert!(audit.flush());
    let status = audit.status();
    assert_eq!((status.seq, status.written, status.dropped, status.healthy), (2, 2, 0, true));
    let last = json(&lines(&path)[1]);
    assert_eq!(last["hash"], status.hash_hex());
    assert_eq!((&last["kind"], &last["mode"]), (&"reloaded".into(), &"full".into()));
}

#[test]
fn a_modified_record_is_found() {
    let (_dir, _, mut lines) = five();
    lines[2] = lines[2].replace("\"subject\":\"c\"", "\"subject\":\"x\"");
    broken(&lines, 3, Problem::Changed);
}

#[test]
fn a_record_that_was_modified_and_hashed_anew_is_found() {
    let (_dir, _, mut lines) = five();
    let mut head =
        chain::Head { seq: 2, hash: chain::unhex(json(&lines[1])["hash"].as_str().unwrap().as_bytes()).unwrap() };
    let mut forged = Vec::new();
    head.seal(b"\"kind\":\"request\",\"subject\":\"x\"", &mut forged);
    lines[2] = String::from_utf8(forged).unwrap().trim_end().to_owned();
    broken(&lines, 4, Problem::Unlinked);
}

#[test]
fn deleted_records_are_found() {
    let (_dir, _, mut lines) = five();
    lines.drain(1..3);
    broken(&lines, 2, Problem::Missing { from: 2, to: 3 });
}

#[test]
fn reordered_records_are_found() {
    let (_dir, _, mut lines) = five();
    lines.swap(2, 3);
    broken(&lines, 3, Problem::Missing { from: 3, to: 3 });
    lines.swap(2, 3);
    let first = lines.remove(0);
    lines.push(first);
    broken(&lines, 1, Problem::HeadMissing { seq: 2 });
}

#[test]
fn inserted_and_doubled_records_are_found() {
    let (_dir, _, original) = five();
    let mut lines = original.clone();
    lines.insert(3, original[1].clone());
    broken(&lines, 4, Problem::OutOfOrder { seq: 2, expected: 4 });
    let mut lines = original.clone();
    lines.insert(3, original[2].clone());
    broken(&lines, 4, Problem::OutOfOrder { seq: 3, expected: 4 });
    let mut lines = original;
    lines.insert(3, "{\"free\":\"text\"}".to_owned());
    broken(&lines, 4, Problem::NotARecord);
    lines[3] = String::new();
    broken(&lines, 4, Problem::NotARecord);
}

#[test]
fn a_missing_head_is_found() {
    let (_dir, _, mut lines) = five();
    lines.remove(0);
    broken(&lines, 1, Problem::HeadMissing { seq: 2 });
}

#[test]
fn a_cut_end_is_found_only_by_who_noted_the_head() {
    let (_dir, _, lines) = five();
    let head = json(&lines[4])["hash"].as_str().unwrap().to_owned();
    let earlier = json(&lines[2])["hash"].as_str().unwrap().to_owned();
    let cut = &lines[..4];
    assert_eq!(check(cut).unwrap().last, 4);
    let expect = Expect { head: Some(head), ..Expect::default() };
    assert!(check_with(&lines, &expect).is_ok());
    assert!(matches!(check_with(cut, &expect), Err(Broken::HeadNotFound { .. })));
    assert!(check_with(cut, &Expect { head: Some(earlier), ..Expect::default() }).is_ok());
    let expect = Expect { seq: Some(5), ..Expect::default() };
    assert!(check_with(&lines, &expect).is_ok());
    assert!(matches!(check_with(cut, &expect), Err(Broken::TooShort { last: 4, expected: 5 })));
    assert!(matches!(check_with(&[], &expect), Err(Broken::TooShort { last: 0, expected: 5 })));
}

#[test]
fn a_line_torn_by_a_crash_is_kept_and_vouched_for() {
    let (_dir, path, original) = five();
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() - 30]).unwrap();
    assert!(matches!(verify(&path, &Expect::default()), Err(Broken::Line { line: 5, problem: Problem::Torn })));
    write(&path, &["f"]);
    let after = lines(&path);
    assert_eq!(after[..4], original[..4]);
    assert_eq!(after[4].as_bytes(), &original[4].as_bytes()[..original[4].len() - 29]);
    assert_eq!((&json(&after[5])["kind"], json(&after[5])["seq"].as_u64()), (&"recovered".into(), Some(5)));
    let summary = verify(&path, &Expect::default()).unwrap();
    assert_eq!((summary.records, summary.recovered, summary.last), (6, 1, 6));

    let mut changed = after.clone();
    changed[4] = changed[4].replace("\"subject\":\"e\"", "\"subject\":\"x\"");
    broken(&changed, 5, Problem::NotARecord);
    let mut gone = after;
    gone.remove(4);
    broken(&gone, 5, Problem::TornGone);
}

#[test]
fn a_torn_first_line_and_a_lost_newline_are_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    fs::write(&path, "{\"seq\":1,\"pr").unwrap();
    write(&path, &["a"]);
    assert_eq!(verify(&path, &Expect::default()).unwrap().recovered, 1);
    let text = fs::read(&path).unwrap();
    fs::write(&path, text.strip_suffix(b"\n").unwrap()).unwrap();
    write(&path, &["b"]);
    let summary = verify(&path, &Expect::default()).unwrap();
    assert_eq!((summary.records, summary.recovered), (3, 1));
}

#[test]
fn the_tail_of_a_large_file_is_found() {
    let (_dir, path, _) = five();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&vec![b'x'; 300_000]).unwrap();
    write(&path, &["f"]);
    assert_eq!(verify(&path, &Expect::default()).unwrap().recovered, 1);
    let subjects = vec!["y"; 2000];
    write(&path, &subjects);
    write(&path, &["z"]);
    assert_eq!(verify(&path, &Expect::default()).unwrap().last, 5 + 2 + 2000 + 1);
}

#[test]
fn a_foreign_file_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    for foreign in ["root:x:0:0\n", "root:x:0:0", "{\"seq\":1}\n"] {
        let path = dir.path().join("foreign");
        fs::write(&path, foreign).unwrap();
        let opened = Audit::open(&Config { sink: Sink::File(path.clone()), ..Config::default() });
        assert!(matches!(opened, Err(Error::NotAudit { .. })), "{foreign:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    }
}

#[test]
fn two_writers_cannot_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let first = open(&path);
    let second = Audit::open(&Config { sink: Sink::File(path.clone()), ..Config::default() });
    assert!(matches!(second, Err(Error::Locked { .. })));
    drop(first);
    drop(open(&path));
}

#[test]
fn a_rotated_file_is_continued_in_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("audit.jsonl"), dir.path().join("audit.jsonl.1"));
    let audit = open(&path);
    audit.record(record("a"));
    assert!(audit.flush());
    audit.reopen();
    audit.record(record("b"));
    assert!(audit.flush(), "nothing was rotated: the file stays");
    fs::rename(&path, &old).unwrap();
    audit.reopen();
    audit.record(record("c"));
    assert!(audit.flush());
    drop(audit);
    let before = verify(&old, &Expect::default()).unwrap();
    let after = verify(&path, &Expect { follows: Some(before.last_hash.clone()), ..Expect::default() }).unwrap();
    assert_eq!(after.first, before.last + 1);
    assert_eq!((before.records, after.records), (2, 2));
    let first = json(&lines(&path)[0]);
    assert_eq!((&first["kind"], &first["prev"]), (&"continued".into(), &before.last_hash.clone().into()));
    let other = Expect { follows: Some("0".repeat(64)), ..Expect::default() };
    assert!(matches!(verify(&path, &other), Err(Broken::Line { line: 1, problem: Problem::WrongStart })));
    broken(&lines(&path)[1..], 1, Problem::HeadMissing { seq: 4 });
}

#[test]
fn without_a_sink_records_go_nowhere_and_the_log_is_available() {
    let audit = Audit::open(&Config { fail_closed: true, ..Config::default() }).unwrap();
    audit.record(record("a"));
    assert!(audit.available() && audit.flush());
    assert_eq!(audit.status().written, 0);
}

#[test]
fn a_sink_that_fails_makes_a_fail_closed_log_unavailable_until_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let config = Config { sink: Sink::File(path.clone()), fail_closed: true, ..Config::default() };
    let audit = Audit::open(&config).unwrap();
    assert!(audit.available());
    audit.record(record("a"));
    assert!(!audit.flush());
    assert!(!audit.available());
    audit.record(record("b"));
    fs::remove_file(&path).unwrap();
    audit.reopen();
    // The writer may still be between two attempts when the first flush sees one fail.
    assert!((0..100).any(|_| audit.flush()));
    assert!(audit.available());
    drop(audit);
    let subjects: Vec<_> = lines(&path).iter().map(|line| json(line)["subject"].clone()).collect();
    assert_eq!(subjects, [serde_json::Value::Null, "a".into(), "b".into()]);
    assert_eq!(verify(&path, &Expect::default()).unwrap().records, 3);
}

#[test]
fn a_log_that_is_not_fail_closed_stays_available_and_ends_though_its_sink_fails() {
    let audit = Audit::open(&Config { sink: Sink::File("/dev/full".into()), ..Config::default() }).unwrap();
    audit.record(record("a"));
    assert!(!audit.flush());
    assert!(audit.available());
    assert!(!audit.status().healthy);
    drop(audit);
}

/// Takes what it is told to take: each step is how many bytes of the next write go through, or none for an error. After
/// the last step everything goes through.
struct Scripted {
    steps: VecDeque<Option<usize>>,
    written: Arc<Mutex<Vec<u8>>>,
    /// When there is one, each write takes one word when it begins and waits for a second one.
    gate: Option<mpsc::Receiver<()>>,
}

impl Output for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gate) = &self.gate {
            // A gate whose other side is gone stays open.
            let _ = gate.recv().and_then(|()| gate.recv());
        }
        let count = match self.steps.pop_front() {
            Some(None) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Some(count)) => count.min(bytes.len()),
            None => bytes.len(),
        };
        self.written.lock().unwrap().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn scripted(
    steps: &[Option<usize>],
    gate: Option<mpsc::Receiver<()>>,
    path: Option<PathBuf>,
    queue_lines: usize,
) -> (Arc<Audit>, Arc<Mutex<Vec<u8>>>) {
    let written = Arc::new(Mutex::new(Vec::new()));
    let output = Box::new(Scripted { steps: steps.iter().copied().collect(), written: written.clone(), gate });
    let opened = Opened { output, identity: None, tail: Tail::Empty };
    let audit = Audit::start(Some(Writer::new(opened, path, queue_lines)), true, args::key(None).unwrap()).unwrap();
    (audit, written)
}

fn text(written: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(written.lock().unwrap().clone()).unwrap()
}

#[test]
fn a_write_that_fails_in_the_middle_of_a_line_goes_on_there() {
    let (audit, written) = scripted(&[Some(10), None, Some(100), None, Some(3)], None, None, 16);
    audit.record(record("a"));
    audit.record(record("b"));
    drop(audit.clone());
    assert!((0..100).any(|_| audit.flush()));
    assert!(audit.available());
    let summary = verify_reader(text(&written).as_bytes(), &Expect::default()).unwrap();
    assert_eq!((summary.records, summary.recovered), (2, 0));
}

#[test]
fn rotation_away_from_a_full_disk_loses_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let (open_gate, gate) = mpsc::sync_channel(0);
    // The first batch whole, then a line and a half of the second, then nothing more.
    let mut steps = vec![Some(usize::MAX), Some(500)];
    steps.extend([None; 1000]);
    let (audit, written) = scripted(&steps, Some(gate), Some(path.clone()), 64);
    audit.record(record("0"));
    open_gate.send(()).unwrap();
    ["1", "2", "3", "4", "5"].into_iter().for_each(|subject| audit.record(record(subject)));
    open_gate.send(()).unwrap();
    drop(open_gate);
    assert!(!audit.flush());
    assert!(!audit.available());
    audit.reopen();
    assert!((0..100).any(|_| audit.flush()));
    assert!(audit.available());
    drop(audit);
    let old = text(&written);
    let whole: Vec<String> = old.rsplit_once('\n').unwrap().0.lines().map(str::to_owned).collect();
    let before = check(&whole).unwrap();
    let after = verify(&path, &Expect { follows: Some(before.last_hash), ..Expect::default() }).unwrap();
    assert_eq!((before.records, after.records), (2, 1 + 4));
    let subjects: String = whole
        .iter()
        .chain(&lines(&path))
        .filter_map(|line| json(line)["subject"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(subjects, "012345");
}

#[test]
fn records_that_find_the_queue_full_are_counted_and_told_of() {
    let (open_gate, gate) = mpsc::sync_channel(0);
    let (audit, written) = scripted(&[], Some(gate), None, 4);
    let mut sent = 0;
    while audit.status().dropped < 3 {
        audit.record(record("a"));
        sent += 1;
    }
    assert!(!audit.available());
    drop(open_gate);
    assert!(audit.flush());
    // One more batch, so that the loss is told of for certain.
    audit.record(record("z"));
    assert!(audit.flush());
    assert!(audit.available());
    let dropped = audit.status().dropped;
    drop(audit);
    let text = text(&written);
    let summary = verify_reader(text.as_bytes(), &Expect::default()).unwrap();
    assert_eq!(summary.lost, dropped);
    let requests = text.lines().filter(|line| json(line)["kind"] == "request").count() as u64;
    assert_eq!(requests, sent + 1 - dropped);
}

#[test]
fn hostile_strings_cannot_forge_or_break_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let hostile = "x\"}\n{\"seq\":2,\"prev\":\"0\",\"kind\":\"request\",\"hash\":\"\x1b[2K\r\u{202e}";
    write(&path, &[hostile, "b"]);
    let lines = lines(&path);
    assert_eq!(lines.len(), 2);
    assert_eq!(json(&lines[0])["subject"], hostile);
    assert!(verify(&path, &Expect::default()).is_ok());
}

#[test]
fn many_threads_leave_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = open(&path);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| audit.record(record("a"))));
        }
    });
    assert!(audit.flush());
    drop(audit);
    assert_eq!(verify(&path, &Expect::default()).unwrap().records, 2000);
}
