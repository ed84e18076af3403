//! Which tags there may be: a Bloom filter, as the kernel's side reads it. Pure.

use crate::large_list::with_room_for;

/// Words of a page: an element of the kernel's map, 4 KiB.
pub(super) const WORDS: usize = 512;
const BITS_OF_A_PAGE_LOG2: u32 = 15;
/// Bits for each tag; with [`FACTORS`] one word of noise in 400 passes.
const BITS_OF_A_TAG: usize = 16;
/// 16 MiB, a million clients.
const MOST_PAGES_LOG2: u32 = 12;
/// Odd, with bits all over: xxHash's primes. The high bits of the products choose the bits.
const FACTORS: [u32; 4] = [1, 0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];

/// One page of bits.
pub(super) type Page = [u64; WORDS];

/// How many pages there are: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pages_log2: u32,
}

impl Size {
    /// Room for so many tags. More can be put in; then more noise passes.
    pub(super) fn for_tags(tags: usize) -> Self {
        let pages = tags.saturating_mul(BITS_OF_A_TAG) >> BITS_OF_A_PAGE_LOG2;
        let pages_log2 = (0..MOST_PAGES_LOG2).find(|log2| pages < 1 << log2);
        Self { pages_log2: pages_log2.unwrap_or(MOST_PAGES_LOG2) }
    }

    pub(super) const fn pages(self) -> u32 {
        1 << self.pages_log2
    }

    /// By how much a product is shifted to choose a bit.
    pub(super) const fn shift(self) -> u32 {
        u32::BITS.saturating_sub(BITS_OF_A_PAGE_LOG2.saturating_add(self.pages_log2))
    }
}

/// The pages for tags that begin with these words.
pub(super) fn pages(size: Size, tags: impl Iterator<Item = u32>) -> Vec<Page> {
    let count = usize::try_from(size.pages()).unwrap_or_default();
    let mut pages = with_room_for(count);
    pages.resize(count, [0; WORDS]);
    for tag in tags {
        for factor in FACTORS {
            let bit = tag.wrapping_mul(factor) >> size.shift();
            let (at, word) = (bit >> BITS_OF_A_PAGE_LOG2, (bit >> 6) as usize % WORDS);
            let page = usize::try_from(at).ok().and_then(|at| pages.get_mut(at));
            if let Some(word) = page.and_then(|page| page.get_mut(word)) {
                *word |= 1 << (bit & 63);
            }
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_and_little_for_others() {
        for (tags, pages) in [(0, 1), (2_047, 1), (2_048, 2), (800_000, 512), (usize::MAX, 4_096)] {
            assert_eq!(Size::for_tags(tags).pages(), pages, "{tags}");
        }
        assert_eq!(Size::for_tags(0).shift(), 17);
        assert_eq!(Size::for_tags(usize::MAX).shift(), 5);
        // As full as it is made for: tags and noise are random numbers both.
        let random = |seed: u64| {
            let mut state = seed;
            std::iter::repeat_with(move || {
                // PCG's multiplier and increment.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                u32::try_from(state >> 32).unwrap()
            })
        };
        for tags in [2_047, 32_767] {
            let size = Size::for_tags(tags);
            let pages = pages(size, random(1).take(tags));
            let passes = |tag: u32| {
                FACTORS.iter().all(|factor| {
                    let bit = tag.wrapping_mul(*factor) >> size.shift();
                    let (page, bit) =
                        (bit >> BITS_OF_A_PAGE_LOG2, bit % (1 << BITS_OF_A_PAGE_LOG2));
                    pages[page as usize][bit as usize / 64] >> (bit % 64) & 1 == 1
                })
            };
            assert!(random(1).take(tags).all(passes));
            let noise = random(2).take(100_000).filter(|tag| passes(*tag)).count();
            assert!((100..500).contains(&noise), "{noise} of 100,000 pass {size:?}");
        }
    }
}
