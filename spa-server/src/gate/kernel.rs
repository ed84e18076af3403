//! What the default back-end has the tools do: one method, one run of a tool, or a few. Which
//! tool is asked for what, how its complaints are told apart, is known here and nowhere else.

use super::foreign::{self, Dropper};
use super::render;
use super::saved::Saved;
use super::tools::{LEGACY, NFT};
use super::types::{Connection, Family, LiveElement};
use super::{GateError, Tools};
use crate::process::{ProcessError, Run};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How often a batch is tried whose tool says that it was busy (exit code 4).
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
const BUSY: i32 = 4;
/// `ipset` waits for no lock of others, and knocks wait for it.
const IPSET_LIMIT: Duration = Duration::from_secs(10);
/// How many connections are entered by one call of `conntrack`.
const CONNECTIONS_PER_CALL: usize = 64;

/// The kernel's firewall, by way of the tools.
#[derive(Debug)]
pub(super) struct Kernel {
    tools: Tools,
    variant: OnceCell<Variant>,
}

/// Which of the kernel's two rule engines the tools speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
}

/// What happened to a set, to be undone.
pub(super) struct SetChange {
    pub(super) family: Family,
    /// The size that it had; `None` if there was none.
    pub(super) before: Option<u32>,
}

impl Kernel {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, variant: OnceCell::new() }
    }

    /// The same kernel by the tools of each variant of iptables that is there and in use.
    pub(super) fn variants(&self, family: Family) -> impl Iterator<Item = Self> {
        [(Variant::Nft, NFT), (Variant::Legacy, LEGACY)]
            .into_iter()
            .filter(move |(variant, _)| *variant == Variant::Nft || legacy_is_in_use(family))
            .filter_map(|(_, tools)| self.tools.with_variant(&tools).ok())
            .map(Self::new)
    }

    pub(super) async fn variant(&self) -> Result<Variant, GateError> {
        self.variant.get_or_try_init(|| self.ask_variants()).await.copied()
    }

    async fn ask_variants(&self) -> Result<Variant, GateError> {
        let tools = &self.tools;
        let mut found = Vec::new();
        for path in [
            &tools.iptables_restore,
            &tools.ip6tables_restore,
            &tools.iptables_save,
            &tools.ip6tables_save,
        ] {
            let version = Run::new(path, &["--version"])
                .output()
                .await
                .map_err(doing("ask a tool for its version"))?;
            let is_nft = version.contains("(nf_tables)");
            found.push((path, if is_nft { Variant::Nft } else { Variant::Legacy }));
        }
        let (_, variant) = found[0];
        if found.iter().all(|(_, other)| *other == variant) {
            return Ok(variant);
        }
        let list: Vec<_> = found
            .iter()
            .map(|(path, variant)| format!("{} is {}", path.display(), variant.as_str()))
            .collect();
        Err(GateError::MixedVariants(list.join(", ")))
    }

    pub(super) async fn saved(&self, family: Family) -> Result<Saved, GateError> {
        read_rules(match family {
            Family::V4 => &self.tools.iptables_save,
            Family::V6 => &self.tools.ip6tables_save,
        })
        .await
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

    pub(super) async fn ipset(&self, what: &'static str, batch: &str) -> Result<(), GateError> {
        let run = Run::new(&self.tools.ipset, &["restore", "-exist"])
            .stdin(batch)
            .time_limit(IPSET_LIMIT);
        run.output().await.map(drop).map_err(|error| {
            if error.complaint().contains("is full") {
                let at_v6 = error.complaint().contains("spa6");
                let name = render::set_name(if at_v6 { Family::V6 } else { Family::V4 });
                return GateError::Full { name };
            }
            doing(what)(error)
        })
    }

    /// The size of a set of ours of this name, if there is one.
    async fn set_size(&self, family: Family, name: &'static str) -> Result<Option<u32>, GateError> {
        let listed = Run::new(&self.tools.ipset, &["list", "-t", name]).output().await;
        let text = match listed {
            Ok(text) => text,
            Err(error) if is_no_set(&error) => return Ok(None),
            Err(error) => return Err(doing("look for the set")(error)),
        };
        render::own_set_size(family, &text)
            .map(Some)
            .map_err(|what| GateError::ForeignSet { name, what })
    }

    pub(super) async fn elements(&self, family: Family) -> Result<Vec<LiveElement>, GateError> {
        let name = render::set_name(family);
        let save = Run::new(&self.tools.ipset, &["save", name]).time_limit(IPSET_LIMIT);
        let text = match save.output().await {
            Ok(text) => text,
            Err(error) if is_no_set(&error) => return Err(GateError::NotInstalled),
            Err(error) => return Err(doing("read the set")(error)),
        };
        Ok(render::read_elements(&text))
    }

    /// Makes the set, or gives it the size wanted; elements live on. A set that holds more than
    /// that keeps its size: without it the gate could not be installed, and the ports would stay
    /// hidden with nobody to open them until enough elements are over.
    pub(super) async fn make_set(
        &self,
        family: Family,
        size: u32,
    ) -> Result<Option<SetChange>, GateError> {
        let before = self.set_size(family, render::set_name(family)).await?;
        match before {
            Some(before) if before == size => return Ok(None),
            Some(_) => {
                let elements = self.elements(family).await?;
                if elements.len() > usize::try_from(size).unwrap_or(usize::MAX) {
                    return Ok(None);
                }
                self.discard_new_set(family).await?;
                let batch = render::resize_set(family, size, &elements);
                if let Err(error) = self.ipset("resize the set", &batch).await {
                    self.discard_new_set(family).await?;
                    return Err(error);
                }
            }
            None => {
                let batch = render::create_set(family, render::set_name(family), size);
                self.ipset("create the set", &batch).await?;
            }
        }
        Ok(Some(SetChange { family, before }))
    }

    /// Destroys what a resizing that failed has left.
    async fn discard_new_set(&self, family: Family) -> Result<(), GateError> {
        self.destroy_set(family, render::new_set_name(family)).await
    }

    /// Destroys the sets of a family; one of somebody else's that has a name of ours stays.
    pub(super) async fn destroy_sets(&self, family: Family) -> Result<(), GateError> {
        for name in [render::new_set_name(family), render::set_name(family)] {
            match self.destroy_set(family, name).await {
                Err(GateError::ForeignSet { .. }) => {}
                destroyed => destroyed?,
            }
        }
        Ok(())
    }

    async fn destroy_set(&self, family: Family, name: &'static str) -> Result<(), GateError> {
        if self.set_size(family, name).await?.is_none() {
            return Ok(());
        }
        match Run::new(&self.tools.ipset, &["destroy", name]).output().await {
            Err(error) if !is_no_set(&error) => Err(doing("destroy the set")(error)),
            _ => Ok(()),
        }
    }

    /// Enters established connections into connection tracking; says how many.
    pub(super) async fn enter(&self, connections: &[Connection]) -> Result<u32, GateError> {
        for some in connections.chunks(CONNECTIONS_PER_CALL) {
            // One call for many ends at the first that is there already. What it entered before
            // does no harm to the calls one by one that then follow.
            if some.len() > 1 {
                let lines: String =
                    some.iter().map(|one| render::enter_connection(one) + "\n").collect();
                let run = Run::new(&self.tools.conntrack, &["-R", "-"]).stdin(&lines);
                if run.output().await.is_ok() {
                    continue;
                }
            }
            for one in some {
                self.enter_one(one).await?;
            }
        }
        Ok(u32::try_from(connections.len()).unwrap_or(u32::MAX))
    }

    async fn enter_one(&self, connection: &Connection) -> Result<(), GateError> {
        let doing = doing("tell connection tracking of an established connection");
        match self.conntrack(&render::enter_connection(connection)).await {
            Err(error) if error.complaint().contains("exists") => {}
            other => return other.map_err(doing),
        }
        match self.conntrack(&render::confirm_connection(connection)).await {
            // There is none in this direction: then there is one that this host began, and the
            // peer's packets are answers.
            Err(error) if error.complaint().contains("0 flow entries") => Ok(()),
            other => other.map_err(doing),
        }
    }

    async fn conntrack(&self, args: &str) -> Result<(), ProcessError> {
        let args: Vec<_> = args.split(' ').collect();
        Run::new(&self.tools.conntrack, &args).output().await.map(drop)
    }

    pub(super) async fn nft_droppers(&self, variant: Variant) -> Result<Vec<Dropper>, GateError> {
        let json = Run::new(self.tools.need_nft()?, &["-j", "-t", "list", "ruleset"])
            .output()
            .await
            .map_err(doing("list the rules of nftables"))?;
        if json.trim().is_empty() {
            return Ok(Vec::new());
        }
        foreign::in_nft(&json, variant == Variant::Nft)
            .map_err(|what| GateError::Unreadable { tool: "nft", what })
    }

    /// The rules of iptables-legacy, when ours are in iptables-nft.
    pub(super) async fn legacy_droppers(
        &self,
        variant: Variant,
    ) -> Result<Vec<Dropper>, GateError> {
        let mut droppers = Vec::new();
        for (family, name) in
            [(Family::V4, "iptables-legacy-save"), (Family::V6, "ip6tables-legacy-save")]
        {
            if variant == Variant::Nft && legacy_is_in_use(family) {
                let saved = read_rules(&Tools::find_legacy(name)?).await?;
                droppers.extend(foreign::in_saved(family, "iptables-legacy", &saved));
            }
        }
        Ok(droppers)
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

fn doing(doing: &'static str) -> impl Fn(ProcessError) -> GateError {
    move |source| GateError::Tool { doing, source }
}

fn is_no_set(error: &ProcessError) -> bool {
    error.complaint().contains("does not exist")
}

async fn read_rules(path: &Path) -> Result<Saved, GateError> {
    let text = Run::new(path, &[]).output().await.map_err(doing("read the rules"))?;
    Saved::parse(&text).map_err(|what| GateError::Unreadable { tool: "iptables-save", what })
}
