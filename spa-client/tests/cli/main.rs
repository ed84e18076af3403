//! The command line, as the real binary.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod daily;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod knock;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod support;
