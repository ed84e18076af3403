//! The results for people: the part of the report about fire. Pure. No figure is written here by hand.

use super::bars::{client_bytes, fire_bars, kept_up};
use super::results::{Fire, Latency, Of, Rate, Role, UnderNoise};
use super::wire::as_f64;
use crate::bench::bars::short_count;
use crate::bench::contenders::Noise;
use crate::bench::figures::{milliseconds, short};
use crate::bench::plots::Plot;
use crate::bench::report::{QUICK, grid};
use crate::bench::results::Outcome;
use std::fmt::Write as _;

/// The part of the report, with links to these plots where they belong.
pub fn fire_part(fire: &Fire, plots: &[Plot]) -> String {
    let mut part = String::from("## Under fire\n");
    if fire.quick {
        let _ = write!(part, "\n{}", QUICK.trim_end());
        part.push('\n');
    }
    for (title, drawn, table, text) in [
        ("What was to be reached", [].as_slice(), bars(fire), BARS),
        ("Where others are better", &[], better(fire), BETTER),
        ("One knock", &["one-knock"], singles(fire), SINGLES),
        ("Amid noise", &["amid-noise", "memory"], noise(fire), NOISE),
        ("What noise costs", &["noise-cost"], costs(fire), COSTS),
        ("Knocks a second", &["knocks-a-second"], rates(fire), RATES),
        ("Few and many clients", &[], crowds(fire), CROWDS),
    ] {
        let _ = write!(part, "\n### {title}\n\n");
        for Plot { name, caption, .. } in plots.iter().filter(|plot| drawn.contains(&plot.name)) {
            let _ = write!(part, "![{caption}](benchmarks/{name}.svg)\n\n");
        }
        let _ = write!(part, "{table}\n{text}");
    }
    part.push_str(AGAIN);
    part
}

const BARS: &str = "\
Where several back-ends of ours were measured, the worst decides. A bar that is missed is told as missed.
";

const BETTER: &str = "\
A knock alone, and memory before any noise, of the tables below: whatever another program or the kernel alone does better than the worst of our back-ends. Amid noise the kernel alone is quicker
as well; those of the others that keep less in memory then are in that table.
";

const SINGLES: &str = "\
Milliseconds from the moment before the first packet of a knock is sent until a SYN-ACK of the port behind the door is back at its sender. The first SYN goes out right behind the
knock, the next ones every 50 us, and more seldom when it takes long: a figure is never coarser than a sixteenth of itself. All programs run side by side and knock in turns, each
time from another address, after a pause of 10 to 20 ms that meets no rhythm of theirs. The sender asks without sleeping, on a processor of its own, which the programs may not use: it stands for another machine. `recent` is the kernel alone: it
checks nothing but the order of three ports, and decides in the very packet, so its latency is that of the cable and of one SYN. fwknopd and knockd look at what has come
now and then, unless fwknopd listens on a socket. The knock of letmein is a dialogue: the time begins with its first message, and the sender answers the challenge without letmein's own client, as soon
as it hears it, so a way there and back is in the figure, over a cable without a length; then nft is run. The knocks of ruroco are its own client's, made before; its server writes each down, waits for the disk, and hands it to a second process,
which runs a shell and iptables, and looks every 50 ms whether they have ended.
";

const NOISE: &str = "\
Knocks of different addresses, 20 to 40 ms apart, over the same cable and from the same sender as noise of forged addresses, as fast as one processor can send it. That is the limit
of the method: *sent* is what the sender managed, with the receiving kernel's work for each packet in its own time, and *received* what came to the host's interface. A knock that is not open within 2 s counts as lost. *Random*: the right port and length (for ours,
fwknopd, letmein and ruroco), or the first port of the sequence (for knockd and `recent`). *Right tag, broken MAC*: knocks of one of the clients, sealed just before, with another last byte. *Replays*: its knocks that were
accepted. *Stale*: its knocks that are two minutes old. *Log* and *state* are the bytes by which those files grew while noise came for two seconds and nobody knocked.
*Memory* is what was resident before the noise, and after it and the knocks; what several processes of a program share, its code above all, is counted once. Our server does not see the types of the whole kernel, as by its unit: the library that loads the prefilter would read them, and two MiB would be kept.
";

