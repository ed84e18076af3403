#!/usr/bin/env python3
"""Write or check the test vectors of docs/protocol.md, section 11.

    vectors.py write DIR    make the files
    vectors.py check DIR    recompute each field of these files and compare

Everything is deterministic: keys and nonces are SHA-256 of labels. `check` does two things: it
computes each vector anew from the inputs that the file holds, and it compares the files with
what `write` would make, so that no vector can get lost or be weakened.
"""

import base64
import hashlib
import json
import pathlib
import struct
import sys

import announcement
import announcement_vectors
import invitation_vectors
import spa
from cases import (ALICE, BOB, CAPACITY, EPOCH_START, OTHER_SERVER, OTHER_SRC, OTHER_SRC4, SECOND,
                   SERVER, SERVER_PUBLIC, SERVICES, SRC, SRC4, STRANGER, T, W, Knock, digest,
                   dropped, hexed, nonce, request, resolve)

# --- positive --------------------------------------------------------------------------

POSITIVE_CASES = []


def positive(name, req, *, party=ALICE, server=SERVER, n=None, length=128):
    POSITIVE_CASES.append((name, req, party, server, nonce(name) if n is None else n, length))


def compute_positive(v):
    """A vector from the inputs in `v`, by the client's side and checked by the server's."""
    client_private = bytes.fromhex(v["client_private"])
    server_private = bytes.fromhex(v["server_private"])
    client_public = spa.x25519_public(client_private)
    server_public = spa.x25519_public(server_private)
    psk = None if v["psk"] is None else bytes.fromhex(v["psk"])
    req = spa.Request(
        {"open": spa.OPEN, "close": spa.CLOSE}[v["message_type"]],
        v["timestamp_us"], tuple(v["items"]), v["bound_source"], v["lifetime_s"],
    )
    n = bytes.fromhex(v["nonce"])
    s = spa.seal(client_private, server_public, psk, n, req, v["plaintext_length"])

    theirs = spa.pair_secret(server_private, client_public, client_public, server_public, psk)
    if theirs.hkdf_output != s.hkdf_output:
        raise spa.SpaError("client and server derive different keys")
    if spa.decode_plaintext(s.plaintext) != req:
        raise spa.SpaError("the plaintext decodes to another request")
    receiver = spa.Receiver(server_private, plaintext_length=v["plaintext_length"])
    receiver.add_client(client_public, psk)
    verdict = receiver.receive(s.packet, req.bound_source or SRC, req.timestamp_us)
    if not verdict.accepted or verdict.request != req:
        raise spa.SpaError(f"the receiver does not accept the packet: {verdict.drop_reason}")

    return {
        "name": v["name"],
        "client_private": client_private.hex(),
        "client_public": client_public.hex(),
        "server_private": server_private.hex(),
        "server_public": server_public.hex(),
        "psk": hexed(psk),
        "nonce": n.hex(),
        "timestamp_us": req.timestamp_us,
        "message_type": v["message_type"],
        "bound_source": req.bound_source,
        "lifetime_s": req.lifetime_s,
        "items": list(req.items),
        "plaintext_length": v["plaintext_length"],
        "shared": s.shared.hex(),
        "ikm": s.ikm.hex(),
        "hkdf_output": s.hkdf_output.hex(),
        "k_mask": s.k_mask.hex(),
        "epoch": s.epoch,
        "tag": s.tag.hex(),
        "mask": s.mask.hex(),
        "masked_tag": s.masked_tag.hex(),
        "plaintext": s.plaintext.hex(),
        "ciphertext": s.ciphertext.hex(),
        "aead_tag": s.aead_tag.hex(),
        "mac": s.mac.hex(),
        "packet": s.packet.hex(),
    }


def build_positive():
    POSITIVE_CASES.clear()
    positive("minimal", request("ssh"))
    positive("bound-ipv6", request("ssh", bound="2001:db8:1:2:3:4:5:6"))
    positive("bound-ipv4", request("ssh", bound="203.0.113.9"))
    positive("bound-ipv6-loopback", request("ssh", bound="::1"))
    positive("bound-ipv4-broadcast", request("ssh", bound="255.255.255.255"))
    positive("eight-items", request("ssh", "tcp/22", "udp/53", "web", "tcp/8443", "udp/51820",
                                    "db.main", "a"))
    positive("eight-ports", request(*[f"tcp/{p}" for p in range(8001, 8005)],
                                    *[f"udp/{p}" for p in range(8001, 8005)]))
    # Seven names of 11 characters and one of 12: 7 * 12 + 13 = 97 bytes.
    positive("eight-names-exact-fit",
             request(*[f"service-{i:03}" for i in range(7)], "service-0007"))
    positive("tcp-and-udp-same-port", request("tcp/443", "udp/443"))
    positive("port-extremes", request("tcp/1", "tcp/65535", "udp/1", "udp/65535", "udp/255",
                                      "tcp/256"))
    positive("item-order-kept", request("web", "tcp/22", "ssh"))
    positive("name-32-characters", request("abcdefghijklmnopqrstuvwxyz012345"))
    positive("name-1-character", request("z"))
    positive("name-all-kinds-of-characters", request("a-b_c.d-0123456789--__.."))
    positive("pre-shared-key", request("ssh"), party=BOB)
    positive("pre-shared-key-bound-close",
             request("web", "tcp/22", bound="2001:db8::1", close=True), party=BOB)
    positive("other-server", request("ssh"), server=OTHER_SERVER)
    positive("nonce-all-00", request("ssh"), n=bytes(24))
    positive("nonce-all-ff", request("ssh"), n=b"\xff" * 24)
    positive("close", request("ssh", close=True))
    positive("close-with-lifetime", request("ssh", close=True, lifetime=3600))
    positive("lifetime-3600", request("ssh", lifetime=3600))
    positive("lifetime-max", request("ssh", lifetime=2**32 - 1))
    positive("plaintext-320", request("ssh"), length=320)
    positive("plaintext-320-eight-long-names",
             request(*[f"s{i}".ljust(32, "x") for i in range(8)]), length=320)
    positive("plaintext-200", request("ssh", "udp/53"), length=200)
    positive("plaintext-129", request("ssh"), length=129)
    positive("timestamp-0", request("ssh", at=0))
    positive("timestamp-epoch-first-microsecond", request("ssh", at=EPOCH_START))
    positive("timestamp-epoch-last-microsecond",
             request("ssh", at=EPOCH_START + spa.EPOCH_US - 1))
    positive("timestamp-beyond-32-bit-seconds", request("ssh", at=2**32 * SECOND + 1))
    positive("timestamp-max", request("ssh", at=2**64 - 1))
    return [
        compute_positive({
            "name": name,
            "client_private": party.private.hex(),
            "server_private": server.hex(),
            "psk": hexed(party.psk),
            "nonce": n.hex(),
            "timestamp_us": req.timestamp_us,
            "message_type": "open" if req.message_type == spa.OPEN else "close",
            "bound_source": req.bound_source,
            "lifetime_s": req.lifetime_s,
            "items": list(req.items),
            "plaintext_length": length,
        })
        for name, req, party, server, n, length in POSITIVE_CASES
    ]


# --- negative --------------------------------------------------------------------------


