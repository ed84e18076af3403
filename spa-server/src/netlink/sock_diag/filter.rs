//! The program by which the kernel picks sockets by their local port. Pure.
//!
//! Source: `inet_diag_bc_run` and `inet_diag_bc_audit` in linux/net/ipv4/inet_diag.c. A program
//! takes a socket if it runs exactly to its end; a jump to four bytes behind it refuses.

use std::ops::RangeInclusive;

/// `INET_DIAG_BC_JMP`: goes on at `no`.
const JUMP: u8 = 1;
/// `INET_DIAG_BC_S_GE`: the local port is at least the one in the next operation.
const AT_LEAST: u8 = 2;
/// `INET_DIAG_BC_S_LE`
const AT_MOST: u8 = 3;

/// `struct inet_diag_bc_op`
const OPERATION_BYTES: u16 = 4;
/// A comparison takes the place of two operations; the second holds the port.
const COMPARISON_BYTES: u16 = 2 * OPERATION_BYTES;
/// Two comparisons and a jump to the end.
const RANGE_BYTES: u16 = 2 * COMPARISON_BYTES + OPERATION_BYTES;
/// Jumps reach 65,535 bytes.
const MAX_RANGES: usize = 3000;

/// Takes the sockets whose local port lies in one of these ranges; none if there are too many
/// ranges for a program, or none at all.
pub(super) fn program(ports: &[RangeInclusive<u16>]) -> Option<Vec<u8>> {
    if ports.is_empty() || ports.len() > MAX_RANGES {
        return None;
    }
    let mut program = Vec::new();
    for (after, range) in (0..ports.len()).rev().zip(ports) {
        // Behind the last range there is no jump, and who fails it fails the program.
        let after = u16::try_from(after).ok()?;
        let last = after == 0;
        let to_end = after.checked_mul(RANGE_BYTES)?;
        let to_next = RANGE_BYTES;
        push(&mut program, AT_LEAST, COMPARISON_BYTES, to_next);
        push(&mut program, 0, 0, *range.start());
        push(&mut program, AT_MOST, COMPARISON_BYTES, to_next.checked_sub(COMPARISON_BYTES)?);
        push(&mut program, 0, 0, *range.end());
        if !last {
            // The last range is shorter by its jump.
            push(&mut program, JUMP, OPERATION_BYTES, to_end);
        }
    }
    Some(program)
}

fn push(program: &mut Vec<u8>, code: u8, yes: u16, no: u16) {
    // `yes` is a byte, and 4 or 8 here.
    let [yes, _] = yes.to_le_bytes();
    let [first, second] = no.to_ne_bytes();
    program.extend([code, yes, first, second]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel does with a program.
    fn takes(program: &[u8], port: u16) -> bool {
        let operation = |at: usize| {
            let bytes = &program[at..at + 4];
            (bytes[0], usize::from(bytes[1]), u16::from_ne_bytes([bytes[2], bytes[3]]))
        };
        let (mut at, length) = (0, program.len());
        while at < length {
            let (code, yes, no) = operation(at);
            let holds = match code {
                JUMP => false,
                AT_LEAST => port >= operation(at + 4).2,
                AT_MOST => port <= operation(at + 4).2,
                other => panic!("operation {other}"),
            };
            at += if holds { yes } else { usize::from(no) };
            assert!(at <= length + 4, "beyond the end");
        }
        at == length
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn one_range_is_two_comparisons() {
        assert_eq!(
            program(&[22..=23]).unwrap(),
            [2, 8, 20, 0, 0, 0, 22, 0, 3, 8, 12, 0, 0, 0, 23, 0]
        );
        assert_eq!(program(&[]), None);
    }

    proptest! {
        #[test]
        fn the_program_takes_what_lies_in_a_range(
            ranges in proptest::collection::vec((any::<u16>(), 0u16..2000), 1..20),
            ports in proptest::collection::vec(any::<u16>(), 20),
        ) {
            let ranges: Vec<_> =
                ranges.into_iter().map(|(low, more)| low..=low.saturating_add(more)).collect();
            let program = program(&ranges).unwrap();
            let edges = ranges.iter().flat_map(|range| {
                [*range.start(), *range.end(), range.start().saturating_sub(1), range.end().saturating_add(1)]
            });
            for port in ports.into_iter().chain(edges) {
                let wanted = ranges.iter().any(|range| range.contains(&port));
                prop_assert_eq!(takes(&program, port), wanted);
            }
        }
    }

    #[test]
    fn the_longest_program_still_jumps_to_its_end() {
        let ranges = vec![5..=6; MAX_RANGES];
        assert!(takes(&program(&ranges).unwrap(), 5));
        assert!(!takes(&program(&ranges).unwrap(), 7));
        assert_eq!(program(&vec![5..=6; MAX_RANGES + 1]), None);
    }
}
