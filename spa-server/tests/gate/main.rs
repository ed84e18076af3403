//! The gate against the real kernel: real tools, real packets, in network namespaces. Needs root.
//!
//! Every test of the iptables back-end runs with both variants of iptables. Each "nothing gets
//! through" stands beside a "this gets through" on the same path.

#[cfg(test)]
mod host;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod nftables;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod services;
#[cfg(test)]
mod sets;
#[cfg(test)]
mod standing;
#[cfg(test)]
mod variants;
