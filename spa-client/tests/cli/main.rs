//! The command line, as the real binary.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
#[cfg(unix)]
mod export;
#[cfg(test)]
#[cfg(unix)]
mod keys;
#[cfg(test)]
mod knock;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod secret_service;
#[cfg(test)]
mod support;
#[cfg(test)]
#[cfg(unix)]
mod terminal;