const COSTS: &str = "\
Processor time that the reading program costs for each datagram of random noise that it has seen, from the scheduler's nanoseconds; medians of rounds in turns: that *of its own*, in user space and in the kernel, and by how much
the sender's time is longer than where nobody reads (less than 10 ns are told as 10), for there, or in its own thread for what arrives on that processor, the receiving kernel filters (which is where noise ends by the prefilter), copies and wakes. A sender that keeps to a rate waits for the rest of its time: there only a program's own time is told. *Seen* is which
part of what came it has seen, or its filter has counted: what a full buffer has dropped costs it nothing, and is not counted. The counter reads through libpcap with the filter, snap length and buffer of our server and adds one; *immediate* delivery, as the
server has it, lets a knock wait for nobody, and *gathered* delivery is libpcap's other way, which would make a knock wait for up to a tenth of a second. *By immediate* and *by gathered* are the cost by that of either counter; the bar is judged by the immediate one. *Sender* is what the sender has paid for each: sending, and what
the receiving kernel does in the sender's time (the filter, the copy, the firewall). *Without the prefilter*, noise reaches our server: what the prefilter gains is the difference.
";

const RATES: &str = "\
Valid knocks, made before, each from another address, ours of a thousand clients, at an even rate for a second, to a program freshly started. It keeps up with a rate when all of them are open, as the kernel has it, within 300 ms of the last
one; one that has not is not asked for more (*then*: what was sent instead, and what became of it). Where none of the others has kept up with the lowest rate, the bar takes it as if they had. The lists of `recent` hold a hundred addresses, so it is not asked.
Of letmein the first messages are made before, and challenges answered as above; its limits of 100 rules and of 64 dialogues at a time are out of the way, here as in the other tables. Of ruroco all knocks are made before, with one key; its limits of 100 a second,
and of 2 of one address, are out of the way likewise. Both daemons of letmein and of ruroco run, as root.
";

const CROWDS: &str = "\
Our server (its first back-end) with so many clients in `clients.d`, each in a file of its own. *Start* is from the start of the process until it answers on its control socket: *first* with an empty state directory, where all pair secrets
have to be derived, and *again* with those that were kept. *Memory* is resident after either, whichever is more, and *bytes a client* are the difference to the smallest.
*Open* is the median of knocks on their own, and *noise* the processor time for a random datagram, as above, as fast as the sender can, all of them measured in turns.
";

const AGAIN: &str = "
### Under fire again

    make bench-fire

It installs the Debian packages `fwknop-server`, `fwknop-client` and `knockd` where they are missing (no service is started), builds `letmeind` and `letmeinfwd` in `target/tools`, needs root and two processors, takes some minutes, and stays within namespaces
that it makes. No registry has ruroco: it is measured where `ruroco-server`, `ruroco-commander` and `ruroco-client` are in `target/tools/bin` or in `/usr/local/bin`.
";

/// Whose program, its name, and a figure of it if that was measured.
type Told<'a> = (Role, &'a str, Option<f64>);

