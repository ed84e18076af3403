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
#[cfg(test)]
#[cfg(unix)]
mod export;
#[cfg(test)]
mod json;
#[cfg(test)]
#[cfg(unix)]
mod keys;
#[cfg(test)]
mod knock;
#[cfg(test)]
#[cfg(unix)]
mod man;
#[cfg(test)]
#[cfg(unix)]
mod manners;
#[cfg(test)]
#[cfg(unix)]
mod screen;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod secret_service;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod support;
#[cfg(test)]
#[cfg(unix)]
mod terminal;
