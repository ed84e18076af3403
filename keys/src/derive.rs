//! What both sides derive from their keys: the pair secret (§3.2) and the mask key (§3.3).
//!
//! Buffers of our own are wiped. `ring` doesn't wipe the state of its HKDF: what it leaves on the
//! stack stays there until it is written over.

use crate::{PreSharedKey, PrivateKey, PublicKey};
use ring::hkdf;
use spa_proto::{MaskKey, PairSecret};
use zeroize::Zeroizing;

/// The HKDF salt: the protocol and its version.
const SALT: &[u8] = b"single-packet-authorization v1";
/// The role label at the front of the info for the pair secret.
const ROLE: &[u8] = b"client-to-server";
/// The info for the mask key.
const MASK: &[u8] = b"tag-mask";
/// X25519 result, byte that tells whether there is a pre-shared key, pre-shared key or zeros.
const IKM_LENGTH: usize = 32 + 1 + 32;

/// Derives, on the client's side, the secret that it shares with `server`.
///
/// ```text
/// ikm  = X25519(c, S) || u8(pre-shared key?) || (pre-shared key, or 32 zero bytes)
/// HKDF-SHA256(salt, ikm, "client-to-server" || C || S, L = 96) = K_tag || K_enc || K_mac
/// ```
pub fn pair_secret_for_client(
    me: &PrivateKey,
    server: &PublicKey,
    pre_shared: Option<&PreSharedKey>,
) -> Result<PairSecret, DeriveError> {
    let output = key_material(me, server, pre_shared, &me.public(), server)?;
    Ok(split(&output))
}

/// Derives, on the server's side, the secret that it shares with `client`; the same as
/// [`pair_secret_for_client`] gives the client.
pub fn pair_secret_for_server(
    me: &PrivateKey,
    client: &PublicKey,
    pre_shared: Option<&PreSharedKey>,
) -> Result<PairSecret, DeriveError> {
    let output = key_material(me, client, pre_shared, client, &me.public())?;
    Ok(split(&output))
}

/// Derives the key that masks the tags of all knocks to `server`.
pub fn mask_key(server: &PublicKey) -> MaskKey {
    MaskKey::new(*hkdf_sha256(server.as_bytes(), &[MASK]))
}

/// `K_tag || K_enc || K_mac`.
fn key_material(
    me: &PrivateKey,
    other: &PublicKey,
    pre_shared: Option<&PreSharedKey>,
    client: &PublicKey,
    server: &PublicKey,
) -> Result<Zeroizing<[u8; 96]>, DeriveError> {
    from_pair(me, other, pre_shared, &[ROLE, client.as_bytes(), server.as_bytes()])
}

/// X25519, with all that makes a public key unfit refused.
pub(crate) fn agreement(
    me: &PrivateKey,
    other: &PublicKey,
) -> Result<Zeroizing<[u8; 32]>, DeriveError> {
    if me.public() == *other {
        return Err(DeriveError::SameKey);
    }
    let shared = me.agree(other).ok_or(DeriveError::LowOrder)?;
    if !is_canonical(other) {
        return Err(DeriveError::NotCanonical);
    }
    Ok(Zeroizing::new(shared.to_bytes()))
}

/// Whether a public key can share a secret with anybody.
pub(crate) fn is_usable(key: &PublicKey) -> bool {
    // Any private key tells: X25519 makes it a multiple of eight.
    is_canonical(key) && PrivateKey::from_bytes(Zeroizing::new([1; 32])).agree(key).is_some()
}

/// What two keys and the pre-shared key give, for the use that `info` names.
pub(crate) fn from_pair<const L: usize>(
    me: &PrivateKey,
    other: &PublicKey,
    pre_shared: Option<&PreSharedKey>,
    info: &[&[u8]],
) -> Result<Zeroizing<[u8; L]>, DeriveError> {
    let shared = agreement(me, other)?;
    let no_key = [0; 32];
    let pre_shared_bytes = pre_shared.map_or(&no_key, PreSharedKey::as_bytes);
    let mut ikm = Zeroizing::new([0; IKM_LENGTH]);
    let parts = shared
        .iter()
        .chain(core::iter::once(if pre_shared.is_some() { &1 } else { &0 }))
        .chain(pre_shared_bytes);
    for (byte, value) in ikm.iter_mut().zip(parts) {
        *byte = *value;
    }
    Ok(hkdf_sha256(ikm.as_slice(), info))
}

