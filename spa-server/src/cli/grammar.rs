//! What may stand on the command line, and the help to it.

use crate::audit::trail::{EVENTS, Wanted};
use crate::config::{ClientName, DEFAULT_PATH};
use crate::source::Source;
use clap::{ArgGroup, Args, Parser, Subcommand, value_parser};
use spa_proto::Item;
use std::net::IpAddr;
use std::path::PathBuf;

/// Hides ports, and opens them for those who prove who they are with one datagram.
#[derive(Debug, Parser)]
#[command(
    name = "spa-server",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Example, on a fresh server:
  spa-server init && spa-server invite laptop --allow ssh
  spa-server check && systemctl start spa-server # enable once the laptop got in
Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."
)]
pub(super) struct Cli {
    /// Configuration, if not /etc/spa/server.toml.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = DEFAULT_PATH,
        hide_default_value = true
    )]
    pub(super) config: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground, as the systemd unit does.
    Run(RunArgs),
    /// Look for what is wrong here, and say how to mend it.
    #[command(after_help = "Example:\n  spa-server check")]
    Check(Output),
    /// Write a configuration and the server's key for this host.
    Init(InitArgs),
    /// Invite a client: it makes its key itself.
    Invite(InviteArgs),
    /// Add, show and change clients.
    #[command(
        after_help = "Example:\n  spa-server client add laptop --public-key spa-public-... --allow ssh"
    )]
    #[command(subcommand)]
    Client(ClientCommand),
    /// Give this server a new key; clients may use the old one for a time.
    RotateKey(RotateKeyArgs),
    /// Show how the running daemon is.
    #[command(after_help = "Example:\n  spa-server status --json")]
    Status(Output),
    /// Watch the running daemon: what is open, knocks, noise.
    #[command(after_help = "\
Example:
  spa-server top

It asks the daemon every second, and changes nothing. Keys: q or Ctrl-C ends it, arrows,
PgUp, PgDn, Home and End scroll what is open, p has the picture stand still.")]
    Top,
    /// Show the audit trail: who opened what, and what was refused.
    Log(LogArgs),
    /// Run a command for what happens: to send a mail, say.
    Notify(NotifyArgs),
    /// Print what `status` shows for Prometheus.
    Metrics(MetricsArgs),
    /// Show or revoke what is open.
    #[command(after_help = "Example:\n  spa-server grants list")]
    #[command(subcommand)]
    Grants(GrantsCommand),
    /// Open nothing for an address for a time, and throw out who is in.
    Refuse(RefuseArgs),
    /// Have the running daemon read its configuration anew.
    #[command(after_help = "Example:\n  spa-server reload")]
    Reload(Output),
    /// Let the daemon's users read what root has written.
    #[command(
        hide = true,
        after_help = "\
Example:
  spa-server hand-over

The units do so before the daemon starts, and `reload` before the daemon reads. Files that only
root can read are then readable for the group spa-gate, keys for the group spa."
    )]
    HandOver,
    /// Install, show or remove the firewall rules without the daemon.
    #[command(after_help = "Example:\n  spa-server gate show")]
    #[command(subcommand)]
    Gate(GateCommand),
    /// Serve the daemon that starts it: change the firewall.
    #[command(hide = true, after_help = "Example:\n  spa-server run, which starts it")]
    GateHelper,
    /// Write the manual pages.
    #[command(hide = true, after_help = "Example:\n  spa-server man /usr/share/man/man8")]
    Man(ManArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spa-server run --config /etc/spa/server.toml")]
pub(crate) struct RunArgs {
    /// Meet the gate helper at this socket, whose unit starts it, in place of starting it.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) helper: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The directory to write the pages to.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-server log --client laptop --since 1d
  spa-server log --event refused --since 2027-01-31 --json

TIME is how long ago (90s, 12h, 7d), a date, or date, time and offset.")]
pub(crate) struct LogArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Not before.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Before.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Read the log in this file, `-` for standard input, not the journal.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Write JSON, one line for each.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which lines of the audit trail.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Of this client only.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<ClientName>,
    /// From this address only.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Option<IpAddr>,
    /// Only what asked for this service, or protocol/port.
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<Item>,
    /// Only these events: opened, failed, refused, ...
    #[arg(long = "event", value_name = "EVENT", value_delimiter = ',', value_parser = event)]
    pub(crate) events: Vec<String>,
}

impl WhichArgs {
    /// The same for what reads the trail.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            events: self.events.clone(),
            client: self.client.as_ref().map(ToString::to_string),
            source: self.source,
            service: self.service.as_ref().map(ToString::to_string),
            since: None,
            until: None,
        }
    }
}

/// A word that never comes would be waited for in silence.
fn event(name: &str) -> Result<String, String> {
    if EVENTS.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("there is no such event; there are {}", EVENTS.join(", ")))
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-server notify -- /usr/libexec/spa/notify-mail root smtp://localhost
  spa-server notify --event opened,refused -- /usr/local/bin/tell-me

