//! The daemon of single-packet authorization, and the commands that administer it.

pub mod capture;
pub mod config;
pub mod control;
pub mod frame;
pub mod gate;
pub mod limits;
pub mod policy;
