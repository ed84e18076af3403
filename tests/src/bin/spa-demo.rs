//! `make demo`: the main job, shown on real parts. Each step says what was tried and what was
//! seen; what is not as it has to be ends the program with a failure.

use anyhow::{Result, ensure};
use spa_tests::{
    Capture, Family, Host, Lab, Laptop, Latencies, PortState, Quoted, SSH_PORT, Server, Session,
    Sshd, eventually, eventually_within, finish, our_binary, time_to_open,
};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const LIFETIME: Duration = Duration::from_secs(8);
const KNOCK_PORT: u16 = 62201;
/// How often the time from knock to open is measured at the end.
const MEASUREMENTS: usize = 20;

fn main() -> ExitCode {
    match Demo::new().and_then(Demo::run) {
        Ok(()) => {
            println!("\nAll of it was as it has to be.");
            ExitCode::SUCCESS
        }
        Err(surprise) => {
            println!("\nSURPRISE: {surprise:#}");
            ExitCode::FAILURE
        }
    }
}

struct Demo {
    server: Server,
    sshd: Sshd,
    laptop: Laptop,
    steps: u32,
    // Last, because it removes the namespaces that the others live in.
    lab: Lab,
}

impl Demo {
    fn new() -> Result<Self> {
        println!(
            "Three machines (network namespaces) on one link: a server (10.66.0.1, fd66::1) with\n\
             the real sshd, the owner's laptop (10.66.0.2, fd66::2), and a stranger (10.66.0.3,\n\
             fd66::3). Programs, packets and the kernel's firewall are the real ones."
        );
        let lab = Lab::new()?;
        let sshd = Sshd::start(lab.server(), &lab.directory().join("ssh"), SSH_PORT)?;
        let server = Server::initialized(lab.server(), &lab.server_directory());
        let laptop = Laptop::new(&lab, lab.owner(), "laptop");
        Ok(Self { server, sshd, laptop, steps: 0, lab })
    }

    fn run(mut self) -> Result<()> {
        let mut idle = self.without_a_gate()?;
        self.set_up()?;
        self.hide(&mut idle)?;
        let (stolen, opened, mut session) = self.knock()?;
        self.replay(&stolen, 1)?;
        self.end_of_the_lifetime(opened, &mut session)?;
        self.replay(&stolen, 2)?;
        self.measure()?;
        self.step("At the end: the sessions, and what the server counted");
        session.ensure_alive()?;
        idle.ensure_alive()?;
        saw("both ssh sessions are alive");
        for line in self.server.admin(&["status"])?.ok()?.lines() {
            saw(line);
        }
        Ok(())
    }

    fn without_a_gate(&mut self) -> Result<Session> {
        self.step("Before: everybody sees the server's sshd");
        for family in Family::BOTH {
            self.probe("the laptop", self.lab.owner(), family, PortState::Open)?;
            self.probe("the stranger", self.lab.other(), family, PortState::Open)?;
        }
        tried("an ssh session of the laptop, left open from here on");
        let idle = self.sshd.session(self.lab.owner(), Family::V4)?;
        saw("it answers");
        Ok(idle)
    }

    fn set_up(&mut self) -> Result<()> {
        self.step("Setting up, by the commands of the manual");
        let directory = self.lab.server_directory();
        let mut init = self.lab.server().command(our_binary("spa-server")?)?;
        let server_key = run("server", init.args(["init", "--dir"]).arg(&directory))?;
        let client_key = run("laptop", &mut self.laptop.command(&["keygen"])?)?;
        let add = ["client", "add", "laptop", "--public-key", client_key.trim(), "--allow", "ssh"];
        run("server", &mut self.server.admin_command(&add)?)?;
        let add = ["server", "add", "home", "--host", "gateway", "--public-key", server_key.trim()];
        run("laptop", &mut self.laptop.command(&add)?)?;
        run("server", &mut self.server.admin_command(&["check"])?)?;
        Ok(())
    }

    fn hide(&mut self, idle: &mut Session) -> Result<()> {
        self.step("The server starts: the port is gone, for the owner too");
        let start = Instant::now();
        self.server.start()?;
        saw(&format!("spa-server runs after {} ms", start.elapsed().as_millis()));
        for family in Family::BOTH {
            self.probe("the laptop", self.lab.owner(), family, PortState::Filtered)?;
            self.probe("the stranger", self.lab.other(), family, PortState::Filtered)?;
        }
        tried("the session from before");
        let time = idle.ensure_alive()?;
        saw(&format!("it is alive, and echoed within {:.1} ms", ms(time)));
        Ok(())
    }

