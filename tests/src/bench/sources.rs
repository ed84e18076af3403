//! Who is granted something. Pure.
//!
//! All addresses lie in networks that no host of the lab has; the owner plays all of them.

use super::station::GUARDED;
use crate::lab::Family;
use anyhow::Result;
use spa_server::gate::{Change, Element};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// No grant ends during a run.
const SECONDS: u32 = 7200;

/// Disjoint ranges of addresses, each with room for a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Pool {
    /// The grants that are there.
    Present,
    /// The grants whose cost is measured.
    Measured,
    /// Those who send granted packets.
    Senders,
    /// Those who are never granted anything.
    Strangers,
}

/// The `n`-th address of a pool.
pub(super) fn source(pool: Pool, family: Family, n: usize) -> IpAddr {
    // 100.64.0.0/10 (RFC 6598) has 22 bits: two for the pool, twenty for the number.
    let number = u32::try_from(n).unwrap_or_default() & 0x000f_ffff;
    let low = (pool as u32) << 20 | number;
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(100, 64, 0, 0)) | low).into(),
        Family::V6 => {
            let network = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 0);
            // Every number a /64 of its own, as clients of the real world have.
            Ipv6Addr::from_bits(network.to_bits() | u128::from(low) << 64 | 1).into()
        }
    }
}

/// What a grant of the guarded port to that address is in the kernel.
fn element(source: IpAddr) -> Result<Element> {
    Ok(Element { source: source.into(), ports: format!("tcp/{GUARDED}").parse()? })
}

/// The changes that admit so many addresses, from the `first` on.
pub(super) fn admit(pool: Pool, family: Family, first: usize, count: usize) -> Result<Vec<Change>> {
    (first..first + count)
        .map(|n| Ok(Change::Admit { element: element(source(pool, family, n))?, seconds: SECONDS }))
        .collect()
}

/// The changes that undo these.
pub(super) fn withdraw(changes: &[Change]) -> Vec<Change> {
    changes.iter().map(|change| Change::Withdraw { element: change.element() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_and_numbers_have_addresses_of_their_own() {
        let at = |pool, family, n| source(pool, family, n).to_string();
        assert_eq!(at(Pool::Present, Family::V4, 0), "100.64.0.0");
        assert_eq!(at(Pool::Present, Family::V4, 99_999), "100.65.134.159");
        assert_eq!(at(Pool::Measured, Family::V4, 1), "100.80.0.1");
        assert_eq!(at(Pool::Strangers, Family::V4, 0xf_ffff), "100.127.255.255");
        assert_eq!(at(Pool::Senders, Family::V6, 1), "fd64:0:20:1::1");
    }

    #[test]
    fn what_was_admitted_is_withdrawn() {
        let admitted = admit(Pool::Measured, Family::V6, 5, 2).unwrap();
        let undone = withdraw(&admitted);
        assert_eq!(undone.len(), 2);
        assert!(undone.iter().zip(&admitted).all(|(a, b)| a.element() == b.element()));
    }
}