/// Whether the u-coordinate is reduced: below p = 2^255 - 19, the highest bit clear.
///
/// RFC 7748 has X25519 accept the others too and reduce them, so that one key could be written in
/// two ways and pass for two clients. No honest key generation puts one out. Public keys are
/// public: this needs no constant time.
fn is_canonical(key: &PublicKey) -> bool {
    let [lowest, middle @ .., highest] = key.as_bytes();
    match highest {
        0..=0x7e => true,
        0x7f => middle.iter().any(|byte| *byte != 0xff) || *lowest < 0xed,
        _ => false,
    }
}

fn split(output: &[u8; 96]) -> PairSecret {
    let mut keys = Zeroizing::new([[0; 32]; 3]);
    for (byte, value) in keys.as_flattened_mut().iter_mut().zip(output) {
        *byte = *value;
    }
    let [tag, enc, mac] = *keys;
    PairSecret::new(tag, enc, mac)
}

/// HKDF-SHA256 (RFC 5869) under the protocol's salt; `info` is the concatenation of its parts.
pub(crate) fn hkdf_sha256<const L: usize>(ikm: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; L]> {
    expand(&hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(ikm), info)
}

#[expect(clippy::expect_used, reason = "the length is checked when this is compiled")]
fn expand<const L: usize>(prk: &hkdf::Prk, info: &[&[u8]]) -> Zeroizing<[u8; L]> {
    const { assert!(L <= 255 * 32, "RFC 5869 section 2.3: L <= 255 * HashLen") };
    let mut output = Zeroizing::new([0; L]);
    prk.expand(info, Length(L))
        .and_then(|okm| okm.fill(output.as_mut_slice()))
        .expect("HKDF fails only when the length is wrong");
    output
}

