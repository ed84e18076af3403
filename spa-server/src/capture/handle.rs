//! One open capture: libpcap's handle, set up as this daemon needs it.

use super::interface::Interface;
use super::{CaptureError, CaptureSettings, filter};
use crate::frame::LinkType;
use pcap::{Active, BpfInstruction, Direction, Linktype};
use socket2::{SockFilter, SockRef};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};

/// An open, filtered, non-blocking capture.
pub(super) struct Handle {
    pub(super) pcap: pcap::Capture<Active>,
    pub(super) link: LinkType,
    /// The index that the interface had when the capture was opened; 0 for all.
    pub(super) index: u32,
}

impl Handle {
    pub(super) fn open(
        interface: &Interface,
        settings: &CaptureSettings,
    ) -> Result<Self, CaptureError> {
        let open_error = |source| CaptureError::Open { interface: interface.to_string(), source };

        let index = interface.index()?;
        if !interface.is_up()? {
            return Err(CaptureError::Down { name: interface.to_string() });
        }
        let inactive = pcap::Capture::from_device(interface.name()).map_err(open_error)?;
        let mut pcap = inactive
            .immediate_mode(true)
            .promisc(false)
            .snaplen(CaptureSettings::snap_length(settings.packet_length))
            .buffer_size(i32::try_from(settings.buffer_bytes).unwrap_or(i32::MAX))
            .open()
            .and_then(pcap::Capture::setnonblock)
            .map_err(open_error)?;

        if *interface == Interface::Any
            && let Err(error) = pcap.set_datalink(Linktype(LinkType::LinuxSll2.number()))
        {
            tracing::warn!(%error, "this libpcap can't tell which interface a knock came in on");
        }
        let link = LinkType::try_from(pcap.get_datalink().0)
            .map_err(|source| CaptureError::Link { interface: interface.to_string(), source })?;

        pcap.direction(Direction::In).map_err(open_error)?;
        set_filter(&mut pcap, interface, link, settings)?;

        // Between the question and the opening, another interface can have got the name.
        if interface.index()? != index {
            return Err(CaptureError::Replaced { name: interface.to_string() });
        }
        Ok(Self { pcap, link, index })
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.pcap.as_raw_fd()
    }
}

fn set_filter(
    pcap: &mut pcap::Capture<Active>,
    interface: &Interface,
    link: LinkType,
    settings: &CaptureSettings,
) -> Result<(), CaptureError> {
    let CaptureSettings { ports, packet_length, .. } = settings;
    let inbound = filter::inbound_expression(link, ports, *packet_length);
    let is_cooked = matches!(link, LinkType::LinuxSll | LinkType::LinuxSll2);
    let text =
        if is_cooked { inbound.clone() } else { filter::expression(link, ports, *packet_length) };
    if let Err(source) = pcap.filter(&text, true) {
        let interface = interface.to_string();
        return Err(CaptureError::Filter { interface, filter: text, source });
    }
    if !is_cooked && let Err(error) = replace_in_kernel(pcap, &inbound) {
        // What libpcap has set still holds.
        tracing::warn!(%interface, %error, "the kernel refused the better capture filter");
    }
    if let Some(filter) = &settings.kernel_filter
        && let Err(error) = filter.attach(pcap.as_fd(), link)
    {
        tracing::warn!(%interface, %error, "noise reaches this process: the kernel refused the prefilter here, and the capture filter remains; nobody is kept out by that");
    }
    tracing::debug!(%interface, ?link, filter = inbound, "capture opened");
    Ok(())
}

/// Puts a filter into the kernel that libpcap does not know of.
///
/// See [`filter::inbound_expression`]. Behind libpcap's back, this replaces libpcap's own program in
/// one step, and must be stricter than that one.
fn replace_in_kernel(pcap: &pcap::Capture<Active>, text: &str) -> io::Result<()> {
    let program = pcap.compile(text, true).map_err(io::Error::other)?;
    let program: Option<Vec<_>> = program.get_instructions().iter().map(instruction).collect();
    let program = program.ok_or_else(|| io::Error::other("libpcap's program can't be read"))?;
    SockRef::from(pcap).attach_filter(&program)
}

/// The fields of an instruction are private; its text has them: code, both jumps, operand.
fn instruction(instruction: &BpfInstruction) -> Option<SockFilter> {
    let text = instruction.to_string();
    let mut fields = text.split(' ');
    let code = fields.next()?.parse().ok()?;
    let jump_true = fields.next()?.parse().ok()?;
    let jump_false = fields.next()?.parse().ok()?;
    let operand = fields.next()?.parse().ok()?;
    Some(SockFilter::new(code, jump_true, jump_false, operand))
}
