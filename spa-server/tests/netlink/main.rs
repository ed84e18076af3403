//! The netlink layer against the real kernel, with the usual tools as independent witnesses. Needs
//! root; everything happens in network namespaces of its own.

#[cfg(test)]
mod conntrack;
#[cfg(test)]
mod events;
#[cfg(test)]
mod ipset;
#[cfg(test)]
mod nft;
#[cfg(test)]
mod place;
#[cfg(test)]
mod sock_diag;