/// How `ring` wants to be told the length of the output.
#[derive(Clone, Copy)]
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Why no pair secret can be derived from two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeriveError {
    /// The other side's public key is a point of low order: the result would be no secret.
    #[error(
        "this public key is a point of low order and would give a secret that everybody knows; no key generator makes such a key, so ask its owner for the right one"
    )]
    LowOrder,
    /// The other side's public key is this side's own.
    #[error(
        "this public key is this side's own; client and server each need a key pair of their own"
    )]
    SameKey,
    /// The other side's public key is not the one way in which that key is written.
    #[error(
        "this public key is not in the form that a key generator puts out (RFC 7748: a number below 2^255 - 19), so that one client could pass for two; ask its owner for the right one"
    )]
    NotCanonical,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;
    use proptest::prelude::*;
    use spa_proto::{Epoch, Nonce, Tag, masked};

    fn private(bytes: [u8; 32]) -> PrivateKey {
        PrivateKey::from_bytes(Zeroizing::new(bytes))
    }

    fn pre_shared(bytes: [u8; 32]) -> PreSharedKey {
        PreSharedKey::from_bytes(Zeroizing::new(bytes)).unwrap()
    }

    /// What the client and the server get, before it is cut into keys.
    fn both(
        client: &PrivateKey,
        server: &PrivateKey,
        of_client: Option<&PreSharedKey>,
        of_server: Option<&PreSharedKey>,
    ) -> ([u8; 96], [u8; 96]) {
        let (c, s) = (client.public(), server.public());
        (
            *key_material(client, &s, of_client, &c, &s).unwrap(),
            *key_material(server, &c, of_server, &c, &s).unwrap(),
        )
    }

    #[test]
    fn x25519_is_that_of_rfc_7748_section_6_1() {
        let alice =
            private(hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        let bob = private(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(
            alice.public().as_bytes(),
            &hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        );
        assert_eq!(
            bob.public().as_bytes(),
            &hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(alice.agree(&bob.public()).unwrap().as_bytes(), &shared);
        assert_eq!(bob.agree(&alice.public()).unwrap().as_bytes(), &shared);
    }

    #[test]
    fn hkdf_is_that_of_rfc_5869_appendix_a_1() {
        let salt: [u8; 13] = hex("000102030405060708090a0b0c");
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(&[0x0b; 22]);
        let info: [u8; 10] = hex("f0f1f2f3f4f5f6f7f8f9");
        let output = hex::<42>(
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        );
        assert_eq!(*expand::<42>(&prk, &[&info]), output);
        let (front, back) = info.split_at(3);
        assert_eq!(*expand::<42>(&prk, &[front, back]), output);
    }

    // The expected values of the next two tests were computed by another implementation (PyPI's
    // `cryptography`), following the specification: c = 01…, s = 02…, pre-shared key = 03….

    #[test]
    fn both_sides_derive_what_the_specification_says() {
        let (client, server, shared) = (private([1; 32]), private([2; 32]), pre_shared([3; 32]));
        let plain = hex("06e1bf3e32628ccfe2263b1fd8d5309b26f826f894f8f548b3a64617b7524413\
             035bccb990346a937fc2747f9203437a2b0b77ab54eba5cf9c89c10362d475fb\
             07a9efc002475536147fa029a8e7bae5c044f2634d3fba0138b3dbbc2b82d37d");
        assert_eq!(both(&client, &server, None, None), (plain, plain));
        let with_pre_shared =
            hex("9d9eea9cae2a56496ec21db75fc0fad3c3706f1fdcf01b125c5f3d80385dc39a\
             d4268ab7ccf5f43035a3197582621014cafff84d8055f9afe58e29fde56df8c2\
             74f26c6aba9294be14f7d54443b4039d7c629ec9db3834a1b226e5918bdda3d1");
        assert_eq!(
            both(&client, &server, Some(&shared), Some(&shared)),
            (with_pre_shared, with_pre_shared)
        );
    }

    #[test]
    fn the_mask_key_is_what_the_specification_says() {
        let server = private([2; 32]).public();
        let expected = hex("a77871d7e5556aa4a1135cf905aac987810ac988a80a0367b7c0c3930111eaa7");
        let hidden = |key| masked(&key, &Nonce([7; 24]), Tag([0; 16]));
        assert_eq!(hidden(mask_key(&server)), hidden(MaskKey::new(expected)));
        assert_ne!(hidden(mask_key(&server)), hidden(MaskKey::new([0; 32])));
    }

    #[test]
    fn the_three_keys_of_a_pair_secret_come_in_the_order_of_the_specification() {
        let (client, server) = (private([1; 32]), private([2; 32]));
        let (material, _) = both(&client, &server, None, None);
        let tag: [u8; 32] = material[..32].try_into().unwrap();
        let expected = Tag::of(&PairSecret::new(tag, [0; 32], [0; 32]), Epoch(5));
        for pair in [
            pair_secret_for_client(&client, &server.public(), None).unwrap(),
            pair_secret_for_server(&server, &client.public(), None).unwrap(),
        ] {
            assert_eq!(Tag::of(&pair, Epoch(5)), expected);
        }
        let numbered: [u8; 96] = core::array::from_fn(|at| u8::try_from(at).unwrap());
        let expected = PairSecret::new(
            core::array::from_fn(|at| numbered[at]),
            core::array::from_fn(|at| numbered[at + 32]),
            core::array::from_fn(|at| numbered[at + 64]),
        );
        assert_eq!(sealed_under(&split(&numbered)), sealed_under(&expected));
    }

    /// A packet, in which each of the three keys has its part.
    fn sealed_under(pair: &PairSecret) -> Vec<u8> {
        let request = spa_proto::Request {
            message_type: spa_proto::MessageType::Open,
            items: "ssh".parse::<spa_proto::Item>().unwrap().try_into().unwrap(),
            bound_source: None,
            lifetime: None,
        };
        spa_proto::seal(
            pair,
            &MaskKey::new([0; 32]),
            &request,
            spa_proto::UnixMicros::from_secs(1),
            Nonce([0; 24]),
            spa_proto::PacketLength::default(),
        )
        .unwrap()
    }

    /// The u-coordinates of low order, each in all its encodings: 0, 1, the two of order 8, p - 1,
    /// p, p + 1, and the same with the ignored highest bit set.
    const LOW_ORDER: [&str; 14] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    ];

    #[test]
    fn a_point_of_low_order_is_refused_by_both_sides() {
        let me = private([1; 32]);
        let good = private([2; 32]).public();
        assert!(pair_secret_for_client(&me, &good, None).is_ok());
        assert!(pair_secret_for_server(&me, &good, None).is_ok());
        for point in LOW_ORDER {
            let other = PublicKey::from_bytes(hex(point));
            for pre_shared in [None, Some(&pre_shared([3; 32]))] {
                let of_client = pair_secret_for_client(&me, &other, pre_shared);
                assert_eq!(of_client.unwrap_err(), DeriveError::LowOrder, "{point}");
                let of_server = pair_secret_for_server(&me, &other, pre_shared);
                assert_eq!(of_server.unwrap_err(), DeriveError::LowOrder, "{point}");
            }
        }
    }

    #[test]
    fn one_s_own_key_is_refused_as_the_other_s() {
        let me = private([1; 32]);
        let refused = pair_secret_for_client(&me, &me.public(), None).unwrap_err();
        assert_eq!(refused, DeriveError::SameKey);
        let refused = pair_secret_for_server(&me, &me.public(), None).unwrap_err();
        assert_eq!(refused, DeriveError::SameKey);
    }

    #[test]
    fn a_second_way_to_write_a_key_is_refused() {
        let me = private([1; 32]);
        let mut with_high_bit = *private([2; 32]).public().as_bytes();
        assert!(pair_secret_for_server(&me, &PublicKey::from_bytes(with_high_bit), None).is_ok());
        with_high_bit[31] |= 0x80;
        let own_with_high_bit = {
            let mut bytes = *me.public().as_bytes();
            bytes[31] |= 0x80;
            bytes
        };
        // p + 2, which X25519 would take for 2.
        let above_p = hex("efffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f");
        for bytes in [with_high_bit, own_with_high_bit, above_p] {
            let other = PublicKey::from_bytes(bytes);
            let refused = pair_secret_for_server(&me, &other, None).unwrap_err();
            assert_eq!(refused, DeriveError::NotCanonical);
            let refused = pair_secret_for_client(&me, &other, None).unwrap_err();
            assert_eq!(refused, DeriveError::NotCanonical);
        }
    }

    #[test]
    fn a_number_is_canonical_below_p() {
        let ending = |lowest: u8, middle: u8, highest: u8| {
            let mut bytes = [middle; 32];
            bytes[0] = lowest;
            bytes[31] = highest;
            is_canonical(&PublicKey::from_bytes(bytes))
        };
        assert!(ending(0xec, 0xff, 0x7f));
        assert!(!ending(0xed, 0xff, 0x7f));
        assert!(!ending(0xff, 0xff, 0x7f));
        assert!(ending(0xff, 0xfe, 0x7f));
        assert!(ending(0xff, 0xff, 0x7e));
        assert!(ending(0, 0, 0));
        assert!(!ending(0, 0, 0x80));
    }

    proptest! {
        #[test]
        fn both_sides_derive_the_same_and_nobody_else_does(
            client: [u8; 32],
            server: [u8; 32],
            third: [u8; 32],
            shared in proptest::option::of(any::<[u8; 32]>().prop_filter("a secret", |k| *k != [0; 32])),
        ) {
            let (client, server, third) = (private(client), private(server), private(third));
            prop_assume!(client.public() != server.public());
            prop_assume!(third.public() != server.public() && third.public() != client.public());
            let shared = shared.map(pre_shared);
            let (of_client, of_server) = both(&client, &server, shared.as_ref(), shared.as_ref());
            prop_assert_eq!(of_client, of_server);
            // Neither another client, nor the same two with their parts swapped, nor with another
            // pre-shared key.
            let (of_third, _) = both(&third, &server, shared.as_ref(), shared.as_ref());
            prop_assert_ne!(of_client, of_third);
            let (swapped, _) = both(&server, &client, shared.as_ref(), shared.as_ref());
            prop_assert_ne!(of_client, swapped);
            let other = pre_shared([0xa5; 32]);
            let (with_other, _) = both(&client, &server, Some(&other), Some(&other));
            prop_assert_ne!(of_client, with_other);
        }
    }
}
