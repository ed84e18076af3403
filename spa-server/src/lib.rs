//! Under construction.

pub mod gate;
pub mod grants;
pub mod process;
