//! Somebody who has never used this gets from an invitation to a shell on the server, in a terminal:
//! three commands, and this is what they look like.

use anyhow::{Context, Result, ensure};
use spa_tests::{Family, Newcomer, PortState, SSH_PORT, Scene};

/// What the terminal shows, with what differs each time left out.
const TRANSCRIPT: &str = include_str!("newcomer.txt");

#[test]
fn three_commands_lead_from_an_invitation_to_a_shell() -> Result<()> {
    let scene = Scene::new()?;
    let invite = ["invite", "newcomer", "--allow", "ssh", "--host", "gateway"];
    let join = scene.server.admin(&invite)?.ok()?;
    let newcomer = Newcomer::new(scene.lab.owner())?;
    // They had these before the port was hidden.
    let [key, known_hosts] = scene.sshd.users_files()?;
    newcomer.give(".ssh/id_ed25519", &key)?;
    newcomer.give(".ssh/known_hosts", &known_hosts)?;
    // The control: the port is hidden, for ssh too.
    for family in Family::BOTH {
        scene.ensure_sees(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }

    newcomer.runs(join.trim())?;
    newcomer.runs("spa-client setup ssh --yes")?;
    newcomer.types("ssh root@gateway")?;
    let screen = newcomer.await_screen("a prompt of the server", |screen| {
        screen.lines().next_back().is_some_and(|line| line.ends_with('#'))
    })?;
    let prompt = screen.lines().next_back().context("a prompt")?.to_owned();
    newcomer.types("id -un")?;
    newcomer.await_screen("the answer of the server", |screen| {
        screen.ends_with(&format!("{prompt} id -un\nroot\n{prompt}"))
    })?;
    let screen = newcomer.runs("exit")?;

    let mut seen = screen;
    for (found, told) in [
        (newcomer.home().display().to_string(), "/home/me"),
        (newcomer.bin().display().to_string(), "/usr/bin"),
        (scene.lab.server().address(Family::V4).to_string(), "ADDRESS"),
        (scene.lab.server().address(Family::V6).to_string(), "ADDRESS"),
    ] {
        seen = seen.replace(&found, told);
    }
    let seen = without_rest(&without_rest(&seen, "spa1:"), "spa-public-");
    let seen = without_rest(&seen, " after ").replace("... ms", "...");
    let seen = with_plain_session(&seen, &prompt) + "\n";
    ensure!(seen == TRANSCRIPT, "the terminal shows:\n{seen}");
    ensure!(scene.server.audit("enrolled")?.len() == 1);
    Ok(())
}

/// The screen without what the server's system says to whoever logs in and out, and with a prompt
/// that is the same on all systems.
fn with_plain_session(screen: &str, prompt: &str) -> String {
    let (before, after) = screen.split_once("ssh root@gateway\n").unwrap_or((screen, ""));
    let session = after.lines().skip_while(|line| !line.starts_with(prompt));
    let mut plain = format!("{before}ssh root@gateway");
    for line in session.filter(|line| *line != "logout") {
        let shown = line
            .strip_prefix(prompt)
            .map_or_else(|| line.to_owned(), |typed| format!("root@gateway:~#{typed}"));
        plain.extend(["\n", &shown]);
    }
    plain
}

/// `text` with everything after `start`, to the end of the word, replaced by three dots.
fn without_rest(text: &str, start: &str) -> String {
    let mut parts = text.split(start);
    let mut cut = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
        let rest = end.and_then(|end| part.get(end..)).unwrap_or_default();
        cut.extend([start, "...", rest]);
    }
    cut
}
