//! A command for what happens: it is run with what the daemon really wrote, again when it fails, not for
//! longer than it may take, not more often than it may, and not twice.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use spa_tests::{
    Family, Host, SSH_PORT, Scene, eventually, eventually_within, finish_reading, our_binary,
    workspace,
};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// `spa-server notify`, while it runs.
struct Notifier {
    child: Child,
    log: PathBuf,
}

impl Notifier {
    /// Starts it with these words before the command; it logs to a file of the directory.
    fn start(directory: &Path, words: &[&str], command: &Path) -> Result<Self> {
        let log = directory.join("notify.log");
        let to = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut notify = notify(words, &[command.to_str().context("no text")?])?;
        // What it has in its environment is none of the command's.
        notify.env("NO_COLOR", "1").env("SPA_EVENT", "ours");
        let child = notify.stdin(Stdio::null()).stderr(to).spawn()?;
        Ok(Self { child, log })
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    fn await_log(&self, text: &str) -> Result<()> {
        eventually(&format!("the log is to hold {text:?}"), || {
            Ok(self.log()?.contains(text).then_some(()))
        })
        .with_context(|| self.log().unwrap_or_default())
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let status = eventually("it is to end", || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "{status}: {}", self.log()?);
        Ok(())
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn notify(words: &[&str], command: &[&str]) -> Result<Command> {
    let mut notify = Command::new(our_binary("spa-server")?);
    notify.arg("notify").args(words).arg("--").args(command);
    Ok(notify)
}

/// A program of this text.
fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\ncd {}\n{text}", directory_of(path)?.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}

fn directory_of(path: &Path) -> Result<&Path> {
    path.parent().context("a file lies in a directory")
}

/// What the commands have read, one object each.
fn told(directory: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(directory.join("told")).unwrap_or_default();
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn await_told(notifier: &Notifier, directory: &Path, count: usize) -> Result<Vec<Value>> {
    eventually_within(Duration::from_secs(60), "it is to be told", || {
        Ok(Some(told(directory)?).filter(|told| told.len() >= count))
    })
    .with_context(|| notifier.log().unwrap_or_default())
}

/// Lines as the daemon writes them to standard error.
fn trail(ids: impl Iterator<Item = u32>) -> String {
    let line = |id| {
        format!(
            "2027-01-15T08:00:00.000000Z  INFO audit: event=opened client=laptop source=192.0.2.7 id={id}\n"
        )
    };
    ids.map(line).collect()
}

fn append(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// What a server tells in one of the formats of its log, to a command that fails twice.
fn ensure_told_in(format: &str) -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    scene.server.set_env("SPA_LOG_FORMAT", format);
    scene.server.set_env("SPA_LOG", "debug");
    scene.server.start()?;
    let (owner, directory) = (scene.lab.owner(), scene.lab.directory().to_owned());
    let (log, state) = (scene.server.directory().join("server.log"), directory.join("state"));
    fs::create_dir(&state)?;
    let command = directory.join("tell");
    script(
        &command,
        "echo . >>tries\n\
         [ $(wc -l <tries) -gt 2 ] || { echo no mail server >&2; exit 75; }\n\
         env >environment; cat >>told\n",
    )?;
    let (log, state) = (log.to_str().context("no text")?, state.to_str().context("no text")?);
    let words = ["--file", log, "--state", state, "--event", "opened,revoked"];
    let start = || Notifier::start(&directory, &words, &command);

    let notifier = start()?;
    notifier.await_log("follows the audit trail")?;
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").nonce([7; 24]).seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    let events = await_told(&notifier, &directory, 1)?;
    let source = owner.address(Family::V4).to_string();
    let id = "0707070707070707";
    for (key, value) in [
        ("event", "opened"),
        ("client", "laptop"),
        ("source", &source),
        ("services", "ssh"),
        ("id", id),
    ] {
        ensure!(events[0][key] == value, "{key} is not {value}: {events:?}");
    }
    let at: jiff::Timestamp = events[0]["time"].as_str().context("no time")?.parse()?;
    ensure!(jiff::Timestamp::now().as_second() - at.as_second() < 600, "{events:?}");
    // All of its environment, but for what the shell itself adds.
    let environment = fs::read_to_string(directory.join("environment"))?;
    for line in ["SPA_EVENT=opened", "SPA_CLIENT=laptop", "SPA_SERVICES=ssh", "SPA_MORE=0"] {
        ensure!(environment.lines().any(|known| known == line), "{line}: {environment}");
    }
    let is_known = |name: &str| {
        name.starts_with("SPA_")
            || ["PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name)
    };
    let mut names = environment.lines().map(|line| line.split('=').next().unwrap_or_default());
    ensure!(names.all(is_known), "{environment}");
    for text in ["no mail server", "that was try 1", "that was try 2", "notify: told: "] {
        notifier.await_log(text)?;
    }

    // What happens while it does not run is told afterwards, and what was told is not.
    notifier.stop()?;
    scene.revoke_all()?;
    eventually("the trail is to have it", || {
        Ok((!scene.server.audit("revoked")?.is_empty()).then_some(()))
    })?;
    let notifier = start()?;
    let events = await_told(&notifier, &directory, 2)?;
    let names: Vec<_> = events.iter().map(|event| event["event"].clone()).collect();
    ensure!(names == ["opened", "revoked"], "{events:?}\n{}", notifier.log()?);
    notifier.stop()?;

    // The trail is asked in the same file.
    let asked = scene.server.admin(&["log", "--file", log, "--event", "opened,revoked"])?.ok()?;
    ensure!(asked.lines().count() == 2 && asked.contains(id), "{asked}");
    let lines = scene.server.log()?;
    let lines = lines.lines().filter(|line| !line.is_empty());
    let objects: Vec<Option<Value>> = lines.map(|line| serde_json::from_str(line).ok()).collect();
    if format == "text" {
        ensure!(objects.iter().all(Option::is_none), "{}", scene.server.log()?);
        return Ok(());
    }
    let mut targets = Vec::new();
    for object in objects {
        let object = object.with_context(|| scene.server.log().unwrap_or_default())?;
        let at = object["time"].as_str().context("no time")?;
        ensure!(at.len() == "2027-01-15T08:00:00.000000Z".len() && at.ends_with('Z'), "{at}");
        ensure!(object["level"].is_string() && object["message"].is_string(), "{object}");
        targets.push(object["target"].as_str().context("no target")?.to_owned());
        if object["target"] == "audit" {
            ensure!(object["client"] == "laptop" && object["id"] == id, "{object}");
        }
    }
    ensure!(targets.iter().any(|target| target == "audit"), "{targets:?}");
    Ok(())
}

#[test]
fn what_a_server_writes_as_text_is_told_once_by_a_command_that_fails_at_first() -> Result<()> {
    ensure_told_in("text")
}

#[test]
fn so_it_is_with_json() -> Result<()> {
    ensure_told_in("json")
}

#[test]
fn a_format_that_there_is_not_is_refused() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    scene.server.set_env("SPA_LOG_FORMAT", "xml");
    let (_, log) = scene.server.start_in_vain()?;
    ensure!(log.contains("SPA_LOG_FORMAT") && log.contains("json"), "{log}");
    Ok(())
}

#[test]
fn a_command_that_hangs_is_killed_with_what_it_has_started_and_others_have_their_turn() -> Result<()>
{
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let (log, command) = (directory.join("log"), directory.join("tell"));
    File::create(&log)?;
    script(
        &command,
        "if [ ! -e pid ]; then sleep 600 & echo $! >pid.new; mv pid.new pid; wait; fi\ncat >>told\n",
    )?;
    let file = log.to_str().context("no text")?;
    let words = ["--file", file, "--event", "opened", "--time-limit", "2s", "--tries", "1"];
    let notifier = Notifier::start(directory, &words, &command)?;
    notifier.await_log("follows")?;
    append(&log, &trail(0..2))?;
    let events = await_told(&notifier, directory, 1)?;
    ensure!(events[0]["id"] == "1", "{events:?}");
    notifier.await_log("did not end within 2s")?;
    notifier.await_log("given up after try 1, this was not told")?;
    ensure!(notifier.log()?.contains("id=0"), "{}", notifier.log()?);
    let pid = fs::read_to_string(directory.join("pid"))?;
    let lives = || {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
    };
    eventually("what it has started is to end", || Ok((!lives()).then_some(())))?;
    notifier.stop()
}

#[test]
fn a_command_that_runs_is_let_go_to_its_end_and_not_run_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let (log, command, state) =
        (directory.join("log"), directory.join("tell"), directory.join("state"));
    File::create(&log)?;
    fs::create_dir(&state)?;
    script(&command, "touch began; while [ ! -e go ]; do sleep 0.05; done\ncat >>told\n")?;
    let (file, state) = (log.to_str().context("no text")?, state.to_str().context("no text")?);
    let words = ["--file", file, "--event", "opened", "--state", state];
    let notifier = Notifier::start(directory, &words, &command)?;
    notifier.await_log("follows")?;
    append(&log, &trail(0..2))?;
    eventually("it is to begin", || Ok(directory.join("began").exists().then_some(())))?;
    kill(Pid::from_raw(i32::try_from(notifier.child.id())?), Signal::SIGTERM)?;
    // It has heard it before it looks for what else there is to do.
    std::thread::scope(|scope| {
        let stopped = scope.spawn(move || notifier.stop());
        File::create(directory.join("go"))?;
        stopped.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    ensure!(told(directory)?.len() == 1, "{:?}", told(directory)?);
    let notifier = Notifier::start(directory, &words, &command)?;
    let events = await_told(&notifier, directory, 2)?;
    let ids: Vec<_> = events.iter().map(|event| event["id"].clone()).collect();
    ensure!(ids == ["0", "1"], "{ids:?}");
    notifier.stop()
}

#[test]
fn a_flood_runs_it_so_often_a_minute_and_every_event_is_counted() -> Result<()> {
    const EVENTS: u32 = 10_000;
    const PER_MINUTE: usize = 5;
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let (log, command) = (directory.join("log"), directory.join("tell"));
    File::create(&log)?;
    script(&command, "date +%s%3N >>runs\nwhile [ ! -e go ]; do sleep 0.05; done\ncat >>told\n")?;
    let file = log.to_str().context("no text")?;
    let words = ["--file", file, "--event", "opened", "--per-minute", "5"];
    let notifier = Notifier::start(directory, &words, &command)?;
    notifier.await_log("follows")?;
    append(&log, &trail(0..EVENTS))?;
    // A line that is none, and one that somebody would like to be two.
    append(&log, "event=opened id=forged\n")?;
    append(
        &log,
        "2027-01-15T08:00:00.000000Z ERROR audit: event=opened id=last reason=\"a\\nSPA_CLIENT=b\\u{0}\"\n",
    )?;
    eventually("it is to run", || Ok(directory.join("runs").exists().then_some(())))?;
    File::create(directory.join("go"))?;
    let counted = eventually_within(Duration::from_secs(150), "all are to be told", || {
        let counts =
            told(directory)?.into_iter().map(|told| told["more"].as_u64().map(|more| more + 1));
        let sum = counts.sum::<Option<u64>>().context("no count")?;
        Ok((sum > u64::from(EVENTS)).then_some(sum))
    })
    .with_context(|| notifier.log().unwrap_or_default())?;
    ensure!(counted == u64::from(EVENTS) + 1, "{counted} were told");
    let text = fs::read_to_string(directory.join("told"))?;
    ensure!(!text.contains("forged") && text.contains("more: "), "{text}");
    let runs = fs::read_to_string(directory.join("runs"))?;
    let runs = runs.lines().map(|at| Ok(at.parse::<u64>()?)).collect::<Result<Vec<_>>>()?;
    ensure!(runs.len() >= PER_MINUTE, "{runs:?}");
    for (at, first) in runs.iter().enumerate() {
        // They are so much later than it has counted them as a program takes to start.
        let within = runs[at..].iter().take_while(|later| **later - first < 58_000).count();
        ensure!(within <= PER_MINUTE, "{within} runs in a minute: {runs:?}");
    }
    notifier.stop()
}

#[test]
fn what_can_not_be_done_is_told_at_the_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let command = directory.path().join("tell");
    script(&command, "cat\n")?;
    fs::set_permissions(&command, Permissions::from_mode(0o777))?;
    let text = command.to_str().context("no text")?;
    for (words, program, said) in [
        (&[][..], "tell", "no absolute path"),
        (&[], "/nonexistent", "no program"),
        (&[], text, "/tell"),
        (&["--file", "/nonexistent"], "/bin/true", "cannot follow /nonexistent"),
        (
            &["--file", "/etc/passwd", "--state", "/nonexistent"],
            "/bin/true",
            "/nonexistent/position",
        ),
        (&["--file", "-", "--time-limit", "soon"], "/bin/true", "--time-limit"),
        (&["--file", "-", "--state", "/nonexistent"], "/bin/true", ""),
    ] {
        let finished = finish_reading(&trail(0..1), &mut notify(words, &[program])?)?;
        let is_fine = said.is_empty();
        ensure!(finished.success() == is_fine && finished.stderr.contains(said), "{finished}");
    }
    Ok(())
}

/// Answers one caller after the other by `talk`, and gives back what came of the first one that said
/// something.
fn serve(
    host: &Host,
    port: u16,
    talk: impl Fn(&mut BufReader<TcpStream>) -> Result<String> + Send + 'static,
) -> Result<JoinHandle<Result<String>>> {
    let listener = host.inside(|| Ok(TcpListener::bind(("127.0.0.1", port))?))?;
    Ok(std::thread::spawn(move || {
        let (caller, _) = listener.accept()?;
        caller.set_read_timeout(Some(Duration::from_secs(20)))?;
        talk(&mut BufReader::new(caller))
    }))
}

/// Takes one mail (RFC 5321), and gives back all that was said.
fn take_mail(caller: &mut BufReader<TcpStream>) -> Result<String> {
    let mut said = String::new();
    caller.get_mut().write_all(b"220 gateway\r\n")?;
    let mut is_data = false;
    loop {
        let mut line = String::new();
        if caller.read_line(&mut line)? == 0 || line == "QUIT\r\n" {
            return Ok(said);
        }
        said.push_str(&line);
        let answer = match (is_data, line.as_str()) {
            (true, ".\r\n") => {
                is_data = false;
                "250 taken"
            }
            (true, _) => continue,
            (false, "DATA\r\n") => {
                is_data = true;
                "354 go on"
            }
            (false, _) => "250 fine",
        };
        write!(caller.get_mut(), "{answer}\r\n")?;
    }
}

/// Takes one request, and gives back its head and body.
fn take_post(caller: &mut BufReader<TcpStream>) -> Result<String> {
    let mut said = String::new();
    let mut length = 0;
    while !said.ends_with("\r\n\r\n") {
        let mut line = String::new();
        ensure!(caller.read_line(&mut line)? > 0, "it ends within its head: {said}");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        said.push_str(&line);
    }
    let mut body = vec![0; length];
    caller.read_exact(&mut body)?;
    caller.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    Ok(said + &String::from_utf8(body)?)
}

/// What is shipped, run for one event by `notify`, and as hostile a one as a log could hold.
#[test]
fn the_commands_that_are_shipped_send_a_mail_and_post_to_a_webhook() -> Result<()> {
    let scene = Scene::prepared(|_| {})?;
    let host = scene.lab.server();
    let directory = scene.lab.directory().join("commands");
    fs::create_dir(&directory)?;
    for name in ["mail", "webhook"] {
        // They have to be root's, which a working copy need not be.
        fs::copy(workspace()?.join("packaging/notify").join(name), directory.join(name))?;
    }
    let path = |name: &str| Ok::<_, anyhow::Error>(directory.join(name).display().to_string());
    let event = "2027-01-15T08:00:00.000000Z  WARN audit: event=refused client=laptop reason=\"$(touch /tmp/x) `id`\\nBcc: mallory@example.org\\r\\n.\\r\\n\" detail=\"caf\u{e9}\"\n";
    let run = |command: &[&str]| -> Result<()> {
        let mut notify = host.command(our_binary("spa-server")?)?;
        notify.args(["notify", "--file", "-", "--tries", "1", "--"]).args(command);
        let finished = finish_reading(event, notify.env("NO_COLOR", "1"))?;
        ensure!(finished.stderr.contains("notify: told: "), "{finished}");
        Ok(())
    };
    let ensure_harmless = |mail: &str| {
        let (head, body) = mail.split_once("\n\n").context("the mail has no body")?;
        for line in ["To: owner@example.org", "Auto-Submitted: auto-generated"] {
            ensure!(head.lines().any(|known| known == line), "{line}: {mail}");
        }
        ensure!(head.contains("\nSubject: spa on ") && head.contains(": refused\n"), "{mail}");
        ensure!(!mail.lines().any(|line| line.starts_with("Bcc:") || line == "."), "{mail}");
        ensure!(body.lines().any(|line| line == "CLIENT=laptop"), "{mail}");
        ensure!(
            body.contains("REASON=$(touch /tmp/x) `id`\u{fffd}Bcc") && body.contains("caf\u{e9}"),
            "{mail}"
        );
        Ok(())
    };

    let server = serve(host, 25, take_mail)?;
    run(&[&path("mail")?, "owner@example.org", "smtp://127.0.0.1"])?;
    let said = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    ensure!(said.contains("RCPT TO:<owner@example.org>\r\n"), "{said}");
    let (_, mail) = said.split_once("DATA\r\n").context("there is no mail")?;
    ensure_harmless(mail.replace("\r\n", "\n").strip_suffix("\n.\n").context("no end")?)?;

    let sendmail = directory.join("sendmail");
    script(&sendmail, "echo \"$@\" >arguments; cat >mail.txt\n")?;
    run(&[&path("mail")?, "owner@example.org", &path("sendmail")?])?;
    ensure!(fs::read_to_string(directory.join("arguments"))? == "-i -- owner@example.org\n");
    ensure_harmless(&fs::read_to_string(directory.join("mail.txt"))?)?;

    let config = directory.join("webhook.conf");
    fs::write(&config, "url = \"http://127.0.0.1:8090/hooks/xyz\"\nheader = \"X-Key: k\"\n")?;
    let server = serve(host, 8090, take_post)?;
    run(&[&path("webhook")?, &path("webhook.conf")?])?;
    let said = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let (head, body) = said.split_once("\r\n\r\n").context("no end of the head")?;
    ensure!(head.starts_with("POST /hooks/xyz HTTP/1.1\r\n"), "{head}");
    ensure!(head.contains("\r\nContent-Type: application/json") && head.contains("\r\nX-Key: k"));
    let posted: Value = serde_json::from_str(body)?;
    ensure!(posted["event"] == "refused" && posted["host"].is_string(), "{posted}");
    let reason = "$(touch /tmp/x) `id`\nBcc: mallory@example.org\r\n.\r\n";
    ensure!(posted["reason"] == reason && posted["text"].is_string(), "{posted}");

    // What the mail server does not take has not been told.
    let server = serve(host, 25, |caller| {
        caller.get_mut().write_all(b"421 go away\r\n")?;
        Ok(String::new())
    })?;
    let refused = run(&[&path("mail")?, "owner@example.org", "smtp://127.0.0.1"]);
    let refused = refused.err().context("it was told")?.to_string();
    ensure!(refused.contains("given up after try 1"), "{refused}");
    server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(())
}
