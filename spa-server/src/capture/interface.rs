//! Which interfaces there are, by name and by index.

use super::{CaptureError, Interfaces};
use nix::errno::Errno;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use std::collections::BTreeMap;
use std::fmt;

/// libpcap's name for all interfaces at once.
const ANY: &str = "any";

/// What one thread captures on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Interface {
    Any,
    Named(String),
}

impl Interface {
    /// The interfaces of the settings, each once; "any" stands for all the others.
    pub(super) fn list(interfaces: &Interfaces) -> Result<Vec<Self>, CaptureError> {
        let names = match interfaces {
            Interfaces::All => return Ok(vec![Self::Any]),
            Interfaces::Named(names) if names.is_empty() => return Err(CaptureError::NoInterfaces),
            Interfaces::Named(names) if names.iter().any(|name| name == ANY) => {
                return Ok(vec![Self::Any]);
            }
            Interfaces::Named(names) => names,
        };
        let mut list: Vec<Self> = Vec::new();
        for name in names {
            let interface = Self::Named(name.clone());
            if !list.contains(&interface) {
                list.push(interface);
            }
        }
        Ok(list)
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Any => ANY,
            Self::Named(name) => name,
        }
    }

    /// The index of the interface of that name, now; 0 for all. An error if there is none.
    pub(super) fn index(&self) -> Result<u32, CaptureError> {
        let Self::Named(name) = self else { return Ok(0) };
        match if_nametoindex(name.as_str()) {
            Ok(index) => Ok(index),
            Err(Errno::ENODEV | Errno::ENXIO | Errno::EINVAL) => Err(CaptureError::Missing {
                name: name.clone(),
                existing: existing().map(|all| all.into_keys().collect()).unwrap_or_default(),
            }),
            Err(errno) => Err(self.system(errno)),
        }
    }

    /// Whether it is up. "All" always is.
    pub(super) fn is_up(&self) -> Result<bool, CaptureError> {
        let Self::Named(name) = self else { return Ok(true) };
        let all = existing().map_err(|errno| self.system(errno))?;
        Ok(all.get(name).is_some_and(|flags| flags.contains(InterfaceFlags::IFF_UP)))
    }

    fn system(&self, errno: Errno) -> CaptureError {
        CaptureError::System { interface: self.to_string(), source: errno.into() }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All interfaces; each has at least its link layer address in the kernel's list.
fn existing() -> Result<BTreeMap<String, InterfaceFlags>, Errno> {
    let addresses = nix::ifaddrs::getifaddrs()?;
    Ok(addresses.map(|address| (address.interface_name, address.flags)).collect())
}
