//! The command line, as the real binary.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod daily;
#[cfg(test)]
mod dependencies;
#[cfg(all(test, unix))]
mod export;
#[cfg(all(test, unix))]
mod keys;
#[cfg(test)]
mod knock;
#[cfg(all(test, target_os = "linux"))]
mod secret_service;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod support;
#[cfg(all(test, unix))]
mod terminal;