class Negatives:
    def __init__(self):
        self.vectors = []

    def add(self, name, reason, why, knock, *, history=(), controls=(), clients=(ALICE, BOB),
            w=W, length=128, capacity=CAPACITY, barrier=None):
        entries = []
        for h in history:
            k, accept = h if isinstance(h, tuple) else (h, True)
            entries.append({**k.json(), "accept": accept})
        self.vectors.append({
            "name": name,
            "why": why,
            "server_private": SERVER.hex(),
            "server_public": SERVER_PUBLIC.hex(),
            "clients": [c.json() for c in clients],
            "services": SERVICES,
            "freshness_s": w,
            "plaintext_length": length,
            "window_capacity": capacity,
            "barrier_us": barrier,
            "history": entries,
            **knock.json(),
            "drop_reason": reason,
            "controls": [c.json() for c in controls],
        })


def add_length(v):
    good = Knock("length good")
    v.add("length-empty", "length", "an empty datagram", good.sent(packet=b""), controls=[good])
    v.add("length-one-byte", "length", "a datagram of one byte", good.sent(packet=b"\x00"),
          controls=[good])
    v.add("length-one-short", "length", "the last byte of a good packet is missing",
          good.sent(packet=good.packet[:-1]), controls=[good])
    v.add("length-one-long", "length", "one byte follows a good packet",
          good.sent(packet=good.packet + b"\x00"), controls=[good])
    v.add("length-headers-only", "length", "88 bytes: no ciphertext at all",
          good.sent(packet=good.packet[:40] + good.packet[-48:]), controls=[good])
    longer = Knock("length longer P", length=200)
    v.add("length-larger-p", "length", "P = 200, the server has P = 128", longer, controls=[good])
    v.add("length-smaller-p", "length", "P = 128, the server has P = 200", good, length=200,
          controls=[longer])


def add_unknown_tag(v):
    good = Knock("tag good")
    v.add("unknown-tag-random", "unknown-tag", "216 bytes that nobody sealed",
          good.sent(packet=b"".join(digest(f"noise {i}") for i in range(7))[:216]),
          controls=[good])
    v.add("unknown-tag-zeros", "unknown-tag", "216 zero bytes", good.sent(packet=bytes(216)),
          controls=[good])
    v.add("unknown-client", "unknown-tag", "the server does not have this client",
          Knock("unknown client", party=STRANGER), controls=[good])
    v.add("wrong-server", "unknown-tag", "sealed for another server",
          Knock("wrong server", server_public=spa.x25519_public(OTHER_SERVER)), controls=[good])
    v.add("wrong-server-no-mask", "unknown-tag",
          "the tag of the right pair under the mask of another server",
          Knock("wrong mask").remade(masked_tag=spa.xor(
              Knock("wrong mask").sealed.tag,
              spa.tag_mask(spa.mask_key(spa.x25519_public(OTHER_SERVER)), nonce("wrong mask")))),
          controls=[good])
    v.add("tag-not-masked", "unknown-tag", "the tag itself in the place of the masked tag",
          Knock("tag not masked").remade(masked_tag=Knock("tag not masked").sealed.tag),
          controls=[good])
    v.add("psk-missing", "unknown-tag", "the server has a pre-shared key, the client used none",
          Knock("psk missing", party=BOB, psk=None), controls=[Knock("psk good", party=BOB)])
    v.add("psk-wrong", "unknown-tag", "another pre-shared key",
          Knock("psk wrong", party=BOB, psk=digest("a wrong psk")),
          controls=[Knock("psk good", party=BOB)])
    v.add("psk-unwanted", "unknown-tag",
          "the client used a pre-shared key, the server has none for it",
          Knock("psk unwanted", psk=digest("a wrong psk")), controls=[good])
    v.add("flip-masked-tag-first-bit", "unknown-tag", "a bit of the masked tag is flipped",
          good.flipped(0, 7), controls=[good])
    v.add("flip-masked-tag-last-bit", "unknown-tag", "a bit of the masked tag is flipped",
          good.flipped(15, 0), controls=[good])
    v.add("flip-nonce-first-byte", "unknown-tag",
          "a bit of nonce[..12] is flipped: the mask comes out otherwise", good.flipped(16),
          controls=[good])
    v.add("flip-nonce-byte-11", "unknown-tag",
          "a bit of the last byte of nonce[..12] is flipped", good.flipped(27), controls=[good])
    epoch = spa.epoch_of(T)
    v.add("epoch-five-before", "unknown-tag", "the tag is of the fifth epoch before the present",
          Knock("five before", request(at=EPOCH_START - 4 * spa.EPOCH_US - 1)), controls=[good])
    v.add("epoch-four-after", "unknown-tag", "the tag is of the fourth epoch after the present",
          Knock("four after", request(at=EPOCH_START + 4 * spa.EPOCH_US)), controls=[good])
    v.add("tag-epoch-little-endian", "unknown-tag", "the epoch in the tag is little endian",
          Knock("little endian", epoch=struct.unpack("<Q", struct.pack(">Q", epoch))[0]),
          controls=[good])


def add_mac(v):
    good = Knock("mac good")
    for name, at in (("nonce-byte-12", 28), ("nonce-last-byte", 39),
                     ("ciphertext-first-byte", 40), ("ciphertext-last-byte", 167),
                     ("aead-tag-first-byte", 168), ("aead-tag-last-byte", 183),
                     ("mac-first-byte", 184), ("mac-byte-15", 199), ("mac-byte-16", 200),
                     ("mac-last-byte", 215)):
        v.add(f"flip-{name}", "mac", f"a bit of byte {at} of the packet is flipped",
              good.flipped(at, at % 8), controls=[good])
    v.add("mac-zero", "mac", "the MAC is all zero",
          good.sent(packet=good.packet[:184] + bytes(32)), controls=[good])
    epoch = spa.epoch_of(T)
    other = good.masked_tag_of(epoch - 1)
    v.add("masked-tag-of-other-epoch", "mac",
          "the masked tag is replaced by that of the epoch before, which the table has; the rest"
          " is as sent", good.sent(packet=other + good.packet[16:]), controls=[good])
    bob = Knock("mac good", party=BOB)
    v.add("masked-tag-of-other-client", "mac",
          "the masked tag is replaced by that of another client, under the same nonce",
          good.sent(packet=bob.packet[:16] + good.packet[16:]), controls=[good, bob])
    body = good.packet[:184]
    v.add("mac-by-wrong-key", "mac", "the MAC is made with K_enc",
          good.sent(packet=body + spa.hmac_sha256(good.secret.k_enc, body)), controls=[good])
    v.add("mac-before-replay", "mac", "an accepted packet again, with a bit of its MAC flipped",
          good.flipped(215), history=[good])


