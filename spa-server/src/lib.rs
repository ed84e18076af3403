//! Under construction.
pub mod capture;
pub mod frame;