    fn knock(&mut self) -> Result<(Vec<u8>, Instant, Session)> {
        self.step("The owner knocks, and logs in by ssh");
        let wire = Capture::on(self.lab.server(), &format!("udp port {KNOCK_PORT}"))?;
        let start = Instant::now();
        let lifetime = format!("{}s", LIFETIME.as_secs());
        let open = ["open", "ssh", "--wait", "--lifetime", &lifetime];
        run("laptop", &mut self.laptop.command(&open)?)?;
        ensure!(start.elapsed() < Duration::from_secs(1), "it took {:?} to open", start.elapsed());
        for family in Family::BOTH {
            tried(&format!("ssh {} echo in", self.lab.server().address(family)));
            let answer = self.sshd.login(self.lab.owner(), family, "echo in")?.ok()?;
            ensure!(answer == "in\n", "ssh answered {answer:?}");
            saw(&format!("logged in, {:.0} ms after the knock", ms(start.elapsed())));
        }
        let session = self.sshd.session(self.lab.owner(), Family::V6)?;
        saw("a session stays open");
        for family in Family::BOTH {
            self.probe("the stranger", self.lab.other(), family, PortState::Filtered)?;
        }
        let stolen = wire.await_datagram(KNOCK_PORT)?;
        saw(&format!("the stranger has recorded the knock: {} bytes of UDP", stolen.len()));
        Ok((stolen, start, session))
    }

    /// From both hosts; `grown` is how many replays of each the server has counted afterwards.
    fn replay(&mut self, stolen: &[u8], round: u64) -> Result<()> {
        self.step("The recorded knock is sent again");
        let before = self.server.grants()?.len();
        let counted = self.server.dropped("replay")?;
        for (name, from) in [("stranger", self.lab.other()), ("laptop", self.lab.owner())] {
            tried(&format!("the same bytes from the {name}'s address"));
            from.send_udp(self.lab.server().at(Family::V4, KNOCK_PORT), stolen)?;
        }
        self.server.await_dropped("replay", counted + 2)?;
        saw(&format!("both are counted as replays, {} in all", counted + 2));
        for family in Family::BOTH {
            self.probe("the stranger", self.lab.other(), family, PortState::Filtered)?;
            if round > 1 {
                self.probe("the laptop", self.lab.owner(), family, PortState::Filtered)?;
            }
        }
        let after = self.server.grants()?.len();
        ensure!(after <= before, "a replay has opened something: {before} grants became {after}");
        Ok(())
    }

    fn end_of_the_lifetime(&mut self, opened: Instant, session: &mut Session) -> Result<()> {
        self.step("The lifetime ends");
        tried(&format!("to connect until it fails; {} s were asked for", LIFETIME.as_secs()));
        for family in Family::BOTH {
            let ssh = self.lab.server().at(family, SSH_PORT);
            let deadline = LIFETIME + Duration::from_secs(10);
            eventually_within(deadline, "the port is to close", || {
                Ok((self.lab.owner().tcp(ssh)? == PortState::Filtered).then_some(()))
            })?;
        }
        saw(&format!("filtered again {:.1} s after the knock", opened.elapsed().as_secs_f64()));
        ensure!(opened.elapsed() + Duration::from_secs(1) > LIFETIME, "that is too early");
        tried("the session that was opened meanwhile");
        let time = session.ensure_alive()?;
        saw(&format!("it is alive, and echoed within {:.1} ms", ms(time)));
        Ok(())
    }

    fn measure(&mut self) -> Result<()> {
        self.step("How long a knock takes");
        tried(&format!("{MEASUREMENTS} knocks, and a SYN every 0.05 ms until one is answered"));
        let key = spa_keys::read_private_key(self.laptop.private_key_file())?;
        let server = spa_keys::read_private_key(self.lab.server_directory().join("server.key"))?;
        let device = spa_tests::Identity::from(key).device(server.public())?;
        let door = self.lab.server().at(Family::V4, KNOCK_PORT);
        let ssh = self.lab.server().at(Family::V4, SSH_PORT);
        let mut times = Vec::new();
        for _ in 0..MEASUREMENTS {
            times.push(time_to_open(self.lab.owner(), &device.open("ssh").seal()?, door, ssh)?);
            self.server.admin(&["grants", "revoke", "--all"])?.ok()?;
            eventually("the port is to be closed", || {
                Ok(self.server.elements()?.is_empty().then_some(()))
            })?;
        }
        saw(&format!("from the datagram to the first connection: {}", Latencies::new(times)));
        Ok(())
    }

    fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}. {title}", self.steps);
    }

    fn probe(&self, who: &str, from: &Host, family: Family, wanted: PortState) -> Result<()> {
        let to = self.lab.server().at(family, SSH_PORT);
        tried(&format!("a TCP connection from {who} to {to}"));
        let start = Instant::now();
        let seen = from.tcp(to)?;
        saw(&format!("{seen}, after {:.1} ms", ms(start.elapsed())));
        ensure!(seen == wanted, "{to} is {seen} as seen from {who}, not {wanted}");
        Ok(())
    }
}

/// Runs a command and shows what it prints.
fn run(host: &str, command: &mut Command) -> Result<String> {
    tried(&format!("on the {host}: {}", Quoted(command)));
    let start = Instant::now();
    let finished = finish(command)?;
    for line in finished.said().lines() {
        saw(line);
    }
    let time = ms(start.elapsed());
    let stdout = finished.ok()?;
    saw(&format!("(took {time:.0} ms)"));
    Ok(stdout)
}

fn tried(what: &str) {
    println!("   tried: {what}");
}

fn saw(what: &str) {
    println!("          {what}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
