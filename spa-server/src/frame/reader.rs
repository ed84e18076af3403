//! A reader over bytes of the network that can't read past their end.

use super::FrameError;

/// What is left of a frame.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    /// The next two bytes as a big-endian number.
    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The next byte, left where it is.
    pub(super) fn peek(&self) -> Result<u8, FrameError> {
        self.0.first().copied().ok_or(FrameError::Truncated)
    }

    /// All the bytes that are left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }
}
