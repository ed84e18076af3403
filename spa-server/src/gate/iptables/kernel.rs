//! What the default back-end has the tools do: one method, one run of a tool, or a few. Which
//! tool is asked for what, how its complaints are told apart, is known here and nowhere else.

use crate::gate::saved::Saved;
use crate::gate::tools::{LEGACY, NFT};
use crate::gate::types::{Connection, Family};
use crate::gate::{GateError, MissingTool, Tools};
use crate::netlink::conntrack::{Conntrack, Tuple};
use crate::netlink::nft::{Nft, TableFamily};
use crate::process::{ProcessError, Run};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a batch is tried whose tool says that it was busy (exit code 4).
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
const BUSY: i32 = 4;
/// The chains of ours, each with its table, through which packets come to all others.
const ENTRIES: [(&str, &str); 6] = [
    ("mangle", "SPA-GUARD"),
    ("filter", "SPA-INPUT"),
    ("filter", "SPA-FORWARD"),
    ("filter", "SPA-CUT"),
    ("nat", "SPA-NAT"),
    ("nat", "SPA-MASQUERADE"),
];

/// The kernel's firewall, by way of the tools.
#[derive(Debug)]
pub(super) struct Kernel {
    tools: Tools,
    known: Mutex<Option<Known>>,
}

/// What the tools said that they are.
#[derive(Debug)]
struct Known {
    variant: Variant,
    /// The programs that their paths led to.
    programs: [Option<PathBuf>; 4],
}

/// Which of the kernel's two rule engines the tools speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    /// Whether a gate of ours may stand there. The kernel is asked, so that no tool has to be run
    /// where there is nothing.
    pub(super) fn may_hold_a_gate(self, family: Family) -> bool {
        match self {
            Self::Nft => nft_may_hold_a_gate(family),
            Self::Legacy => legacy_is_in_use(family),
        }
    }
}