Follows the audit trail. The command has the event as JSON on standard input, and
in SPA_EVENT, SPA_CLIENT, SPA_TEXT and so on. Without --event it is failed, refused,
gate-restored, gate-contested and what becomes of clients' keys.")]
pub(crate) struct NotifyArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Follow this file, or `-`, not the journal.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// How often a minute it is run at most.
    #[arg(long, value_name = "N", default_value = "10", value_parser = value_parser!(u16).range(1..=600))]
    pub(crate) per_minute: u16,
    /// How long it may take.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) time_limit: String,
    /// How often it is tried, if it fails.
    #[arg(long, value_name = "N", default_value = "6", value_parser = value_parser!(u32).range(1..=100))]
    pub(crate) tries: u32,
    /// Remember here what was told [default: $STATE_DIRECTORY].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// What to run: an absolute path, and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cd /var/lib/prometheus/node-exporter
  spa-server metrics > spa.prom.new && mv spa.prom.new spa.prom

Prometheus reads them by HTTP: systemctl enable --now spa-metrics.socket")]
pub(crate) struct MetricsArgs {
    /// Answer one HTTP request, from standard input to standard output.
    #[arg(long)]
    pub(crate) http: bool,
}

/// How to write data.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Write JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-server init

Writes server.toml, server.key and clients.d, and makes the directory for the state.
It overwrites nothing: an existing server.key is used, an existing server.toml ends
it. Prints the server's public key.")]
pub(crate) struct InitArgs {
    /// Put everything below this directory, state and socket too.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Let a client in whose public key is known.
    Add(AddArgs),
    /// Show all clients.
    #[command(after_help = "Example:\n  spa-server client list --json")]
    List(Output),
    /// Show one client.
    #[command(after_help = "Example:\n  spa-server client show laptop")]
    Show(ShowArgs),
    /// Remove a client and revoke what it has open.
    #[command(after_help = "Example:\n  spa-server client remove laptop")]
    Remove(LockOutArgs),
    /// Lock a client out without removing it.
    #[command(after_help = "Example:\n  spa-server client disable laptop")]
    Disable(LockOutArgs),
    /// Let a disabled client in again.
    #[command(after_help = "Example:\n  spa-server client enable laptop")]
    Enable(NameArgs),
    /// Drop the key that a client has announced as its next one.
    #[command(after_help = "\
Example:
  spa-server client withdraw-key laptop

The client keeps the key that it has, and can announce another one; not this one again.
Whoever has announced it had the client's present key: was it the client?")]
    WithdrawKey(NameArgs),
    /// Let a client in again whose clock was far ahead.
    ResetReplay(ResetArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-server client add laptop --public-key spa-public-... --allow ssh
  spa-server client add backup --allow ssh,db --source 192.0.2.7 --expires 90d

Without --public-key a key pair is made, with its private half for the client in
./NAME.key. Better: run `spa-client keygen` there, and add what it prints.
Prints the command that the client's user runs next.")]
pub(crate) struct AddArgs {
    /// What to call it.
    pub(crate) name: ClientName,
    /// What `spa-client keygen` prints there.
    // A text: the parser would echo what it refuses, and that might be a private key.
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// A date, or a duration, as in 90d.
    #[arg(long, value_name = "WHEN")]
    pub(crate) expires: Option<String>,
    /// Make a pre-shared key, too: ./NAME.psk.
    #[arg(long)]
    pub(crate) psk: bool,
    /// Instead of ./NAME.key.
    #[arg(long, value_name = "FILE", conflicts_with = "public_key")]
    pub(crate) private_key_out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-server rotate-key --for 30d

Prints what each client's user has to run. Until then the client uses the old key, which
holds for that time; after it nothing is accepted under it. Invitations that were made
before name the old key, and hold for as long as it does.")]
pub(crate) struct RotateKeyArgs {
    /// For how long the old key holds.
    #[arg(long = "for", value_name = "TIME", default_value = "30d")]
    pub(crate) how_long: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What a new client may do.
#[derive(Debug, Args)]
pub(crate) struct RuleArgs {
    /// What it may open, with commas between.
    #[arg(long, required = true, value_delimiter = ',', value_name = "SERVICES")]
    pub(crate) allow: Vec<String>,
    /// Longest lifetime to ask for [default: 1h].
    #[arg(long, value_name = "TIME")]
    pub(crate) max_lifetime: Option<String>,
    /// Network to knock from [default: any].
    #[arg(long = "source", value_name = "NETWORK")]
    pub(crate) sources: Vec<String>,
    /// Only knocks that name their source.
    #[arg(long)]
    pub(crate) require_bound_source: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-server invite laptop --allow ssh --host gw.example.org
  spa-server invite phone --allow ssh,web --expires 2h --qr

Prints one line for the client's user to run. It is a secret until it was used, and
works once: hand it over as you would a password. The client makes its key itself.")]
pub(crate) struct InviteArgs {
    /// What to call the client.
    pub(crate) name: ClientName,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// How long it holds, or until when.
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    pub(crate) expires: String,
    /// This server, as clients reach it [default: the full name].
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// What the client calls this server.
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// Show a QR code, terminal or not.
    #[arg(long, overrides_with = "no_qr")]
    pub(crate) qr: bool,
    /// Show no QR code.
    #[arg(long, overrides_with = "qr", hide = true)]
    pub(crate) no_qr: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// The client's name.
    pub(super) name: ClientName,
}

#[derive(Debug, Args)]
pub(super) struct LockOutArgs {
    /// The client's name.
    pub(super) name: ClientName,
    /// End its connections too.
    #[arg(long)]
    pub(super) cut: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The client's name.
    pub(super) name: ClientName,
    #[command(flatten)]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("which").required(true),
    after_help = "\
Example:
  spa-server client reset-replay laptop

Once a client knocked with a clock that was years ahead, only later knocks are taken.
This forgets that; knocks with the right time are taken again after the freshness
window. Knocks from the future that never arrived are fresh when their time comes, and
whoever kept them back can send them then: a new key for the client rules that out."
)]
pub(crate) struct ResetArgs {
    /// The client's name.
    #[arg(group = "which")]
    pub(crate) name: Option<ClientName>,
    /// All clients, and the barrier that stands after an unclean start.
    #[arg(long, group = "which")]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum GrantsCommand {
    /// Show what is open.
    #[command(after_help = "Example:\n  spa-server grants list --json")]
    List(Output),
    /// Close what is open, before its time.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).multiple(true),
    after_help = "\
Examples:
  spa-server grants revoke laptop
  spa-server grants revoke --source 192.0.2.7 --service ssh

A grant is revoked when it matches everything that is given. Connections that were made
live on, unless --cut is given. Revoking locks nobody out: see `spa-server client disable`."
)]
pub(crate) struct RevokeArgs {
    /// Those of this client.
    #[arg(group = "what")]
    pub(crate) client: Option<String>,
    /// Those of this address.
    #[arg(long, group = "what", value_name = "ADDRESS")]
    pub(crate) source: Option<IpAddr>,
    /// Those of this service, or port as in tcp/22, as it was asked for.
    #[arg(long, group = "what")]
    pub(crate) service: Option<Item>,
    /// All.
    #[arg(long, group = "what", conflicts_with_all = ["client", "source", "service"])]
    pub(crate) all: bool,
    /// End their connections too.
    #[arg(long)]
    pub(crate) cut: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true),
    after_help = "\
Examples:
  spa-server refuse 198.51.100.7
  spa-server refuse 2001:db8:5::/48 --for 1d --no-cut
  spa-server refuse --lift 198.51.100.7

What is open for it is revoked, its connections are ended, and whoever knocks from there
opens nothing until the time is over; knocks that close are taken. A longer time takes the
place of a shorter one. It holds over a restart of the daemon, not over a reboot."
)]
pub(crate) struct RefuseArgs {
    /// The address, or network.
    #[arg(group = "what", value_name = "SOURCE")]
    pub(crate) source: Option<Source>,
    /// For how long.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", conflicts_with_all = ["lift", "list"])]
    pub(crate) how_long: String,
    /// Let its connections live.
    #[arg(long, conflicts_with_all = ["lift", "list"])]
    pub(crate) no_cut: bool,
    /// Refuse this no more.
    #[arg(long, group = "what", value_name = "SOURCE", conflicts_with = "json")]
    pub(crate) lift: Option<Source>,
    /// Show who is refused.
    #[arg(long, group = "what")]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum GateCommand {
    /// Put the rules and sets in place, as the daemon does when it starts.
    Install(GateInstallArgs),
    /// Have a gate on trial stand for good.
    Confirm(ConfirmArgs),
    /// Show whether the gate is in place, and what it admits.
    #[command(after_help = "Example:\n  spa-server gate show")]
    Show(Output),
    /// Take all rules and sets away; needs no configuration.
    #[command(after_help = "Example:\n  spa-server gate remove")]
    Remove,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  spa-server gate install --trial 60s
  spa-server gate install

On trial, the kernel itself stops refusing when the time is over, whatever becomes of
the daemon and of this connection. `spa-server gate confirm` makes the gate stand for good.
Without --trial it does from the start. It takes the place of what another back-end has
installed before.")]
pub(crate) struct GateInstallArgs {
    /// Undo it after this time, unless it is confirmed.
    #[arg(long, value_name = "TIME")]
    pub(crate) trial: Option<String>,
    /// As the boot does: where one stood for good, and as it last did if the configuration is wrong.
    #[arg(long, conflicts_with = "trial")]
    pub(crate) boot: bool,
    /// Say what would be done, and do nothing.
    #[arg(long, conflicts_with_all = ["trial", "boot"])]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, Args)]
#[command(after_help = "\
Example, from a connection that was opened after the trial began:
  spa-server gate confirm

It refuses in the session that the trial was begun in: that you are still in there
does not show that you would get in again.")]
pub(crate) struct ConfirmArgs {
    /// On the machine's own console, where there is no connection.
    #[arg(long)]
    pub(crate) from_console: bool,
}
