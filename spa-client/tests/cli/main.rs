//! The command line, as the real binary.

#[cfg(test)]
mod commands;
#[cfg(unix)]
#[cfg(test)]
mod completions;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod json;
#[cfg(test)]
mod knock;
#[cfg(unix)]
#[cfg(test)]
mod man;
#[cfg(unix)]
#[cfg(test)]
mod manners;
#[cfg(test)]
mod support;
#[cfg(unix)]
#[cfg(test)]
mod terminal;
