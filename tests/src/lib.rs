//! tmp
mod capture;
mod command;
mod frames;
mod lab;
mod probe;
mod programs;
mod wait;

pub use capture::{Capture, Packet};
pub use command::{Finished, Quoted, finish, finish_within};
pub use frames::{Frame, Ipv4, Ipv6};
pub use lab::{Family, Host, Lab};
pub use probe::{Listener, PortState};
pub use programs::{our_binary, program};
pub use wait::{DEADLINE, eventually, eventually_within};
