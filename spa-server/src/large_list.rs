//! Lists that may be very long, and take no more memory than what is in them.
//!
//! When a block of up to 32 MiB is given back, glibc's malloc takes further ones of that size from its
//! heap (mallopt(3), `M_MMAP_THRESHOLD`), and what is given back there, it keeps. A larger block comes
//! from the kernel and goes back to it, always. So a long list gets the room of such a block: what is
//! not used of that takes no memory, since nobody has written there.

/// A little more than what glibc looks at.
const LARGE: usize = 33 * 1024 * 1024;
/// Shorter lists are all the same to it, as they don't come from the kernel (128 KiB).
const LONG: usize = 128 * 1024;

/// An empty list, with room for so many.
pub(crate) fn with_room_for<T>(count: usize) -> Vec<T> {
    let size = size_of::<T>();
    let is_long = count.saturating_mul(size) >= LONG;
    let large = LARGE.checked_div(size).unwrap_or_default();
    Vec::with_capacity(if is_long { count.max(large) } else { count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_has_the_room_of_a_large_block_and_a_short_one_has_not() {
        assert_eq!(with_room_for::<[u8; 64]>(0).capacity(), 0);
        assert_eq!(with_room_for::<[u8; 64]>(2_047).capacity(), 2_047);
        assert_eq!(with_room_for::<[u8; 64]>(2_048).capacity(), LARGE / 64);
        assert_eq!(with_room_for::<[u8; 64]>(600_000).capacity(), 600_000);
    }
}
