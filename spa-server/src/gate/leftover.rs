//! What of our gates stands in the kernel, whoever has made it and when: found over netlink, for
//! the tools that could list it may be gone, or hang.

use super::Tools;
use super::types::Backend;
use crate::netlink::ipset::Ipset;
use crate::netlink::nft::{Nft, TableFamily};
use crate::process::Run;

/// Whether rules or sets that a back-end of this kind has made stand in the kernel. Hook commands
/// and a dry run make none.
pub(super) async fn stands(backend: Backend, tools: &Tools) -> bool {
    match backend {
        Backend::Ipset | Backend::Iptables => has_sets() || has_chains(tools).await,
        Backend::Nftables => has_table(),
        Backend::Hook | Backend::DryRun | Backend::Auto => false,
    }
}

/// Sets tell of the rules that use them. One that no rule uses hides nothing: a flush of the rules
/// leaves it behind.
fn has_sets() -> bool {
    let is_used = |sets: &mut Ipset, name| {
        sets.info(name).is_ok_and(|found| found.is_some_and(|set| set.references > 0))
    };
    Ipset::open()
        .is_ok_and(|mut sets| ["spa4", "spa6"].into_iter().any(|name| is_used(&mut sets, name)))
}

/// Rules without sets can be seen if they are iptables-nft's.
async fn has_chains(tools: &Tools) -> bool {
    let Some(nft) = &tools.nft else { return false };
    let listed = Run::new(nft, &["list", "chains"]).output().await;
    listed.is_ok_and(|chains| chains.contains("SPA-GUARD"))
}

/// The chain that no packet goes through tells whose the table is.
fn has_table() -> bool {
    Nft::open()
        .is_ok_and(|mut nft| nft.has_chain(TableFamily::INET, "spa", "spa-server").unwrap_or(false))
}
