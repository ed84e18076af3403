//! Frames of every link type: the first byte picks the type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spa_server::frame::{self, LinkType};

fuzz_target!(|input: &[u8]| {
    let Some((first, frame)) = input.split_first() else { return };
    let link = LinkType::ALL[usize::from(*first) % LinkType::ALL.len()];
    let Ok(datagram) = frame::parse(link, frame) else { return };

    let (begin, end) = (frame.as_ptr_range(), datagram.payload.as_ptr_range());
    assert!(begin.start <= end.start && end.end <= begin.end, "the payload is not of the frame");
    assert_eq!(datagram.source, datagram.source.to_canonical(), "a mapped source");
    assert_eq!(datagram.source.is_ipv4(), datagram.destination.is_ipv4());
    assert!(!datagram.source.is_multicast() && !datagram.source.is_unspecified());

    // What comes after the packet is padding.
    let padded = [frame, &[0xa5; 7]].concat();
    assert_eq!(frame::parse(link, &padded), Ok(datagram));
});
