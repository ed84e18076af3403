//! Bytes as they come, as lines. Pure.

/// A longer line is none of ours, and is passed over.
const LONGEST: usize = 256 * 1024;

/// The line that is not whole yet, and where it begins.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
    offset: u64,
    is_too_long: bool,
}

impl Lines {
    /// Begins in the middle of something, behind so many bytes.
    pub(super) fn behind(offset: u64) -> Self {
        Self { offset, ..Self::default() }
    }

    /// Takes what comes next; `each` gets the lines in it, without their ends, and how many bytes there
    /// are up to the end of each.
    pub(super) fn feed<E>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.offset =
                self.offset.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            let (piece, is_whole) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            self.is_too_long |= self.begun.len().saturating_add(piece.len()) > LONGEST;
            if self.is_too_long {
                self.begun = Vec::new();
            } else {
                self.begun.extend_from_slice(piece);
            }
            if is_whole {
                if !std::mem::take(&mut self.is_too_long) {
                    each(&self.begun, self.offset)?;
                }
                self.begun.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(Vec<u8>, u64)> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            let fed: Result<(), Infallible> = lines.feed(piece, |line, upto| {
                found.push((line.to_vec(), upto));
                Ok(())
            });
            fed.unwrap();
        }
        found
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_the_next_one_counts() {
        let long = vec![b'x'; LONGEST];
        let found = fed([&long[..], b"y", &long[..], b"\nshort\n", &long[..], b"\nnot whole"]);
        let end = u64::try_from(2 * LONGEST + 8).unwrap();
        let lengths: Vec<_> = found.iter().map(|(line, upto)| (line.len(), *upto)).collect();
        assert_eq!(lengths, [(5, end), (LONGEST, end + u64::try_from(LONGEST).unwrap() + 1)]);
    }

    proptest! {
        /// However it is cut, the same lines come.
        #[test]
        fn the_pieces_do_not_matter(text in "[a\n]{0,60}", size in 1_usize..9) {
            let whole = fed([text.as_bytes()]);
            prop_assert_eq!(&fed(text.as_bytes().chunks(size)), &whole);
            for (line, upto) in whole {
                let upto = usize::try_from(upto).unwrap();
                prop_assert_eq!(&text.as_bytes()[upto - line.len() - 1..upto - 1], &line[..]);
            }
        }
    }
}