def add_decrypt(v):
    good = Knock("aead good")
    flip = lambda b, at: b[:at] + bytes([b[at] ^ 1]) + b[at + 1:]
    s = good.sealed
    v.add("aead-tag-wrong", "decrypt", "a bit of the AEAD tag is flipped, the MAC is right",
          good.remade(aead_tag=flip(s.aead_tag, 3)), controls=[good])
    v.add("ciphertext-wrong", "decrypt", "a bit of the ciphertext is flipped, the MAC is right",
          good.remade(ciphertext=flip(s.ciphertext, 127)), controls=[good])
    v.add("aad-of-other-epoch", "decrypt",
          "the masked tag is that of the epoch before, the MAC is right: the AAD differs",
          good.remade(masked_tag=good.masked_tag_of(good.epoch - 1)), controls=[good])
    for name, aad in (("empty", b""), ("tag", s.tag)):
        ciphertext, tag = spa.xchacha20poly1305_seal(good.secret.k_enc, good.nonce, s.plaintext,
                                                     aad)
        v.add(f"aad-{name}", "decrypt",
              "the AAD is " + ("empty" if aad == b"" else "the tag before masking"),
              good.remade(ciphertext=ciphertext, aead_tag=tag), controls=[good])
    v.add("decrypt-before-layout", "decrypt",
          "a wrong AEAD tag over a plaintext of a wrong version",
          (lambda k: k.remade(aead_tag=flip(k.sealed.aead_tag, 0)))(
              Knock("decrypt before layout", edit={0: b"\x02"})), controls=[good])


def add_layout(v):
    good = Knock("layout good")

    def bad(name, why, edit, req=None, controls=(good,), **more):
        v.add(f"layout-{name}", "layout", why, Knock(f"layout {name}", req, edit=edit, **more),
              controls=controls)

    bad("version-0", "version 0", {0: b"\x00"})
    bad("version-2", "version 2", {0: b"\x02"})
    bad("type-0", "message type 0", {1: b"\x00"})
    bad("type-3", "message type 3", {1: b"\x03"})
    bad("type-255", "message type 255", {1: b"\xff"})
    bad("bound-source-mapped-zero", "the bound source is ::ffff:0.0.0.0",
        {10: bytes(10) + b"\xff\xff" + bytes(4)})
    bad("item-count-0", "no item, all padding", {30: bytes(98)})
    bad("item-count-0-with-item", "item count 0 before an item", {30: b"\x00"})
    nine = b"".join(bytes([0x40, 0, port]) for port in range(1, 10))
    bad("item-count-9", "nine items", {30: b"\x09" + nine},
        controls=[Knock("eight items", request("tcp/22", "tcp/80", "tcp/443", "tcp/53", "udp/53",
                                               "ssh", "web", "dns"))])
    bad("item-count-255", "item count 255", {30: b"\xff"})
    bad("item-count-too-high", "item count 2, one item: padding is read as a name of length 0",
        {30: b"\x02"})
    bad("item-count-too-low", "item count 1, two items: the second one is not padding",
        {30: b"\x01"}, request("ssh", "web"),
        controls=[Knock("two items", request("ssh", "web"))])
    bad("duplicate-name", "a name twice", {30: b"\x02\x03ssh\x03ssh"})
    bad("duplicate-port", "a port twice", {30: b"\x02\x40\x00\x16\x40\x00\x16"},
        controls=[Knock("port and its service", request("tcp/22", "ssh"))])
    bad("duplicate-apart", "the first item again as the third",
        {30: b"\x03\x03ssh\x40\x00\x16\x03ssh"})
    bad("name-upper-case", "an upper case letter in a name", {31: b"\x03sSh"})
    bad("name-space", "a space in a name", {31: b"\x03s h"})
    bad("name-slash", "a slash in a name", {31: b"\x06tcp/22"})
    bad("name-nul", "a zero byte in a name", {31: b"\x04ssh\x00"})
    bad("name-newline", "a newline at the end of a name", {31: b"\x04ssh\n"})
    bad("name-not-ascii", "UTF-8 in a name", {31: b"\x04s\xc3\xa9h"})
    bad("name-high-byte", "byte ff in a name", {31: b"\x03s\xffh"})
    bad("name-digit-first", "a name begins with a digit", {31: b"\x033sh"})
    bad("name-hyphen-first", "a name begins with -", {31: b"\x03-sh"})
    bad("name-underscore-first", "a name begins with _", {31: b"\x03_sh"})
    bad("name-dot-first", "a name begins with .", {31: b"\x03.sh"})
    bad("name-length-0", "a name of length 0", {31: bytes(4)})
    bad("name-length-33", "a name of 33 characters", {31: b"\x21" + b"a" * 33})
    bad("kind-0x3f", "the reserved kind 0x3f", {31: b"\x3f\x00\x16\x00"})
    bad("kind-0x42", "the reserved kind 0x42", {31: b"\x42\x00\x16\x00"})
    bad("kind-0xff", "the reserved kind 0xff", {31: b"\xff\x00\x16\x00"})
    bad("tcp-port-0", "TCP port 0", {31: b"\x40\x00\x00\x00"})
    bad("udp-port-0", "UDP port 0", {31: b"\x41\x00\x00\x00"})
    bad("padding-first-byte", "the first byte of the padding is 1", {35: b"\x01"})
    bad("padding-last-byte", "the last byte of the padding is 1", {127: b"\x01"})
    bad("padding-last-bit", "the highest bit of the last byte of the padding", {127: b"\x80"})
    fit = request(*[f"service-{i:03}" for i in range(7)], "service-0007")
    bad("items-end-in-name", "the last name is one longer than the plaintext",
        {115: b"\x0d"}, fit, controls=[good])
    bad("items-end-in-port", "the plaintext ends inside a port",
        {30: b"\x08" + b"".join(b"\x0bservice-00%d" % i for i in range(6)) + b"\x16" + b"a" * 22
             + b"\x40\x01"})
    bad("items-end-before-item", "the items end with the plaintext, and one more is counted",
        {30: b"\x04" + b"\x20" + b"a" * 32 + b"\x20" + b"b" * 32 + b"\x1e" + b"c" * 30})
    v.add("layout-before-epoch", "layout",
          "a reserved message type, and a timestamp outside the tag's epoch",
          Knock("layout before epoch", edit={1: b"\x03"}, epoch=spa.epoch_of(T) - 1),
          controls=[good])