/// In what one of the others, or the kernel alone, is better than the worst of ours.
fn better(fire: &Fire) -> String {
    let amid = |one: &Of<Vec<UnderNoise>>, figure: fn(&UnderNoise) -> f64| {
        let kinds = one.outcome.measured()?;
        kinds.iter().find(|kind| kind.kind == Noise::Random).map(figure)
    };
    let single = |figure: fn(&Latency) -> f64| {
        let all = fire.singles.iter();
        all.map(|one| (one.role, one.name.as_str(), one.outcome.measured().map(figure))).collect()
    };
    let under_noise = |figure: fn(&UnderNoise) -> f64| {
        let all = fire.noise.iter();
        all.map(|one| (one.role, one.name.as_str(), amid(one, figure))).collect()
    };
    let compared: [(&str, Vec<Told<'_>>); 4] = [
        ("one knock, median, ms", single(|found| found.median_ms)),
        ("one knock, p99, ms", single(|found| found.p99_ms)),
        ("knocks that random noise keeps closed", under_noise(|found| found.latency.lost())),
        (
            "resident memory before noise, MiB",
            under_noise(|found| as_f64(found.resident_before) / 1024.0),
        ),
    ];
    let mut rows = Vec::new();
    for (what, all) in compared {
        let ours = all.iter().filter(|one| one.0 == Role::Ours).filter_map(|one| one.2);
        let Some(worst) = ours.max_by(f64::total_cmp) else { continue };
        for (role, name, figure) in &all {
            if let Some(figure) = figure.filter(|figure| *role != Role::Ours && *figure < worst) {
                rows.push(vec![
                    what.to_owned(),
                    (*name).to_owned(),
                    milliseconds(figure),
                    milliseconds(worst),
                ]);
            }
        }
    }
    grid(&["figure", "who is better", "theirs", "ours, the worst"], &rows)
}

fn bars(fire: &Fire) -> String {
    let rows: Vec<_> = fire_bars(fire)
        .into_iter()
        .map(|bar| vec![bar.what, bar.verdict.as_str().to_owned(), bar.found])
        .collect();
    grid(&["bar", "verdict", "found"], &rows)
}

/// The rows of all programs, each with its name before it, and below them who was not measured.
fn of_all<T>(heads: &[&str], all: &[Of<T>], rows: impl Fn(&T) -> Vec<Vec<String>>) -> String {
    let mut measured = Vec::new();
    let mut missing = String::new();
    for one in all {
        match &one.outcome {
            Outcome::Measured(found) => measured.extend(
                rows(found)
                    .into_iter()
                    .map(|row| std::iter::once(one.name.clone()).chain(row).collect::<Vec<_>>()),
            ),
            Outcome::NotRun(why) => {
                let _ = write!(missing, "\nNot run: {}: {why}.\n", one.name);
            }
        }
    }
    grid(heads, &measured) + &missing
}

/// Opened, median, p99.
fn latency(latency: &Latency) -> [String; 3] {
    let figure = |ms| if latency.opened > 0 { milliseconds(ms) } else { String::new() };
    [
        format!("{} of {}", latency.opened, latency.knocks),
        figure(latency.median_ms),
        figure(latency.p99_ms),
    ]
}

fn singles(fire: &Fire) -> String {
    let heads = ["program", "opened", "median, ms", "p99, ms", "slowest, ms"];
    of_all(&heads, &fire.singles, |found| {
        let mut row = latency(found).to_vec();
        row.push(milliseconds(found.slowest_ms));
        vec![row]
    })
}

fn noise(fire: &Fire) -> String {
    let heads = [
        "program",
        "noise",
        "sent a second",
        "received a second",
        "opened",
        "median, ms",
        "p99, ms",
        "log, bytes",
        "state, bytes",
        "memory, MiB",
    ];
    of_all(&heads, &fire.noise, |kinds| {
        let rows = kinds.iter().map(|one| {
            let mib = |kib| short(as_f64(kib) / 1024.0);
            let mut row =
                vec![one.kind.name().to_owned(), short(one.sent_pps), short(one.received_pps)];
            row.extend(latency(&one.latency));
            row.push(short(as_f64(one.log_bytes)));
            row.push(short(as_f64(one.state_bytes)));
            row.push(format!("{}, {}", mib(one.resident_before), mib(one.resident_after)));
            row
        });
        rows.collect()
    })
}

fn costs(fire: &Fire) -> String {
    let heads = [
        "program",
        "wanted a second",
        "received a second",
        "seen",
        "ns",
        "of its own, ns",
        "by immediate",
        "by gathered",
        "sender, ns",
    ];
    let rows = fire.costs.iter().map(|cost| {
        vec![
            cost.name.clone(),
            cost.rate.map_or_else(|| "all it can".into(), |rate| short(as_f64(rate))),
            short(cost.received_pps),
            format!("{:.1}%", cost.seen * 100.0),
            short(cost.ns),
            short(cost.own_ns),
            short(cost.ratio),
            short(cost.ratio_to_gathered),
            short(cost.sender_ns),
        ]
    });
    grid(&heads, &rows.collect::<Vec<_>>())
}

fn rates(fire: &Fire) -> String {
    let heads = ["program", "keeps up with", "then", "opened", "behind, ms", ""];
    let told = |rate: &Rate| {
        let behind = rate.behind_ms.map_or_else(|| "never all".into(), short);
        let opened = format!("{} of {}", short_count(rate.opened), short_count(rate.knocks));
        [short(rate.sent), opened, behind, rate.losses.clone()]
    };
    of_all(&heads, &fire.rates, |rates| {
        let kept = kept_up(rates);
        let mut row = vec![kept.map_or_else(|| "none".into(), |rate| short(as_f64(rate.wanted)))];
        match rates.last() {
            Some(last) if kept != Some(last) => row.extend(told(last)),
            Some(last) => {
                row.extend([String::new()].into_iter().chain(told(last).into_iter().skip(1)));
            }
            None => (),
        }
        vec![row]
    })
}

fn crowds(fire: &Fire) -> String {
    let crowds = match &fire.crowds {
        Outcome::Measured(crowds) => crowds,
        Outcome::NotRun(why) => return format!("Not run: {why}.\n"),
    };
    let heads = [
        "clients",
        "first start, s",
        "start again, s",
        "memory, MiB",
        "bytes a client",
        "opened",
        "open, ms",
        "p99, ms",
        "noise, ns",
    ];
    let rows = crowds.iter().map(|crowd| {
        let fewest = crowds.first().filter(|few| few.clients < crowd.clients);
        let bytes = fewest.map(|few| short(client_bytes(few, crowd))).unwrap_or_default();
        let mut row = vec![
            short_count(crowd.clients),
            short(crowd.start_seconds),
            short(crowd.start_again_seconds),
            short(as_f64(crowd.resident) / 1024.0),
            bytes,
        ];
        row.extend(latency(&crowd.latency));
        row.push(short(crowd.noise_ns));
        row
    });
    grid(&heads, &rows.collect::<Vec<_>>())
}
