//! Why the gate could not do what was asked.

use super::choice::PassedOver;
use super::hook::LedgerError;
use super::tools::MissingTool;
use super::types::{Backend, Element, Family, MAX_ELEMENT_SECONDS};
use crate::config::Problem;
use crate::helper::HelperError;
use crate::netlink::NetlinkError;
use crate::process::ProcessError;
use std::io;

/// Why the gate could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A tool is not there.
    #[error(transparent)]
    Missing(#[from] MissingTool),
    /// A back-end that isn't there.
    #[error("there is no back-end {0} here")]
    NoSuchBackend(Backend),
    /// No back-end at all.
    #[error(
        "no back-end of the gate works here; {}. Install one of them, as with 'apt install iptables', or write backend = \"hook\" and your own commands",
        list(.0)
    )]
    NoBackend(Vec<PassedOver>),
    /// Rules of ours that can't be reached any more.
    #[error(
        "an earlier gate of {of} still hides the ports, and the tools that could change it are missing; install them again with 'apt install {of}', and take it away by `spa-server gate remove` if another back-end is wanted"
    )]
    Stranded {
        /// The Debian package that has the tools.
        of: &'static str,
    },
    /// Where no tools can look, rules of ours may stand.
    #[error("a gate may be left in {variant} ({family}), which can't be looked at")]
    Unseen {
        /// The variant of iptables.
        variant: &'static str,
        /// IPv4 or IPv6.
        family: Family,
        /// What is missing.
        source: MissingTool,
    },
    /// A back-end that the configuration doesn't describe.
    #[error("backend = \"{0}\" needs its section [gate.{0}] in the configuration")]
    NotConfigured(Backend),
    /// What no such back-end can do.
    #[error("the back-end {backend} can't {what}")]
    Unable {
        /// The back-end.
        backend: Backend,
        /// What it can't do.
        what: &'static str,
    },
    /// A hook command failed.
    #[error("the hook command to {action} {element} failed")]
    Hook {
        /// What it was to do: open, refresh or close.
        action: &'static str,
        /// What it was to be done to.
        element: Element,
        /// How it failed.
        source: ProcessError,
    },
    /// An opening that was not begun.
    #[error("{0} was not changed: a hook command hung, and this one would have come after it")]
    HookHung(Element),
    /// A closing that has failed before.
    #[error("{element} is not closed yet: {failure}; it is tried again")]
    HookCloses {
        /// What is to be closed.
        element: Element,
        /// Why it failed the last time.
        failure: String,
    },
    /// A hook command that is not there, or that others could change.
    #[error("a hook command can't be used: {0}")]
    HookProgram(Problem),
    /// What the hook commands have opened can't be remembered or read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A tool failed while the gate did this.
    #[error("cannot {doing}")]
    Tool {
        /// What the gate was doing.
        doing: &'static str,
        /// How the tool failed.
        source: ProcessError,
    },
    /// A file of the kernel's could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A tool printed what the gate can't make sense of.
    #[error("cannot understand what {tool} printed: {what}; is its version too new or too old?")]
    Unreadable {
        /// The tool.
        tool: &'static str,
        /// What was wrong.
        what: String,
    },
    /// The rule tools speak to different firewalls of the kernel.
    #[error(
        "the iptables tools don't belong together: {0}; choose one variant for all of them with update-alternatives, or name them all in [gate.tools]"
    )]
    MixedVariants(String),
    /// Someone else has a set of our name.
    #[error(
        "there is already a set named {name} that is not the gate's ({what}); rename it, or remove it with 'ipset destroy {name}'"
    )]
    ForeignSet {
        /// The set's name.
        name: String,
        /// What about it is not ours.
        what: String,
    },
    /// Someone else has a table of our name.
    #[error(
        "there is already a table inet spa that is not the gate's; rename it, or remove it with 'nft delete table inet spa'"
    )]
    ForeignTable,
    /// The kernel has no nftables, or not enough of it.
    #[error(
        "cannot {doing}: this kernel lacks nf_tables or a part of it; choose another back-end in [gate]"
    )]
    NoNftables {
        /// What the gate was doing.
        doing: &'static str,
        /// What the tool said.
        source: ProcessError,
    },
    /// The tool is too old.
    #[error(
        "{0} is too old for the nftables back-end, which needs nft 1.0; choose another back-end in [gate]"
    )]
    OldNft(String),
    /// The plan holds something impossible.
    #[error("cannot install this plan: {0}")]
    Plan(&'static str),
    /// In open mode: another chain drops what the gate accepts.
    #[error(
        "open mode can't work here: {}; an accept of the gate's doesn't reach beyond its own chain. Use mode = \"guard\" and accept the guarded ports in that chain, or drop in the chain filter INPUT of {ours}",
        .chains.join("; ")
    )]
    DroppedElsewhere {
        /// The chains, each with what it does.
        chains: Vec<String>,
        /// The firewall that our rules are in.
        ours: String,
    },
    /// The rules are not there after the tool said that it made them.
    #[error(
        "the rules that were written for {family} are not there: {what}; does another program rewrite the firewall?"
    )]
    NotThere {
        /// IPv4 or IPv6.
        family: Family,
        /// What is missing.
        what: String,
    },
    /// The table is not as it was written after the tool said that it made it.
    #[error(
        "the rules that were written are not there: {0}; does another program rewrite the firewall?"
    )]
    TableNotThere(String),
    /// An installation failed, and so did the way back.
    #[error(
        "{failure}; what was changed before could not be undone either: look for chains named SPA-* and sets named spa4 and spa6, or a table inet spa of nftables"
    )]
    NotUndone {
        /// Why the installation failed.
        failure: Box<GateError>,
        /// Why the way back failed.
        source: Box<GateError>,
    },
    /// The gate stays where it is: nobody has ordered it away who may.
    #[error("{0}")]
    NotOrdered(String),
    /// Nothing is installed.
    #[error("the gate is not installed")]
    NotInstalled,
    /// An element of a port that the plan doesn't name.
    #[error("refused to admit {0}: no service has this port")]
    NotGuarded(Element),
    /// An element that no set can hold.
    #[error("refused to admit {0}: the address is none that a packet can come from")]
    BadSource(Element),
    /// A time that no set can hold.
    #[error(
        "refused to admit {element} for {seconds} seconds: 1 to {MAX_ELEMENT_SECONDS} are possible"
    )]
    BadTime {
        /// What was to be admitted.
        element: Element,
        /// For how long.
        seconds: u32,
    },
    /// There is no room for another element.
    #[error(
        "{name} is full; what another program has put there is taken out within a second, so knock again; if it stays full, see `spa-server gate show`, and raise max-grants"
    )]
    Full {
        /// The set, or the chain, that is.
        name: String,
    },
    /// An element that would let in one connection of many addresses.
    #[error(
        "refused to admit {0}: one connection is let in from one address only, not from a network"
    )]
    OneOfMany(Element),
    /// The kernel's answer over netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What the gate helper said, or did not.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

fn list(passed_over: &[PassedOver]) -> String {
    passed_over.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
