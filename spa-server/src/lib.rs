//! The daemon of single-packet authorization, and the commands that administer it.

pub mod capture;
pub mod cli;
mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod frame;
pub mod gate;
pub mod grants;
pub mod limits;
pub mod policy;
pub mod process;
