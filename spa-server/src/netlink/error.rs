//! Why the kernel could not be asked, or what it refused.

use super::ipset::FailedChange;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

/// Why something over netlink did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// There is no socket to ask with.
    #[error("cannot open a netlink socket to {subsystem}; does this kernel have it?")]
    Open {
        /// What of the kernel was to be asked.
        subsystem: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The request could not be sent, or the answer not be read.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: Cow<'static, str>,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not answer in time. Whether it did what was asked is unknown.
    #[error("cannot {doing}: the kernel gave no answer for {} s", .limit.as_secs())]
    Silent {
        /// What was being done.
        doing: Cow<'static, str>,
        /// How long it had.
        limit: Duration,
    },
    /// Answers were lost (`ENOBUFS`). Whether the kernel did what was asked is unknown.
    #[error("cannot {doing}: answers of the kernel were lost, there were too many at once")]
    Overflowed {
        /// What was being done.
        doing: Cow<'static, str>,
    },
    /// What was to be listed changed each time while it was listed.
    #[error("cannot {doing}: it changes faster than it can be read")]
    Restless {
        /// What was being done.
        doing: Cow<'static, str>,
    },
    /// The kernel said no.
    #[error("cannot {doing}: {refusal}")]
    Refused {
        /// What was being done.
        doing: Cow<'static, str>,
        /// What the kernel said.
        refusal: Refusal,
    },
    /// The kernel said no to some changes of many; it made all others.
    #[error(
        "cannot make {} of {all} changes of sets; the first: {}",
        .failed.len(),
        .failed.first().map_or_else(String::new, ToString::to_string)
    )]
    Changes {
        /// How many changes were asked for.
        all: usize,
        /// Those that were not made, in order.
        failed: Vec<FailedChange>,
    },
    /// The answer makes no sense.
    #[error("cannot {doing}: the kernel's answer has no {missing}; is this kernel too old?")]
    Unreadable {
        /// What was being done.
        doing: Cow<'static, str>,
        /// What was looked for.
        missing: &'static str,
    },
}

impl NetlinkError {
    /// What the kernel said, if it refused; of several changes, about the first.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::Changes { failed, .. } => failed.first().map(|change| &change.refusal),
            _ => None,
        }
    }

    /// Why the kernel refused, if it did.
    pub fn reason(&self) -> Option<Reason> {
        self.refusal().map(Refusal::reason)
    }
}

/// A refusal of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number: of the system, or from 4096 on one of ipset.
    pub code: i32,
    /// What the kernel says beside the number.
    pub text: Option<String>,
}

/// Why the kernel refused, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The set holds as many elements as it may.
    Full,
    /// There is no such set, table, element, connection or socket.
    Missing,
    /// It is there already.
    Exists,
    /// A rule or another set still uses it.
    InUse,
    /// The set is of another kind or address family than the element, or than the other set.
    WrongKind,
    /// It overlaps with what is in an interval set of nftables.
    Overlaps,
    /// This process lacks `CAP_NET_ADMIN`.
    NotPermitted,
    /// The kernel can't do it, or lacks the module.
    Unsupported,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Why, as far as a caller can act on it.
    pub const fn reason(&self) -> Reason {
        match self.code {
            ipset::HASH_FULL | ENFILE => Reason::Full,
            ENOENT => Reason::Missing,
            EEXIST | ipset::EXIST | ipset::EXIST_SETNAME2 => Reason::Exists,
            EBUSY | ipset::BUSY | ipset::REFERENCED => Reason::InUse,
            ipset::PROTOCOL
            | ipset::TYPE_MISMATCH
            | ipset::INVALID_FAMILY
            | ipset::IPADDR_IPV4
            | ipset::IPADDR_IPV6 => Reason::WrongKind,
            ENOTEMPTY => Reason::Overlaps,
            EPERM => Reason::NotPermitted,
            EOPNOTSUPP | ipset::FIND_TYPE => Reason::Unsupported,
            _ => Reason::Other,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ipset::meaning(self.code) {
            Some(meaning) => f.write_str(meaning)?,
            None => write!(f, "{}", io::Error::from_raw_os_error(self.code))?,
        }
        match &self.text {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
pub(super) const EEXIST: i32 = 17;
const ENFILE: i32 = 23;
pub(super) const ENOTEMPTY: i32 = 39;
const EOPNOTSUPP: i32 = 95;

/// The error numbers of ipset, and what they and others mean to sets: linux/include/uapi/linux/netfilter/ipset/ip_set.h and ip_set_hash.h.
mod ipset {
    pub(super) const PROTOCOL: i32 = 4097;
    pub(super) const FIND_TYPE: i32 = 4098;
    const MAX_SETS: i32 = 4099;
    pub(super) const BUSY: i32 = 4100;
    pub(super) const EXIST_SETNAME2: i32 = 4101;
    pub(super) const TYPE_MISMATCH: i32 = 4102;
    pub(super) const EXIST: i32 = 4103;
    const INVALID_CIDR: i32 = 4104;
    pub(super) const INVALID_FAMILY: i32 = 4106;
    const TIMEOUT: i32 = 4107;
    pub(super) const REFERENCED: i32 = 4108;
    pub(super) const IPADDR_IPV4: i32 = 4109;
    pub(super) const IPADDR_IPV6: i32 = 4110;
    pub(super) const HASH_FULL: i32 = 4352;
    const HASH_ELEM: i32 = 4353;
    const INVALID_PROTO: i32 = 4354;
    const MISSING_PROTO: i32 = 4355;

    pub(super) const fn meaning(code: i32) -> Option<&'static str> {
        Some(match code {
            PROTOCOL => "the set doesn't take it; is it of another kind or address family?",
            FIND_TYPE => "the kernel has no sets of this kind",
            MAX_SETS => "the kernel has no room for another set",
            BUSY => "the set is in use",
            EXIST_SETNAME2 => "there is a set of that name already",
            TYPE_MISMATCH => "the sets are of different kinds",
            EXIST => "there is such an element already, or none to delete",
            INVALID_CIDR => "the set doesn't take a prefix of this length",
            INVALID_FAMILY => "the set can't be of this address family",
            TIMEOUT => "the elements of the set have no time limits",
            REFERENCED => "the set is in use by a rule or another set",
            IPADDR_IPV4 => "the set wants an IPv4 address",
            IPADDR_IPV6 => "the set wants an IPv6 address",
            HASH_FULL => "the set is full",
            HASH_ELEM => "the set doesn't take an element of all zeros",
            INVALID_PROTO => "the set doesn't take this transport protocol",
            MISSING_PROTO => "the set wants a transport protocol",
            super::ENOTEMPTY => "it overlaps with another element",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_and_why() {
        let full = Refusal { code: 4352, text: None };
        assert_eq!((full.reason(), full.to_string()), (Reason::Full, "the set is full".into()));
        let missing = Refusal { code: 2, text: Some("no such table".into()) };
        assert_eq!(missing.reason(), Reason::Missing);
        let error = NetlinkError::Refused { doing: "list it".into(), refusal: missing };
        assert_eq!(
            error.to_string(),
            "cannot list it: No such file or directory (os error 2) (no such table)"
        );
        assert_eq!(error.reason(), Some(Reason::Missing));
    }
}
