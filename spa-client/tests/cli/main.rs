//! The command line, as the real binary.

#[cfg(test)]
mod commands;
#[cfg(unix)]
#[cfg(test)]
mod completions;
#[cfg(test)]
mod daily;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod examples;
#[cfg(all(test, unix))]
mod export;
#[cfg(test)]
mod json;
#[cfg(all(test, unix))]
mod keys;
#[cfg(test)]
mod knock;
#[cfg(all(test, unix))]
mod man;
#[cfg(all(test, unix))]
mod manners;
#[cfg(all(test, unix))]
mod screen;
#[cfg(all(test, target_os = "linux"))]
mod secret_service;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod support;
#[cfg(all(test, unix))]
mod terminal;
