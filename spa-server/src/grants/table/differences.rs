//! In what the kernel differs from the table, as it is told to people: what is only rounded, or
//! ends in this moment, is no difference.

use super::{GrantTable, elements, seconds_until};
use crate::clock::BootMicros;
use crate::gate::{Element, LiveElement};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// The kernel's times and ours differ by this much at most when all is well: both are rounded, and
/// what is moved from set to set is given a second more.
const ROUNDING: u32 = 2;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// How many live grants the kernel has lost, or part of them.
    pub grants: usize,
    /// What it admits that no grant needs.
    pub surplus: Vec<Element>,
    /// What it admits for another time than the live grants need.
    pub retimed: Vec<Element>,
}

impl Differences {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self == &Self::default()
    }
}

impl GrantTable {
    /// What of the kernel, which admitted this at some moment between `asked` and `answered`, is
    /// not as it has to be. What is for one connection and gone was used ([`Self::take_used`]),
    /// and its time is left as it is.
    pub fn differences(
        &self,
        asked: BootMicros,
        answered: BootMicros,
        kernel: &[LiveElement],
    ) -> Differences {
        let held: HashMap<_, _> =
            kernel.iter().map(|live| (live.element, live.seconds_left)).collect();
        // The kernel's timer may be a moment ahead.
        let soon = answered.saturating_add(Duration::from_secs(1));
        let is_lost = |element: &Element| {
            !held.contains_key(element)
                && !self.single.contains(element)
                && self.until(soon, *element).is_some()
        };
        let is_right = |until, left: u32| {
            let (most, least) = (seconds_until(asked, until), seconds_until(answered, until));
            (least..=most.saturating_add(ROUNDING).saturating_add(ROUNDING))
                .contains(&left.saturating_add(ROUNDING))
        };
        let (mut surplus, mut retimed) = (BTreeSet::new(), BTreeSet::new());
        for (element, left) in &held {
            match self.until(asked, *element) {
                // Over, and not withdrawn yet: the next one that looks for such has it withdrawn.
                None if self.needs.contains_key(element) => {}
                None => drop(surplus.insert(*element)),
                Some(until) if !self.single.contains(element) && !is_right(until, *left) => {
                    retimed.insert(*element);
                }
                Some(_) => {}
            }
        }
        let lost = |grant: &&super::Grant| elements(grant).any(|element| is_lost(&element));
        Differences {
            grants: self.grants.values().filter(lost).count(),
            surplus: surplus.into_iter().collect(),
            retimed: retimed.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grants::{Grant, GrantKey};
    use crate::service::Connections;
    use spa_proto::{ClientId, Nonce, UnixMicros};

    fn at(millis: u64) -> BootMicros {
        BootMicros(millis * 1_000)
    }

    fn grant(client: u8, service: &str, ports: &str, until: u64) -> Grant {
        Grant {
            key: GrantKey {
                client: ClientId([client; 32]),
                source: "192.0.2.7".parse().unwrap(),
                service: service.parse().unwrap(),
            },
            ports: vec![ports.parse().unwrap()],
            connections: Connections::Any,
            opened: UnixMicros(0),
            expires: at(until),
            request: Nonce([0; 24]).into(),
        }
    }

    fn live(ports: &str, seconds_left: u32) -> LiveElement {
        let (source, ports) = ("192.0.2.7".parse().unwrap(), ports.parse().unwrap());
        LiveElement { element: Element { source, ports }, seconds_left }
    }

    fn names(elements: &[Element]) -> Vec<String> {
        elements.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_lost_too_much_or_for_another_time_is_told() {
        let mut table = GrantTable::new();
        let _ = table.open(at(0), grant(1, "ssh", "tcp/22", 60_000));
        // Two need it: the later end counts, and both lose it.
        let _ = table.open(at(0), grant(2, "ssh", "tcp/22", 20_000));
        let _ = table.open(at(0), grant(1, "web", "tcp/443", 60_000));
        let of = |kernel: &[LiveElement]| table.differences(at(10_000), at(10_000), kernel);
        assert!(of(&[live("tcp/22", 50), live("tcp/443", 49)]).is_none());

        let lost = of(&[live("tcp/443", 50)]);
        assert_eq!(lost, Differences { grants: 2, ..Differences::default() });
        let surplus = of(&[live("tcp/22", 50), live("tcp/80", 9), live("tcp/443", 50)]);
        assert_eq!(
            (surplus.grants, names(&surplus.surplus)),
            (0, vec!["tcp/80 from 192.0.2.7".into()])
        );
        // As many, but others.
        let other = of(&[live("tcp/22", 50), live("tcp/80", 9)]);
        assert_eq!((other.grants, other.surplus.len(), other.retimed.len()), (1, 1, 0));
        for wrong in [0, 10, 90] {
            let retimed = of(&[live("tcp/22", wrong), live("tcp/443", 50)]);
            assert_eq!(names(&retimed.retimed), ["tcp/22 from 192.0.2.7"], "{wrong}");
        }
    }

    #[test]
    fn what_is_rounded_or_ends_at_this_moment_is_no_difference() {
        let mut table = GrantTable::new();
        let _ = table.open(at(0), grant(1, "ssh", "tcp/22", 60_000));
        for asked in (0..59_000).step_by(137) {
            // However long the answer takes, and whenever in between the kernel looked.
            for took in [0, 300, 3_000] {
                let answered = (asked + took).min(59_000);
                for looked in [asked, answered] {
                    let left = u32::try_from((60_000 - looked) / 1_000).unwrap();
                    for left in [left, left + 1] {
                        let seen =
                            table.differences(at(asked), at(answered), &[live("tcp/22", left)]);
                        assert!(seen.is_none(), "{asked} {took} {left}: {seen:?}");
                    }
                }
            }
        }
        assert!(table.differences(at(59_000), at(59_000), &[]).is_none());
        assert_eq!(table.differences(at(58_000), at(58_900), &[]).grants, 1);
        // Over, but not withdrawn yet: nobody else has put it there.
        let after = |table: &GrantTable| {
            table.differences(at(60_000), at(60_000), &[live("tcp/22", 1)]).surplus.len()
        };
        assert_eq!(after(&table), 0);
        let _ = table.expire(at(60_000));
        assert_eq!(after(&table), 1);
    }

    #[test]
    fn what_is_for_one_connection_is_too_much_without_a_grant_only() {
        let mut table = GrantTable::new();
        let one = Grant { connections: Connections::One, ..grant(1, "desk", "tcp/5900", 60_000) };
        let _ = table.open(at(0), one);
        let of = |table: &GrantTable, kernel: &[LiveElement]| {
            table.differences(at(1_000), at(1_000), kernel)
        };
        for kernel in [&[][..], &[live("tcp/5900", 59)], &[live("tcp/5900", 5)]] {
            assert!(of(&table, kernel).is_none(), "{kernel:?}");
        }
        assert_eq!(table.take_used(at(1_000), &[]).len(), 1);
        assert_eq!(of(&table, &[live("tcp/5900", 59)]).surplus.len(), 1);
    }
}
