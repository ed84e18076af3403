//! What the tests of several modules need.

/// The bytes that `text` writes in hexadecimal digits.
pub(crate) fn hex<const N: usize>(text: &str) -> [u8; N] {
    assert_eq!(text.len(), 2 * N, "{text}");
    core::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

/// Compiles only when the type implements none of the traits: else `_` could be two things.
macro_rules! assert_not_implemented {
    ($type:ty: $($trait:path),+) => {$({
        trait Ambiguous<A> {
            fn decide() {}
        }
        struct Implemented;
        impl<T: ?Sized> Ambiguous<()> for T {}
        impl<T: ?Sized + $trait> Ambiguous<Implemented> for T {}
        <$type as Ambiguous<_>>::decide();
    })+};
}
pub(crate) use assert_not_implemented;