impl Kernel {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, known: Mutex::default() }
    }

    /// The same kernel by the tools of each variant of iptables that is in use, if they are there.
    pub(super) fn variants(
        &self,
        family: Family,
    ) -> impl Iterator<Item = (Variant, Result<Self, MissingTool>)> {
        [(Variant::Nft, NFT), (Variant::Legacy, LEGACY)]
            .into_iter()
            .filter(move |(variant, _)| *variant == Variant::Nft || legacy_is_in_use(family))
            .map(|(variant, tools)| (variant, self.tools.with_variant(&tools).map(Self::new)))
    }

    /// Which variant the tools are. What `iptables` stands for may be changed at any time, so they
    /// are asked.
    pub(super) async fn ask_variant(&self) -> Result<Variant, GateError> {
        // Before: what is changed meanwhile is seen later.
        let programs = self.programs();
        let mut found = Vec::new();
        for path in self.tools.of_iptables() {
            found.push((path, variant_of(path).await?));
        }
        let is = |wanted: Variant| found.iter().all(|(_, variant)| *variant == wanted);
        let Some(variant) = Variant::BOTH.into_iter().find(|variant| is(*variant)) else {
            let list: Vec<_> = found
                .iter()
                .map(|(path, variant)| format!("{} is {}", path.display(), variant.as_str()))
                .collect();
            return Err(GateError::MixedVariants(list.join(", ")));
        };
        *self.known() = Some(Known { variant, programs });
        Ok(variant)
    }

    /// What the tools said when they were asked last, if no others have come in their place.
    pub(super) fn known_variant(&self) -> Option<Variant> {
        let known = self.known();
        let known = known.as_ref().filter(|known| known.programs == self.programs())?;
        Some(known.variant)
    }

    /// Which variant the tools are; they are asked only when others have come in their place, which
    /// costs next to nothing.
    pub(super) async fn variant(&self) -> Result<Variant, GateError> {
        match self.known_variant() {
            Some(variant) => Ok(variant),
            None => self.ask_variant().await,
        }
    }

    /// Which variant the tool is that reads the rules of a family.
    pub(super) async fn ask_variant_of(&self, family: Family) -> Result<Variant, GateError> {
        variant_of(self.save_tool(family)).await
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All the same program, most often: it goes by the name that it is called.
    fn programs(&self) -> [Option<PathBuf>; 4] {
        self.tools.of_iptables().map(|path| path.canonicalize().ok())
    }

    fn save_tool(&self, family: Family) -> &Path {
        match family {
            Family::V4 => &self.tools.iptables_save,
            Family::V6 => &self.tools.ip6tables_save,
        }
    }

    pub(super) async fn saved(&self, family: Family) -> Result<Saved, GateError> {
        read_rules(self.save_tool(family)).await
    }

    pub(super) async fn restore(&self, family: Family, batch: &str) -> Result<(), GateError> {
        let path = match family {
            Family::V4 => &self.tools.iptables_restore,
            Family::V6 => &self.tools.ip6tables_restore,
        };
        let mut tries = 1;
        loop {
            let run = Run::new(path, &["--noflush", "-w", "5"]).stdin(batch);
            match run.output().await {
                Ok(_) => return Ok(()),
                Err(error) if error.exit_code() == Some(BUSY) && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Err(error) => return Err(doing("write the rules")(error)),
            }
        }
    }

    /// Enters established connections into connection tracking; says how many.
    pub(super) fn enter(connections: &[Connection]) -> Result<u32, GateError> {
        let mut conntrack = Conntrack::open()?;
        for Connection { transport, peer, local } in connections {
            // One that is known the other way round this host began: the peer's packets are
            // answers.
            conntrack.enter(&Tuple {
                transport: *transport,
                source: *peer,
                destination: *local,
            })?;
        }
        Ok(u32::try_from(connections.len()).unwrap_or(u32::MAX))
    }

    /// All chains and rules of nftables, as JSON; none if there is nothing to list.
    pub(super) async fn nft_ruleset(&self) -> Result<Option<String>, GateError> {
        let json = Run::new(self.tools.need_nft()?, &["-j", "-t", "list", "ruleset"])
            .output()
            .await
            .map_err(doing("list the rules of nftables"))?;
        Ok(Some(json).filter(|json| !json.trim().is_empty()))
    }

    /// The rules of iptables-legacy, where it has any: for when ours are in iptables-nft.
    pub(super) async fn legacy_rules(&self) -> Result<Vec<(Family, Saved)>, GateError> {
        let mut rules = Vec::new();
        for (family, name) in
            [(Family::V4, "iptables-legacy-save"), (Family::V6, "ip6tables-legacy-save")]
        {
            if legacy_is_in_use(family) {
                rules.push((family, read_rules(&Tools::find_legacy(name)?).await?));
            }
        }
        Ok(rules)
    }
}

/// Whether iptables-legacy has tables. The kernel is asked: the tool would load modules.
fn legacy_is_in_use(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
}

/// Whether iptables-nft has one of [`ENTRIES`]. What can't be known may be.
fn nft_may_hold_a_gate(family: Family) -> bool {
    let of = match family {
        Family::V4 => TableFamily::IP,
        Family::V6 => TableFamily::IP6,
    };
    let Ok(mut nft) = Nft::open() else { return true };
    ENTRIES.into_iter().any(|(table, chain)| {
        // A kernel without nf_tables refuses to say.
        nft.has_chain(of, table, chain).unwrap_or_else(|error| error.refusal().is_none())
    })
}

fn doing(doing: &'static str) -> impl Fn(ProcessError) -> GateError {
    move |source| GateError::Tool { doing, source }
}

async fn variant_of(tool: &Path) -> Result<Variant, GateError> {
    let version = Run::new(tool, &["--version"]).output().await;
    let version = version.map_err(doing("ask a tool for its version"))?;
    Ok(if version.contains("(nf_tables)") { Variant::Nft } else { Variant::Legacy })
}

async fn read_rules(path: &Path) -> Result<Saved, GateError> {
    let text = Run::new(path, &[]).output().await.map_err(doing("read the rules"))?;
    Saved::parse(&text).map_err(|what| GateError::Unreadable { tool: "iptables-save", what })
}
