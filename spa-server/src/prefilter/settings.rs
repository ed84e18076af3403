//! What the daemon tells the kernel's side, but for the tags. Pure.

use super::bloom::Size;
use crate::capture::filter::MAX_PORTS;
use std::time::Duration;

/// Identities of the server: the present one, and the previous.
pub(super) const MAX_IDENTITIES: usize = 2;
/// The length of a UDP header, which the length field of UDP counts.
const UDP_HEADER: usize = 8;

/// What a knock looks like, which does not change.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The UDP ports of knocks: [`MAX_PORTS`] at the most.
    pub ports: Vec<u16>,
    /// Bytes of payload.
    pub packet_length: usize,
    /// Bytes of a frame that are handed over.
    pub snap_length: u32,
}

/// Bytes of `struct settings` of the kernel's side.
pub(super) const LENGTH: usize = 8 + 4 * 4 + 32 * MAX_IDENTITIES + 2 * MAX_PORTS;

/// `struct settings` of the kernel's side.
pub(super) struct Settings<'a> {
    /// Until then, by the time since boot.
    pub(super) until: Duration,
    pub(super) size: Size,
    pub(super) shape: &'a Shape,
    pub(super) masks: Vec<[u8; 32]>,
}

impl Settings<'_> {
    /// `None`: there are no ports, or more of them, or more identities, than there is room for.
    pub(super) fn bytes(&self) -> Option<[u8; LENGTH]> {
        let Shape { ports, packet_length, snap_length } = self.shape;
        let udp_length = u32::try_from(packet_length.checked_add(UDP_HEADER)?).ok()?;
        let until = u64::try_from(self.until.as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(until.to_ne_bytes());
        bytes.extend(self.size.shift().to_ne_bytes());
        bytes.extend(udp_length.to_ne_bytes());
        bytes.extend(snap_length.to_ne_bytes());
        bytes.extend(u32::try_from(self.masks.len()).ok()?.to_ne_bytes());
        let mut masks = self.masks.concat();
        masks.resize(32 * MAX_IDENTITIES, 0);
        bytes.extend(masks);
        let spare = ports.first()?;
        let ports = ports.iter().chain(std::iter::repeat(spare)).take(MAX_PORTS.max(ports.len()));
        bytes.extend(ports.flat_map(|port| port.to_ne_bytes()));
        bytes.try_into().ok()
    }
}
