//! Why a datagram opened nothing.

use core::fmt;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why the receiver dropped a datagram, in the order of the checks (§6).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the checks.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The place of the reason in [`ALL`](Self::ALL), for tables of counters.
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The reason's name in test vectors, `status` and the log.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Not the packet length of this deployment.
    Length = "length",
    /// The unmasked tag belongs to no client in any epoch of the table: noise.
    UnknownTag = "unknown-tag",
    /// The tag is one of an epoch that can't be fresh, and this second's allowance for looking
    /// closer at such knocks is spent.
    SkewUnexamined = "skew-unexamined",
    /// The MAC does not hold.
    Mac = "mac",
    /// A knock with this nonce was accepted before.
    Replay = "replay",
    /// The MAC holds, the AEAD tag does not.
    Decrypt = "decrypt",
    /// A byte of the plaintext is not as the layout has it.
    Layout = "layout",
    /// The tag's epoch is not the epoch of the timestamp.
    Epoch = "epoch",
    /// The timestamp is further behind the server's clock than the freshness window allows.
    TooOld = "too-old",
    /// The timestamp is further ahead of the server's clock than the freshness window allows.
    TooNew = "too-new",
    /// The timestamp is not later than the barrier that stands after an unclean start.
    Barrier = "barrier",
    /// The timestamp is not later than the floor of the client's replay window.
    Floor = "floor",
    /// The knock is bound to another source address than the one it came from.
    BoundSource = "bound-source",
    /// The client has closed, by a later knock, what this one wants opened.
    Superseded = "superseded",
    /// The client's replay window is full.
    WindowFull = "window-full",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
