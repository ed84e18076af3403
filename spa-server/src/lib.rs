//! The daemon of single-packet authorization, and the commands that administer it.

pub mod control;
pub mod limits;
pub mod policy;