def add_epoch(v):
    good = Knock("epoch good")
    e = spa.epoch_of(T)
    early = EPOCH_START + SECOND  # one second into the epoch
    v.add("epoch-tag-before", "epoch", "the tag is of the epoch before the timestamp's",
          Knock("tag before", epoch=e - 1), controls=[good])
    v.add("epoch-tag-after", "epoch", "the tag is of the epoch after the timestamp's",
          Knock("tag after", epoch=e + 1), controls=[good])
    v.add("epoch-first-microsecond-tag-before", "epoch",
          "the first microsecond of an epoch under the tag of the epoch before",
          Knock("first us", request(at=EPOCH_START), epoch=e - 1, now=early),
          controls=[Knock("first us good", request(at=EPOCH_START), now=early)])
    v.add("epoch-last-microsecond-tag-after", "epoch",
          "the last microsecond of an epoch under the tag of the epoch after",
          Knock("last us", request(at=EPOCH_START - 1), epoch=e, now=early),
          controls=[Knock("last us good", request(at=EPOCH_START - 1), now=early)])
    v.add("epoch-timestamp-0", "epoch", "timestamp 0 under the tag of the present epoch",
          Knock("timestamp 0", request(at=0), epoch=e), controls=[good])
    v.add("epoch-timestamp-max", "epoch", "timestamp 2^64 - 1 under the tag of the present epoch",
          Knock("timestamp max", request(at=2**64 - 1), epoch=e), controls=[good])
    v.add("epoch-seconds-for-microseconds", "epoch", "the timestamp is in seconds",
          Knock("seconds", request(at=T // SECOND), epoch=e), controls=[good])


def add_freshness(v):
    for w in (60, 10, 120):
        w_us = w * SECOND
        oldest = Knock(f"oldest {w}", request(at=T - w_us))
        newest = Knock(f"newest {w}", request(at=T + w_us))
        v.add(f"too-old-by-one-microsecond-w{w}", "too-old",
              f"the timestamp is {w} s and 1 us before the server's clock",
              Knock(f"too old {w}", request(at=T - w_us - 1)), w=w, controls=[oldest, newest])
        v.add(f"too-new-by-one-microsecond-w{w}", "too-new",
              f"the timestamp is {w} s and 1 us after the server's clock",
              Knock(f"too new {w}", request(at=T + w_us + 1)), w=w, controls=[oldest, newest])
    v.add("too-old-in-table", "too-old",
          "the first microsecond that the tag table has: the present epoch less four",
          Knock("four before", request(at=EPOCH_START - 4 * spa.EPOCH_US)),
          controls=[Knock("fresh")])
    v.add("too-new-in-table", "too-new",
          "the last microsecond that the tag table has: the end of the present epoch plus three",
          Knock("three after", request(at=EPOCH_START + 4 * spa.EPOCH_US - 1)),
          controls=[Knock("fresh")])
    low = 5 * SECOND
    v.add("too-new-at-the-beginning-of-time", "too-new",
          "the server's clock is 5 s after 1970: now - W and the first epochs of the table are"
          " before it",
          Knock("beginning", request(at=low + 60 * SECOND + 1), now=low),
          controls=[Knock("beginning good", request(at=low + 60 * SECOND), now=low),
                    Knock("beginning first", request(at=1), now=low)])
    v.add("too-old-before-barrier", "too-old", "too old, and before the barrier as well",
          Knock("too old barrier", request(at=T - 60 * SECOND - 1)), barrier=T)
    v.add("too-old-before-bound-source", "too-old", "too old, and bound to another address",
          Knock("too old bound", request(at=T - 60 * SECOND - 1, bound=OTHER_SRC)))


def add_barrier(v):
    v.add("barrier-equal", "barrier", "the timestamp is the barrier",
          Knock("at barrier", request(at=T)), barrier=T,
          controls=[Knock("after barrier", request(at=T + 1))])
    v.add("barrier-before", "barrier", "the timestamp is before the barrier",
          Knock("before barrier", request(at=T - 1)), barrier=T,
          controls=[Knock("after barrier", request(at=T + 1))])
    v.add("barrier-just-set", "barrier",
          "a barrier at now + W: even the newest fresh timestamp is not after it",
          Knock("just set", request(at=T + 60 * SECOND)), barrier=T + 60 * SECOND,
          controls=[Knock("just set later", request(at=T + 60 * SECOND + 1), now=T + 1)])
    v.add("barrier-before-bound-source", "barrier", "at the barrier and bound to another address",
          Knock("barrier bound", request(at=T, bound=OTHER_SRC)), barrier=T,
          controls=[Knock("after barrier", request(at=T + 1))])


def add_floor(v):
    w = 60 * SECOND
    ahead = Knock("ahead", request("web", at=T + w))
    v.add("floor-equal", "floor",
          "H is now + W, so the floor is now - W: a timestamp of now - W is fresh but not above it",
          Knock("at floor", request(at=T - w)), history=[ahead],
          controls=[Knock("above floor", request(at=T - w + 1)),
                    Knock("other client", request(at=T - w), party=BOB)])
    later = T + 300 * SECOND
    v.add("floor-clock-set-back", "floor",
          "the server's clock was set back by 300 s after a knock was accepted",
          Knock("set back"), history=[Knock("later", request(at=later), now=later)],
          controls=[Knock("set back other client", party=BOB)])
    back = T + 90 * SECOND
    v.add("floor-clock-set-back-equal", "floor",
          "the clock was set back by 90 s: the floor is 30 s before it",
          Knock("set back equal", request(at=T - 30 * SECOND)),
          history=[Knock("90 later", request(at=back), now=back)],
          controls=[Knock("set back above", request(at=T - 30 * SECOND + 1))])
    v.add("floor-not-lowered", "floor",
          "a knock with a lower timestamp came after the one with the highest",
          Knock("not lowered", request(at=T - w)),
          history=[ahead, Knock("lower", request(at=T - 1))],
          controls=[Knock("not lowered good", request(at=T - w + 1))])
    bound_ahead = Knock("bound ahead", request(at=T + w, bound=OTHER_SRC))
    v.add("floor-raised-by-accepted-only", "floor",
          "a knock that was dropped (bound to another address) leaves the floor where the accepted"
          " one has put it, at now - W - 1",
          Knock("raised by accepted", request(at=T - w - 1), now=T - 1),
          history=[Knock("accepted", request(at=T + w - 1)), dropped(bound_ahead)],
          controls=[Knock("not raised", request(at=T - w))])
    v.add("floor-w10", "floor", "the same as floor-equal with W = 10 s",
          Knock("at floor 10", request(at=T - 10 * SECOND)), w=10,
          history=[Knock("ahead 10", request(at=T + 10 * SECOND))],
          controls=[Knock("above floor 10", request(at=T - 10 * SECOND + 1))])
    v.add("barrier-before-floor", "barrier", "at the barrier and at the floor",
          Knock("barrier and floor", request(at=T - w)), barrier=T - w, history=[ahead],
          controls=[Knock("above both", request(at=T - w + 1))])
    v.add("floor-before-bound-source", "floor", "at the floor and bound to another address",
          Knock("floor bound", request(at=T - w, bound=OTHER_SRC)), history=[ahead])


def add_replay(v):
    first = Knock("replayed")
    fresh = Knock("fresh nonce")
    v.add("replay", "replay", "an accepted packet again", first, history=[first],
          controls=[fresh])
    v.add("replay-other-source", "replay", "an accepted packet again, from another address",
          first.sent(source=OTHER_SRC), history=[first], controls=[fresh])
    v.add("replay-other-source-bound", "replay",
          "an accepted packet that is bound, from another address: replay is checked first",
          Knock("replay bound", request(bound=SRC)).sent(source=OTHER_SRC),
          history=[Knock("replay bound", request(bound=SRC))],
          controls=[Knock("replay bound 2", request(bound=SRC))])
    v.add("replay-too-old", "replay",
          "an accepted packet again, 61 s later: a nonce is not forgotten because it has aged",
          first.sent(now=T + 61 * SECOND), history=[first],
          controls=[Knock("61 later", request(at=T + 61 * SECOND), now=T + 61 * SECOND)])
    v.add("replay-clock-set-back", "replay",
          "accepted, the clock went 100 s on without another knock, was set back, and the packet"
          " came again",
          first, history=[first, dropped(first.sent(now=T + 100 * SECOND))], controls=[fresh])
    v.add("replay-after-others", "replay", "others, with other timestamps, came in between",
          first, history=[first] + [
              Knock(f"between {i}", request(at=T - 30 * SECOND + 10 * i * SECOND))
              for i in range(6)], controls=[fresh])
    same = Knock("same nonce", request("web"))
    v.add("replay-same-nonce-other-request", "replay",
          "the nonce of an accepted knock with another request and timestamp",
          Knock("same nonce", request("ssh", at=T + 1)), history=[same],
          controls=[Knock("same nonce", request("ssh"), party=BOB)])
    v.add("replay-before-decrypt", "replay",
          "the nonce of an accepted knock, a wrong AEAD tag, a right MAC",
          same.remade(aead_tag=bytes(16)), history=[same], controls=[fresh])
    v.add("replay-of-close", "replay", "an accepted close again",
          Knock("close again", request(close=True)),
          history=[Knock("close again", request(close=True))], controls=[
              Knock("close once more", request(close=True))])


def add_bound(v):
    def case(name, why, bound, source, controls):
        v.add(name, "bound-source", why,
              Knock(name, request(bound=bound), source=source), controls=controls)

    v6 = Knock("bound v6", request(bound=SRC))
    v4 = Knock("bound v4", request(bound=SRC4), source=SRC4)
    any4 = Knock("unbound v4", source=OTHER_SRC4)
    case("bound-source-ipv6", "bound to one IPv6 address, came from another", SRC, OTHER_SRC,
         [v6, Knock("unbound", source=OTHER_SRC)])
    case("bound-source-ipv4", "bound to one IPv4 address, came from another", SRC4, OTHER_SRC4,
         [v4, any4])
    case("bound-source-ipv4-from-ipv6", "bound to an IPv4 address, came from an IPv6 address",
         SRC4, SRC, [v4, v6])
    case("bound-source-ipv6-from-ipv4", "bound to an IPv6 address, came from an IPv4 address",
         SRC, SRC4, [v4, v6])
    case("bound-source-ipv4-compatible", "bound to ::192.0.2.7, which is not 192.0.2.7 mapped",
         "::c000:207", SRC4, [v4])
    case("bound-source-same-prefix", "only the last byte differs", "2001:db8::107", SRC, [v6])
    bound = Knock("bound twice", request(bound=SRC))
    v.add("bound-source-not-burned", "bound-source",
          "sent twice from a wrong address: the first did not enter the replay window, the owner"
          " can still use it",
          bound.sent(source=OTHER_SRC), history=[dropped(bound.sent(source=OTHER_SRC))],
          controls=[bound])
    v.add("bound-source-before-superseded", "bound-source",
          "bound to another address, and closed by a later knock",
          Knock("bound superseded", request(bound=OTHER_SRC)),
          history=[Knock("later close", request(at=T + 1, close=True))],
          controls=[Knock("after later close", request(at=T + 2))])


def add_superseded(v):
    close = Knock("close ssh", request("ssh", at=T, close=True))
    later = Knock("open later", request("ssh", at=T + 1))
    other = Knock("open web", request("web", at=T))
    v.add("superseded-equal", "superseded", "an open with the timestamp of an accepted close",
          Knock("open equal", request("ssh", at=T)), history=[close], controls=[later, other])
    v.add("superseded-earlier", "superseded",
          "an open with an earlier timestamp than an accepted close: it was delayed",
          Knock("open earlier", request("ssh", at=T - 5 * SECOND)), history=[close],
          controls=[later, other,
                    Knock("close earlier", request("ssh", at=T - 5 * SECOND, close=True)),
                    Knock("open by other", request("ssh", at=T - 5 * SECOND), party=BOB)])
    v.add("superseded-after-open", "superseded", "opened, closed, then an older open arrives",
          Knock("open old", request("ssh", at=T - 2)),
          history=[Knock("open first", request("ssh", at=T - 1)), close], controls=[later])
    v.add("superseded-port-for-service", "superseded",
          "the service was closed, its port is to be opened",
          Knock("open port", request("tcp/443", at=T)),
          history=[Knock("close web", request("web", at=T, close=True))],
          controls=[Knock("open port later", request("tcp/443", at=T + 1)),
                    Knock("open ssh", request("ssh", at=T))])
    v.add("superseded-service-for-port", "superseded",
          "one port of a service was closed, the service is to be opened",
          Knock("open web all", request("web", at=T)),
          history=[Knock("close 443", request("tcp/443", at=T, close=True))],
          controls=[Knock("open 80", request("tcp/80", at=T))])
    v.add("superseded-one-of-several", "superseded",
          "one of two requested services was closed",
          Knock("open both", request("web", "ssh", at=T)), history=[close],
          controls=[Knock("open both later", request("web", "ssh", at=T + 1))])
    v.add("superseded-older-close-after", "superseded",
          "an older close arrived after the later one: the later one counts",
          Knock("open between", request("ssh", at=T - 1)),
          history=[close, Knock("older close", request("ssh", at=T - 5 * SECOND, close=True))],
          controls=[later])
    v.add("superseded-by-accepted-close-only", "superseded",
          "one close was accepted, another one was dropped (bound to another address): the latter"
          " supersedes nothing",
          Knock("open web closed", request("web", at=T - 1)),
          history=[Knock("close web accepted", request("web", at=T, close=True)),
                   dropped(Knock("close ssh dropped",
                                 request("ssh", at=T, close=True, bound=OTHER_SRC)))],
          controls=[Knock("open ssh not closed", request("ssh", at=T - 1))])
    v.add("superseded-before-window-full", "superseded",
          "closed by a later knock, and the window is full",
          Knock("superseded full", request("ssh", at=T - 1)), history=[close], capacity=1)


def add_window_full(v):
    w = 60 * SECOND
    one = Knock("full 1", request(at=T))
    two = Knock("full 2", request(at=T + 1))
    v.add("window-full", "window-full", "two knocks are in a window for two",
          Knock("full 3", request(at=T + 2)), history=[one, two], capacity=2,
          controls=[Knock("full other client", request(at=T + 2), party=BOB)])
    v.add("window-full-lower-timestamp", "window-full",
          "the same with a timestamp below those in the window",
          Knock("full lower", request(at=T - 1)), history=[one, two], capacity=2)
    end = T + 2 * w
    v.add("window-full-floor-one-below", "window-full",
          "the new floor would be one microsecond below the oldest timestamp; at that timestamp"
          " the nonce would be forgotten",
          Knock("full almost", request(at=end - 1), now=end), history=[one, two], capacity=2,
          controls=[Knock("full room", request(at=end), now=end)])
    v.add("window-full-refused-does-not-count", "window-full",
          "a refused knock neither enters the window nor raises the floor",
          Knock("full 5", request(at=T + 2)),
          history=[one, two, dropped(Knock("full 4", request(at=T + w)))], capacity=2,
          controls=[Knock("full room again", request(at=end), now=end)])
    v.add("window-full-not-evicted", "replay",
          "the window is full and a knock was refused: the first nonce is still known",
          one, history=[one, two, dropped(Knock("full 3", request(at=T + 2)))], capacity=2)
    v.add("window-full-close", "window-full", "a close, too, needs room in the window",
          Knock("full close", request(close=True, at=T + 2)), history=[one, two], capacity=2)


def add_skew(v):
    """W = 60 s, now 17 s into an epoch: the epochs -1, 0 and +1 can be fresh, no others."""
    past = EPOCH_START - 3 * spa.EPOCH_US
    future = EPOCH_START + 3 * spa.EPOCH_US
    good = Knock("skew fresh")

    def skewed(i, **more):
        return Knock(f"skew {i}", request(at=past + i), **more)

    four = [dropped(skewed(i)) for i in range(4)]
    v.add("skew-unexamined", "skew-unexamined",
          "the fifth datagram in one second with a tag of an epoch that can't be fresh",
          skewed(4), history=four, controls=[good])
    v.add("skew-unexamined-all-clients-together", "skew-unexamined",
          "the allowance is one for all clients", skewed(4, party=BOB), history=four,
          controls=[Knock("skew fresh bob", party=BOB)])
    v.add("skew-unexamined-past-and-future", "skew-unexamined",
          "the allowance is one for both directions",
          Knock("skew future", request(at=future)), history=four, controls=[good])
    v.add("skew-unexamined-forged", "skew-unexamined",
          "datagrams whose MAC does not hold have spent the allowance too",
          skewed(4), history=[dropped(k.flipped(215)) for k, _ in four], controls=[good])
    v.add("skew-unexamined-same-packet", "skew-unexamined",
          "one packet five times: it is not in the replay window, as it was not accepted",
          skewed(0), history=[dropped(skewed(0))] * 4, controls=[good])
    v.add("skew-unexamined-wrong-mac", "skew-unexamined",
          "the allowance is spent: the MAC is not looked at", skewed(4).flipped(215),
          history=four, controls=[good])
    v.add("skew-allowance-of-four", "too-old", "the fourth datagram is still looked at",
          skewed(3), history=four[:3], controls=[good])
    v.add("skew-allowance-comes-back", "too-old", "two seconds later there is an allowance again",
          skewed(4, now=T + 2 * SECOND), history=four, controls=[good])
    v.add("skew-fresh-epochs-cost-nothing", "too-old",
          "datagrams that are too old by one microsecond, in an epoch that can be fresh, do not"
          " spend the allowance",
          Knock("near 9", request(at=T - 60 * SECOND - 1)),
          history=[dropped(Knock(f"near {i}", request(at=T - 60 * SECOND - 1)))
                   for i in range(9)], controls=[good])
    edge = EPOCH_START + 60 * SECOND - 1  # now - W is the last us of an epoch, now + W too
    v.add("skew-epoch-touches-window-end", "too-new",
          "now + W is the first microsecond of an epoch: that epoch can be fresh, whatever was"
          " spent",
          Knock("touches", request(at=edge + 1 + 60 * SECOND + 1), now=edge + 1),
          history=[dropped(skewed(i, now=edge + 1)) for i in range(4)],
          controls=[Knock("touches good", request(at=edge + 1 + 60 * SECOND), now=edge + 1)])
    v.add("skew-epoch-touches-window-start", "too-old",
          "now - W is the last microsecond of an epoch: that epoch can be fresh, whatever was"
          " spent",
          Knock("touches start", request(at=edge - 60 * SECOND - 1), now=edge),
          history=[dropped(skewed(i, now=edge)) for i in range(4)],
          controls=[Knock("touches start good", request(at=edge - 60 * SECOND), now=edge)])
    v.add("skew-epoch-just-misses-window-start", "skew-unexamined",
          "now - W is the first microsecond of an epoch: the epoch before can't be fresh",
          Knock("misses start", request(at=edge - 60 * SECOND), now=edge + 1),
          history=[dropped(skewed(i, now=edge + 1)) for i in range(4)],
          controls=[Knock("misses start good", request(at=edge + 1 - 60 * SECOND),
                          now=edge + 1)])
    v.add("skew-epoch-just-misses-window-end", "skew-unexamined",
          "now + W is the last microsecond of an epoch: the next epoch can't be fresh",
          Knock("misses", request(at=edge + 60 * SECOND + 1), now=edge),
          history=[dropped(skewed(i, now=edge)) for i in range(4)],
          controls=[Knock("misses good", request(at=edge + 60 * SECOND), now=edge)])


def build_negative():
    v = Negatives()
    for add in (add_length, add_unknown_tag, add_skew, add_mac, add_replay, add_decrypt,
                add_layout, add_epoch, add_freshness, add_barrier, add_floor, add_bound,
                add_superseded, add_window_full):
        add(v)
    names = [x["name"] for x in v.vectors]
    assert len(set(names)) == len(names)
    return v.vectors


def run_negative(v):
    """Complaints about one negative vector, by the reference receiver on the file's contents."""
    server_private = bytes.fromhex(v["server_private"])

    def receiver():
        kind, more = spa.Receiver, {}
        if "invitations" in v:
            previous = v["previous_private"]
            kind = announcement.Receiver
            more["previous_private"] = None if previous is None else bytes.fromhex(previous)
        r = kind(server_private, freshness_s=v["freshness_s"],
                 plaintext_length=v["plaintext_length"], window_capacity=v["window_capacity"],
                 barrier_us=v["barrier_us"], resolve=resolve(v["services"]), **more)
        for i in v.get("invitations", []):
            r.invite(bytes.fromhex(i["secret"]), i["expiry_s"], i["void"])
        for c in v["clients"]:
            r.add_client(bytes.fromhex(c["client_public"]),
                         None if c["psk"] is None else bytes.fromhex(c["psk"]))
        return r

    def feed(r, x):
        got = r.receive(bytes.fromhex(x["packet"]), x["source"], x["now_us"])
        if isinstance(got.request, spa.Request):
            ports = resolve(v["services"])(got.request.items)
            if ports != x["ports"]:
                complaints.append(f"{v['name']}: ports: {x['ports']}, computed {ports}")
        return got.drop_reason

    complaints = []
    if spa.x25519_public(server_private).hex() != v["server_public"]:
        complaints.append(f"{v['name']}: server_public")

    def after_history():
        r = receiver()
        for i, h in enumerate(v["history"]):
            got = feed(r, h)
            if (got is None) != h["accept"]:
                complaints.append(f"{v['name']}: history[{i}]: accept is {h['accept']}, got {got}")
        return r

    got = feed(after_history(), v)
    if got != v["drop_reason"]:
        complaints.append(f"{v['name']}: drop_reason: {v['drop_reason']}, computed {got}")
    for i, c in enumerate(v["controls"]):
        got = feed(after_history(), c)
        if got is not None:
            complaints.append(f"{v['name']}: controls[{i}]: dropped as {got}")
    return complaints


# --- keys as text ----------------------------------------------------------------------


def build_keys():
    valid = [{"kind": kind, "key": key.hex(), "text": spa.key_to_text(kind, key)}
             for kind, key in (("private", ALICE.private), ("public", ALICE.public),
                               ("psk", BOB.psk), ("private", SERVER), ("public", SERVER_PUBLIC),
                               ("public", ALICE.private), ("psk", b"\xff" * 32),
                               ("private", b"\xfb" * 32),
                               ("invitation", announcement_vectors.INVITATION),
                               ("invitation", b"\xff" * 32),
                               ("invitation", bytes(31) + b"\x01"))]
    text = spa.key_to_text("public", b"\xfb\xef" * 16)
    prefix, body = text[:11], text[11:]
    raw = base64.urlsafe_b64decode(body)
    psk = spa.key_to_text("psk", BOB.psk)
    invitation = spa.key_to_text("invitation", announcement_vectors.INVITATION)
    invitation_prefix, invitation_body = invitation[:15], invitation[15:]
    invalid = [
        ("public", "empty", ""),
        ("public", "the prefix only", prefix),
        ("public", "no prefix", body),
        ("public", "another kind of key", spa.key_to_text("private", ALICE.private)),
        ("public", "another kind's checksum under this prefix",
         prefix + psk[len("spa-psk-"):]),
        ("public", "the prefix in upper case", prefix.upper() + body),
        ("public", "one character short", text[:-1]),
        ("public", "one character long", text + "A"),
        ("public", "padding", text + "===="),
        ("public", "the alphabet with + and /",
         prefix + base64.b64encode(raw).decode()),
        ("public", "a bit of the key flipped",
         prefix + base64.urlsafe_b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode()),
        ("public", "a bit of the checksum flipped",
         prefix + base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()),
        ("public", "no checksum", prefix + base64.urlsafe_b64encode(raw[:32]).decode().rstrip("=")),
        ("public", "a checksum without the prefix in it",
         prefix + base64.urlsafe_b64encode(
             raw[:32] + hashlib.sha256(b"spa key v1" + raw[:32]).digest()[:4]).decode()),
        ("invitation", "the prefix only", invitation_prefix),
        ("invitation", "no prefix", invitation_body),
        ("invitation", "another kind of key", psk),
        ("invitation", "another kind's checksum under this prefix",
         invitation_prefix + psk[len("spa-psk-"):]),
        ("psk", "another kind of key", invitation),
        ("psk", "another kind's checksum under this prefix", "spa-psk-" + invitation_body),
        ("invitation", "the prefix of an invitation's text", "spa1:" + invitation_body),
        ("invitation", "the prefix in upper case", invitation_prefix.upper() + invitation_body),
        ("invitation", "one character short", invitation[:-1]),
        ("invitation", "one character long", invitation + "A"),
        ("invitation", "padding", invitation + "===="),
        ("invitation", "the last character is another",
         invitation[:-1] + ("A" if invitation[-1] != "A" else "B")),
    ]
    p = 2**255 - 19
    order_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
    points = [("u = 0", 0), ("u = 1", 1), ("u = p - 1", p - 1), ("u = p", p), ("u = p + 1", p + 1),
              ("order 8", order_8)]
    refused = [{"why": f"a point of low order: {why}", "client_public": u.to_bytes(32, "little").hex(),
                "psk": None} for why, u in points]
    refused.append({"why": "a point of low order: u = 0 with the unused bit set",
                    "client_public": (1 << 255).to_bytes(32, "little").hex(), "psk": None})
    refused += [{"why": f"not canonical: {name}", "client_public": u.hex(), "psk": None}
                for name, u in announcement_vectors.non_canonical(BOB.public)]
    refused.append({"why": "the server's own key", "client_public": SERVER_PUBLIC.hex(),
                    "psk": None})
    refused.append({"why": "a pre-shared key of zeros", "client_public": BOB.public.hex(),
                    "psk": bytes(32).hex()})
    refused.append({"why": "the client in `clients` has this key",
                    "client_public": ALICE.public.hex(), "psk": BOB.psk.hex()})
    return {
        "valid": valid,
        "invalid": [{"kind": k, "why": why, "text": t} for k, why, t in invalid],
        "server_private": SERVER.hex(),
        "clients": [ALICE.json()],
        "refused_clients": refused,
    }


def run_keys(v):
    complaints = []
    for x in v["valid"]:
        try:
            if spa.key_from_text(x["kind"], x["text"]).hex() != x["key"]:
                complaints.append(f"keys: another key: {x['text']}")
        except spa.SpaError as e:
            complaints.append(f"keys: {x['text']}: {e}")
    for x in v["invalid"]:
        try:
            spa.key_from_text(x["kind"], x["text"])
            complaints.append(f"keys: not refused: {x['why']}")
        except spa.SpaError:
            pass
    for x in v["refused_clients"]:
        r = spa.Receiver(bytes.fromhex(v["server_private"]))
        for c in v["clients"]:
            r.add_client(bytes.fromhex(c["client_public"]),
                         None if c["psk"] is None else bytes.fromhex(c["psk"]))
        try:
            r.add_client(bytes.fromhex(x["client_public"]),
                         None if x["psk"] is None else bytes.fromhex(x["psk"]))
            complaints.append(f"keys: client not refused: {x['why']}")
        except spa.SpaError:
            pass
    return complaints


# --- keys under a passphrase -----------------------------------------------------------


def encrypted(name, kind, key, passphrase, cost, **more):
    salt, nonce = digest(f"{name} salt")[:16], digest(f"{name} nonce")[:24]
    text = spa.encrypt_key(kind, key, passphrase, *cost, salt, nonce)
    return {"kind": kind, "passphrase": passphrase.hex(), "memory_kib": cost[0], "passes": cost[1],
            "lanes": cost[2], "salt": salt.hex(), "nonce": nonce.hex(),
            "derived": spa.passphrase_key(passphrase, *cost, salt).hex(),
            "key": key.hex(), "text": text, **more}


def build_encrypted_keys():
    words = "correct horse battery staple".encode()
    valid = [encrypted(name, kind, key, passphrase, cost) for name, kind, key, passphrase, cost in (
        ("encrypted 1", "encrypted-private", ALICE.private, words, (64, 1, 1)),
        ("encrypted 2", "encrypted-private", b"\xfb" * 32, "Ström 東".encode(), (256, 3, 4)),
        ("encrypted 3", "encrypted-psk", BOB.psk, words, (8, 1, 1)),
        ("encrypted 4", "encrypted-psk", BOB.psk, b"\xff\x00 ", (128, 2, 16)),
        ("encrypted 5", "encrypted-private", SERVER, b"x" * 1024, (65536, 3, 1)),
    )]
    good = valid[0]["text"]
    prefix = spa.PREFIXES["encrypted-private"]
    raw = base64.urlsafe_b64decode(good[len(prefix):])

    def with_checksum(binary, kind="encrypted-private"):
        text = base64.urlsafe_b64encode(binary + spa.key_checksum(kind, binary))
        return spa.PREFIXES[kind] + text.decode().rstrip("=")

    def flipped(at):
        return with_checksum(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:-4])

    def cost(memory, passes, lanes):
        return with_checksum(struct.pack(">IHH", memory, passes, lanes) + raw[8:-4])

    psk = valid[2]["text"]
    zero = spa.encrypt_key("encrypted-psk", bytes(32), words, 8, 1, 1, bytes(16), bytes(24))
    other = spa.encrypted_parts("encrypted-private", valid[1]["text"])["public"]
    header = raw[:24] + other + raw[56:80]
    sealed = b"".join(spa.xchacha20poly1305_seal(
        spa.passphrase_key(words, 64, 1, 1, raw[8:24]), raw[56:80], ALICE.private,
        prefix.encode() + header))
    invalid = [
        ("encrypted-private", "passphrase", "another passphrase", good, b"correct horse"),
        ("encrypted-private", "passphrase", "another salt", flipped(8), words),
        ("encrypted-private", "passphrase", "another public key", flipped(24), words),
        ("encrypted-private", "passphrase", "another nonce", flipped(56), words),
        ("encrypted-private", "passphrase", "another ciphertext", flipped(80), words),
        ("encrypted-private", "passphrase", "another tag", flipped(127), words),
        ("encrypted-private", "passphrase", "another number of passes than it was made with",
         cost(64, 2, 1), words),
        ("encrypted-private", "content", "sealed with the public key of another",
         with_checksum(header + sealed), words),
        ("encrypted-psk", "content", "a pre-shared key of zeros", zero, words),
        ("encrypted-private", "text", "a checksum that does not hold",
         good[:-1] + ("A" if good[-1] != "A" else "B"), words),
        ("encrypted-private", "text", "one character short", good[:-1], words),
        ("encrypted-private", "text", "one character long", good + "A", words),
        ("encrypted-private", "text", "another kind of key", psk, words),
        ("encrypted-psk", "text", "bits after the last byte", psk[:-1] + chr(ord(psk[-1]) + 1), words),
        ("encrypted-psk", "text", "the body of another kind",
         spa.PREFIXES["encrypted-psk"] + good[len(prefix):], words),
        ("encrypted-private", "text", "100 GiB of memory", cost(100 << 20, 1, 1), words),
        ("encrypted-private", "text", "a KiB more than 1 GiB", cost((1 << 20) + 1, 1, 1), words),
        ("encrypted-private", "text", "1 GiB in five passes", cost(1 << 20, 5, 1), words),
        ("encrypted-private", "text", "no pass", cost(64, 0, 1), words),
        ("encrypted-private", "text", "no lane", cost(64, 1, 0), words),
        ("encrypted-private", "text", "17 lanes", cost(1024, 1, 17), words),
        ("encrypted-private", "text", "less than 8 KiB for a lane", cost(15, 1, 2), words),
    ]
    return {"valid": valid,
            "invalid": [{"kind": k, "what": what, "why": why, "text": t, "passphrase": p.hex()}
                        for k, what, why, t, p in invalid]}


def run_encrypted_keys(v):
    complaints = []
    for x in v["valid"]:
        passphrase, key = bytes.fromhex(x["passphrase"]), bytes.fromhex(x["key"])
        cost = x["memory_kib"], x["passes"], x["lanes"]
        salt, nonce = bytes.fromhex(x["salt"]), bytes.fromhex(x["nonce"])
        try:
            if spa.passphrase_key(passphrase, *cost, salt).hex() != x["derived"]:
                complaints.append(f"encrypted_keys: derived: {x['text']}")
            if spa.decrypt_key(x["kind"], x["text"], passphrase) != key:
                complaints.append(f"encrypted_keys: another key: {x['text']}")
            if spa.encrypt_key(x["kind"], key, passphrase, *cost, salt, nonce) != x["text"]:
                complaints.append(f"encrypted_keys: another text: {x['text']}")
        except spa.SpaError as e:
            complaints.append(f"encrypted_keys: {x['text']}: {e}")
    for x in v["invalid"]:
        try:
            spa.decrypt_key(x["kind"], x["text"], bytes.fromhex(x["passphrase"]))
            complaints.append(f"encrypted_keys: not refused: {x['why']}")
        except spa.WrongPassphrase:
            if x["what"] != "passphrase":
                complaints.append(f"encrypted_keys: refused for the passphrase: {x['why']}")
        except spa.SpaError:
            if x["what"] == "passphrase":
                complaints.append(f"encrypted_keys: refused for something else: {x['why']}")
    return complaints


# --- files -----------------------------------------------------------------------------

FILES = {"positive.json": build_positive, "negative.json": build_negative,
         "keys.json": build_keys, "encrypted_keys.json": build_encrypted_keys, "announcements.json": announcement_vectors.build,
         "invitations.json": invitation_vectors.build}


def differences(found, wanted, path):
    if isinstance(found, dict) and isinstance(wanted, dict):
        out = []
        for key in sorted(found.keys() | wanted.keys()):
            if key not in found:
                out.append(f"{path}.{key}: missing")
            elif key not in wanted:
                out.append(f"{path}.{key}: unknown")
            else:
                out += differences(found[key], wanted[key], f"{path}.{key}")
        return out
    if isinstance(found, list) and isinstance(wanted, list):
        out = []
        if len(found) != len(wanted):
            out.append(f"{path}: {len(found)} entries, computed {len(wanted)}")
        for i, (f, w) in enumerate(zip(found, wanted)):
            name = w.get("name", i) if isinstance(w, dict) else i
            out += differences(f, w, f"{path}[{name}]")
        return out
    if type(found) is not type(wanted) or found != wanted:
        return [f"{path}: {found!r}, computed {wanted!r}"]
    return []


def check_list(vectors, what, complaints_of):
    complaints = []
    for v in vectors:
        try:
            complaints += complaints_of(v)
        except (KeyError, TypeError, ValueError) as e:
            complaints.append(f"{what}[{v.get('name')}]: {type(e).__name__}: {e}")
    return complaints


def check_positive(vectors):
    return check_list(vectors, "positive", lambda v: differences(
        v, compute_positive(v), f"positive[{v['name']}]"))


def check_negative(vectors):
    return check_list(vectors, "negative", run_negative)


def check_announcements(v):
    return (check_list(v["positive"], "announcements", lambda x: differences(
                x, announcement_vectors.compute_positive(x), f"announcements[{x['name']}]"))
            + check_list(v["negative"], "announcements", run_negative))


RUN = {"positive.json": check_positive, "negative.json": check_negative, "keys.json": run_keys,
       "encrypted_keys.json": run_encrypted_keys,
       "announcements.json": check_announcements, "invitations.json": invitation_vectors.run}


def dump(value):
    return json.dumps(value, indent=2) + "\n"


def write(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, build in FILES.items():
        value = build()
        complaints = RUN[name](value)
        if complaints:
            return complaints
        (directory / name).write_text(dump(value), encoding="ascii")
    return []


def check(directory):
    complaints = []
    for name, build in FILES.items():
        try:
            found = json.loads((directory / name).read_text(encoding="ascii"))
        except (OSError, ValueError) as e:
            complaints.append(f"{name}: {e}")
            continue
        complaints += RUN[name](found)
        complaints += differences(found, build(), name)
    return complaints


def main(argv):
    if len(argv) != 3 or argv[1] not in ("write", "check"):
        print(__doc__, file=sys.stderr)
        return 2
    directory = pathlib.Path(argv[2])
    complaints = {"write": write, "check": check}[argv[1]](directory)
    for c in complaints:
        print(c, file=sys.stderr)
    if complaints:
        return 1
    for name in FILES:
        value = json.loads((directory / name).read_text(encoding="ascii"))
        count = len(value) if isinstance(value, list) else sum(
            len(x) for x in value.values() if isinstance(x, list))
        print(f"{name}: {count} vectors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
