"""The single-packet authorization protocol, version 1: a second implementation.

Written from docs/protocol.md alone. It is a reference for interoperability and for the
test vectors; it is not hardened (no constant-time field arithmetic of its own, no store).
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import struct
from collections import deque
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SALT = b"single-packet-authorization v1"
TAG_LABEL = b"spa v1 tag"
MASK_INFO = b"tag-mask"
PAIR_INFO = b"client-to-server"

TAG_LEN = 16
NONCE_LEN = 24
AEAD_TAG_LEN = 16
MAC_LEN = 32
OVERHEAD = TAG_LEN + NONCE_LEN + AEAD_TAG_LEN + MAC_LEN
HEADER_LEN = 31

MIN_PLAINTEXT = 128
MAX_PLAINTEXT = 320
DEFAULT_PLAINTEXT = 128
DEFAULT_PORT = 62201
MAX_ITEMS = 8

SECOND = 1_000_000
EPOCH_S = 60
EPOCH_US = EPOCH_S * SECOND
EPOCHS_BEFORE = 4
EPOCHS_AFTER = 3
SKEW_EXAMINED_PER_SECOND = 4

OPEN = 1
CLOSE = 2
KIND_TCP = 0x40
KIND_UDP = 0x41


class SpaError(ValueError):
    """An input that the protocol refuses."""


# --- primitives ------------------------------------------------------------------------


def x25519_public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def x25519(private, public):
    """The shared secret. An all-zero one is refused (RFC 7748 section 6.1)."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as e:
        raise SpaError("the public key is a point of low order") from e
    if shared == bytes(32):
        raise SpaError("the public key is a point of low order")
    return shared


def is_canonical(public):
    """Section 3.1: the u-coordinate is below 2^255 - 19."""
    return int.from_bytes(public, "little") < 2**255 - 19


def hkdf(salt, ikm, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(ikm)


def hmac_sha256(key, data):
    return hmac.digest(key, data, "sha256")


def chacha20_stream(key, nonce12, counter, length):
    initial = struct.pack("<I", counter) + nonce12
    return Cipher(ChaCha20(key, initial), mode=None).encryptor().update(bytes(length))


def _rotl(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def _quarter_round(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF
    s[d] = _rotl(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF
    s[b] = _rotl(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF
    s[d] = _rotl(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF
    s[b] = _rotl(s[b] ^ s[c], 7)


def hchacha20(key, nonce16):
    """draft-irtf-cfrg-xchacha-03 section 2.2."""
    if len(key) != 32 or len(nonce16) != 16:
        raise SpaError("HChaCha20 takes a key of 32 bytes and a nonce of 16")
    s = list(struct.unpack("<4I", b"expand 32-byte k"))
    s += struct.unpack("<8I", key)
    s += struct.unpack("<4I", nonce16)
    for _ in range(10):
        _quarter_round(s, 0, 4, 8, 12)
        _quarter_round(s, 1, 5, 9, 13)
        _quarter_round(s, 2, 6, 10, 14)
        _quarter_round(s, 3, 7, 11, 15)
        _quarter_round(s, 0, 5, 10, 15)
        _quarter_round(s, 1, 6, 11, 12)
        _quarter_round(s, 2, 7, 8, 13)
        _quarter_round(s, 3, 4, 9, 14)
    return struct.pack("<8I", *(s[0:4] + s[12:16]))


def xchacha20poly1305_seal(key, nonce24, plaintext, aad):
    """Ciphertext and tag, separately."""
    sub = hchacha20(key, nonce24[:16])
    sealed = ChaCha20Poly1305(sub).encrypt(bytes(4) + nonce24[16:], plaintext, aad)
    return sealed[:-AEAD_TAG_LEN], sealed[-AEAD_TAG_LEN:]


def xchacha20poly1305_open(key, nonce24, ciphertext, tag, aad):
    """The plaintext, or None if the tag does not hold."""
    sub = hchacha20(key, nonce24[:16])
    try:
        return ChaCha20Poly1305(sub).decrypt(bytes(4) + nonce24[16:], ciphertext + tag, aad)
    except InvalidTag:
        return None


def xor(a, b):
    if len(a) != len(b):
        raise SpaError("lengths differ")
    return bytes(x ^ y for x, y in zip(a, b))


# --- keys as text (3.1) ----------------------------------------------------------------

PREFIXES = {"private": "spa-private-", "public": "spa-public-", "psk": "spa-psk-",
            "invitation": "spa-invitation-",
            "encrypted-private": "spa-encrypted-private-", "encrypted-psk": "spa-encrypted-psk-"}
_BODY = re.compile(r"[A-Za-z0-9_-]{48}")


def key_checksum(kind, key):
    return hashlib.sha256(b"spa key v1" + PREFIXES[kind].encode() + key).digest()[:4]


def key_to_text(kind, key):
    if len(key) != 32:
        raise SpaError("a key has 32 bytes")
    body = base64.urlsafe_b64encode(key + key_checksum(kind, key)).decode()
    return PREFIXES[kind] + body


def key_from_text(kind, text):
    """The 32 bytes. The messages never repeat the text: it may be a secret."""
    prefix = PREFIXES[kind]
    if not text.startswith(prefix):
        for other, p in PREFIXES.items():
            if text.startswith(p):
                raise SpaError(f"a {kind} key is wanted, this is a {other} key")
        raise SpaError(f"a {kind} key begins with {prefix}")
    body = text[len(prefix):]
    if not _BODY.fullmatch(body):
        raise SpaError(f"after {prefix} there must be 48 characters of base64url")
    raw = base64.urlsafe_b64decode(body)
    key, checksum = raw[:32], raw[32:]
    if checksum != key_checksum(kind, key):
        raise SpaError(f"the checksum of the {kind} key is wrong: it is mistyped or cut")
    return key


# --- keys under a passphrase (3.4) -----------------------------------------------------

# What stands for everybody to read: the public key; the length of the whole.
_SHOWN = {"encrypted-private": 32, "encrypted-psk": 0}
MAX_MEMORY_KIB = 1 << 20
MAX_WORK_KIB = 4 << 20
MAX_LANES = 16


class WrongPassphrase(SpaError):
    """The text is whole, the passphrase another."""


def passphrase_key(passphrase, memory_kib, passes, lanes, salt):
    if not 1 <= len(passphrase) <= 1024:
        raise SpaError("a passphrase has 1 to 1024 bytes")
    if not (1 <= lanes <= MAX_LANES and passes >= 1 and 8 * lanes <= memory_kib <= MAX_MEMORY_KIB
            and memory_kib * passes <= MAX_WORK_KIB):
        raise SpaError("the cost of a passphrase is out of bounds")
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes,
                    memory_cost=memory_kib).derive(passphrase)


def encrypt_key(kind, key, passphrase, memory_kib, passes, lanes, salt, nonce):
    shown = x25519_public(key) if kind == "encrypted-private" else b""
    header = struct.pack(">IHH", memory_kib, passes, lanes) + salt + shown + nonce
    ciphertext, tag = xchacha20poly1305_seal(
        passphrase_key(passphrase, memory_kib, passes, lanes, salt), nonce, key,
        PREFIXES[kind].encode() + header)
    binary = header + ciphertext + tag
    body = base64.urlsafe_b64encode(binary + key_checksum(kind, binary)).decode().rstrip("=")
    return PREFIXES[kind] + body


def encrypted_parts(kind, text):
    """The fields of an encrypted key that need no passphrase."""
    prefix = PREFIXES[kind]
    if not text.startswith(prefix):
        raise SpaError(f"an {kind} key begins with {prefix}")
    body = text[len(prefix):]
    binary_length = 96 + _SHOWN[kind]
    if not re.fullmatch(r"[A-Za-z0-9_-]{%d}" % -(-(binary_length + 4) * 4 // 3), body):
        raise SpaError("the length or the alphabet is wrong")
    raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != body:
        raise SpaError("the last character has bits of its own")
    binary, checksum = raw[:-4], raw[-4:]
    if checksum != key_checksum(kind, binary):
        raise SpaError(f"the checksum of the {kind} key is wrong: it is mistyped or cut")
    memory_kib, passes, lanes = struct.unpack(">IHH", binary[:8])
    at = 24 + _SHOWN[kind]
    return {"memory_kib": memory_kib, "passes": passes, "lanes": lanes, "salt": binary[8:24],
            "public": binary[24:at], "nonce": binary[at:at + 24], "header": binary[:at + 24],
            "ciphertext": binary[at + 24:-16], "tag": binary[-16:]}


def decrypt_key(kind, text, passphrase):
    parts = encrypted_parts(kind, text)
    encrypting = passphrase_key(passphrase, parts["memory_kib"], parts["passes"],
                                parts["lanes"], parts["salt"])
    key = xchacha20poly1305_open(encrypting, parts["nonce"], parts["ciphertext"], parts["tag"],
                                 PREFIXES[kind].encode() + parts["header"])
    if key is None:
        raise WrongPassphrase("that is not the passphrase of this key")
    if kind == "encrypted-private" and x25519_public(key) != parts["public"]:
        raise SpaError("the public key is not that of the private key")
    if kind == "encrypted-psk" and key == bytes(32):
        raise SpaError("the pre-shared key is all zero")
    return key


# --- derivation (3.2, 3.3) -------------------------------------------------------------


@dataclass(frozen=True)
class PairSecret:
    shared: bytes
    ikm: bytes
    hkdf_output: bytes

    @property
    def k_tag(self):
        return self.hkdf_output[:32]

    @property
    def k_enc(self):
        return self.hkdf_output[32:64]

    @property
    def k_mac(self):
        return self.hkdf_output[64:]


def pair_secret(own_private, other_public, client_public, server_public, psk=None):
    if len(own_private) != 32:
        raise SpaError("a key has 32 bytes")
    for key in (other_public, client_public, server_public):
        if len(key) != 32:
            raise SpaError("a key has 32 bytes")
        if not is_canonical(key):
            raise SpaError("the public key is not canonical")
    if client_public == server_public:
        raise SpaError("client and server have the same key")
    if psk is not None:
        if len(psk) != 32:
            raise SpaError("a pre-shared key has 32 bytes")
        if psk == bytes(32):
            raise SpaError("the pre-shared key is all zero")
    shared = x25519(own_private, other_public)
    ikm = shared + (b"\x00" + bytes(32) if psk is None else b"\x01" + psk)
    out = hkdf(SALT, ikm, PAIR_INFO + client_public + server_public, 96)
    return PairSecret(shared, ikm, out)


def mask_key(server_public):
    return hkdf(SALT, server_public, MASK_INFO, 32)


def tag_mask(k_mask, nonce):
    return chacha20_stream(k_mask, nonce[:12], 0, TAG_LEN)


def epoch_of(timestamp_us):
    return timestamp_us // EPOCH_US


def epoch_tag(k_tag, epoch):
    return hmac_sha256(k_tag, TAG_LABEL + struct.pack(">Q", epoch))[:TAG_LEN]


# --- addresses -------------------------------------------------------------------------


def address_bytes(address):
    """16 bytes of an address; IPv4 is mapped into ::ffff:0:0/96. A zone is not accepted."""
    if isinstance(address, bytes):
        if len(address) != 16:
            raise SpaError("an address has 16 bytes")
        return address
    try:
        a = ipaddress.ip_address(address)
    except ValueError as e:
        raise SpaError(f"not an address: {address}") from e
    if a.version == 4:
        return bytes(10) + b"\xff\xff" + a.packed
    if a.scope_id is not None:
        raise SpaError(f"an address with a zone can't be sent: {address}")
    return a.packed


def address_text(raw):
    a = ipaddress.IPv6Address(raw)
    return str(a.ipv4_mapped if a.ipv4_mapped is not None else a)


# --- items and plaintext (5) -----------------------------------------------------------

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_PORT = re.compile(r"(tcp|udp)/([1-9][0-9]{0,4})")


def encode_item(item):
    """An item is written "ssh" (a service), "tcp/22" or "udp/53"."""
    m = _PORT.fullmatch(item)
    if m:
        port = int(m[2])
        if port > 65535:
            raise SpaError(f"a port is at most 65535: {item}")
        return bytes([KIND_TCP if m[1] == "tcp" else KIND_UDP]) + struct.pack(">H", port)
    if not _NAME.fullmatch(item):
        raise SpaError(
            f"neither a service's name (1 to 32 of a-z 0-9 - _ . , a letter first)"
            f" nor tcp/PORT nor udp/PORT: {item!r}"
        )
    return bytes([len(item)]) + item.encode("ascii")


@dataclass(frozen=True)
class Request:
    message_type: int
    timestamp_us: int
    items: tuple
    bound_source: str | None = None
    lifetime_s: int = 0


def encode_plaintext(request, plaintext_length=DEFAULT_PLAINTEXT):
    if not MIN_PLAINTEXT <= plaintext_length <= MAX_PLAINTEXT:
        raise SpaError(f"the plaintext length is {MIN_PLAINTEXT} to {MAX_PLAINTEXT}")
    if request.message_type not in (OPEN, CLOSE):
        raise SpaError("the message type is open or close")
    if not 0 <= request.timestamp_us < 1 << 64:
        raise SpaError("the timestamp does not fit into 64 bits")
    if not 0 <= request.lifetime_s < 1 << 32:
        raise SpaError("the lifetime does not fit into 32 bits")
    if not 1 <= len(request.items) <= MAX_ITEMS:
        raise SpaError(f"a knock has 1 to {MAX_ITEMS} items")
    bound = bytes(16)
    if request.bound_source is not None:
        bound = address_bytes(request.bound_source)
        if bound == bytes(16) or bound == address_bytes("0.0.0.0"):
            raise SpaError("a knock can't be bound to an unspecified address")
    encoded = [encode_item(item) for item in request.items]
    if len(set(encoded)) != len(encoded):
        raise SpaError("an item is there twice")
    body = b"".join(encoded)
    if len(body) > plaintext_length - HEADER_LEN:
        raise SpaError(
            f"the items need {len(body)} bytes, {plaintext_length - HEADER_LEN} are there:"
            " send several knocks"
        )
    head = struct.pack(">BBQ16sIB", 1, request.message_type, request.timestamp_us, bound,
                       request.lifetime_s, len(encoded))
    return (head + body).ljust(plaintext_length, b"\x00")


def decode_plaintext(plaintext):
    """A Request; SpaError if the bytes are not exactly as section 5 has them."""
    if len(plaintext) < HEADER_LEN:
        raise SpaError("short plaintext")
    version, message_type, timestamp_us, bound, lifetime_s, count = struct.unpack_from(
        ">BBQ16sIB", plaintext
    )
    if version != 1:
        raise SpaError("version")
    if message_type not in (OPEN, CLOSE):
        raise SpaError("message type")
    if bound == address_bytes("0.0.0.0"):
        raise SpaError("bound source")
    if not 1 <= count <= MAX_ITEMS:
        raise SpaError("item count")
    at = HEADER_LEN
    items = []
    for _ in range(count):
        if at >= len(plaintext):
            raise SpaError("items run past the end")
        first = plaintext[at]
        at += 1
        if 1 <= first <= 32:
            size = first
        elif first in (KIND_TCP, KIND_UDP):
            size = 2
        else:
            raise SpaError("item kind")
        value = plaintext[at:at + size]
        if len(value) != size:
            raise SpaError("items run past the end")
        at += size
        if first in (KIND_TCP, KIND_UDP):
            port = struct.unpack(">H", value)[0]
            if port == 0:
                raise SpaError("port")
            item = ("tcp/" if first == KIND_TCP else "udp/") + str(port)
        else:
            item = value.decode("latin-1")
            if not _NAME.fullmatch(item):
                raise SpaError("name")
        if item in items:
            raise SpaError("an item is there twice")
        items.append(item)
    if any(plaintext[at:]):
        raise SpaError("padding")
    return Request(message_type, timestamp_us, tuple(items),
                   None if bound == bytes(16) else address_text(bound), lifetime_s)


# --- sealing (4) -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """A packet and everything that was computed on the way."""

    shared: bytes
    ikm: bytes
    hkdf_output: bytes
    k_mask: bytes
    epoch: int
    tag: bytes
    mask: bytes
    masked_tag: bytes
    plaintext: bytes
    ciphertext: bytes
    aead_tag: bytes
    mac: bytes
    packet: bytes


def seal_plaintext(secret, server_public, nonce, plaintext, epoch):
    """Seal any bytes under the tag of any epoch: negative vectors need both."""
    if len(nonce) != NONCE_LEN:
        raise SpaError("a nonce has 24 bytes")
    k_mask = mask_key(server_public)
    tag = epoch_tag(secret.k_tag, epoch)
    mask = tag_mask(k_mask, nonce)
    masked_tag = xor(tag, mask)
    ciphertext, aead_tag = xchacha20poly1305_seal(secret.k_enc, nonce, plaintext, masked_tag)
    mac = hmac_sha256(secret.k_mac, masked_tag + nonce + ciphertext + aead_tag)
    return Sealed(secret.shared, secret.ikm, secret.hkdf_output, k_mask, epoch, tag, mask,
                  masked_tag, plaintext, ciphertext, aead_tag, mac,
                  masked_tag + nonce + ciphertext + aead_tag + mac)


def seal(client_private, server_public, psk, nonce, request, plaintext_length=DEFAULT_PLAINTEXT):
    plaintext = encode_plaintext(request, plaintext_length)
    client_public = x25519_public(client_private)
    secret = pair_secret(client_private, server_public, client_public, server_public, psk)
    return seal_plaintext(secret, server_public, nonce, plaintext, epoch_of(request.timestamp_us))


# --- receiving (6) ---------------------------------------------------------------------


@dataclass
class Window:
    """The replay window of one client (6.5). It outlives the client's removal."""

    seen: dict = field(default_factory=dict)
    highest: int | None = None
    floor: int | None = None


@dataclass
class Client:
    """Whom a tag leads to. `public` names it: a client's public key, an invitation's I_id.

    `secret` is what it seals packets to the present identity with, `previous` the same for the
    previous one; None where it seals none.
    """

    public: bytes
    secret: PairSecret | None
    closed: dict = field(default_factory=dict)
    previous: PairSecret | None = None


class Identity:
    """A key pair of the server, and what follows from it (3.4)."""

    def __init__(self, private):
        self.private = private
        self.public = x25519_public(private)
        self.k_mask = mask_key(self.public)


@dataclass(frozen=True)
class Verdict:
    drop_reason: str | None
    client: bytes | None = None
    request: Request | None = None
    nonce: bytes | None = None

    @property
    def accepted(self):
        return self.drop_reason is None


class Receiver:
    """Checks 1 to 12 and 15 to 17 of section 6.1; 13 and 14 are outside.

    `resolve` takes a request's items and gives its ports, for the check `superseded`.
    """

    def __init__(self, server_private, freshness_s=60, plaintext_length=DEFAULT_PLAINTEXT,
                 window_capacity=1024, barrier_us=None, resolve=None, previous_private=None):
        if not 10 <= freshness_s <= 120:
            raise SpaError("the freshness window is 10 to 120 seconds")
        if not MIN_PLAINTEXT <= plaintext_length <= MAX_PLAINTEXT:
            raise SpaError(f"the plaintext length is {MIN_PLAINTEXT} to {MAX_PLAINTEXT}")
        self.present = Identity(server_private)
        self.previous = None if previous_private is None else Identity(previous_private)
        self.w = freshness_s * SECOND
        self.plaintext_length = plaintext_length
        self.capacity = window_capacity
        self.barrier_us = barrier_us
        self.resolve = resolve or (lambda items: [i for i in items if _PORT.fullmatch(i)])
        self.clients = {}
        self.windows = {}
        self.skewed = deque()
        self._tables = {}
        self._table_epoch = None

    def add_client(self, public, psk=None):
        if public in self.clients:
            raise SpaError("another client has this public key")
        present, previous = (
            None if i is None else pair_secret(i.private, public, public, i.public, psk)
            for i in (self.present, self.previous))
        self.clients[public] = Client(public, present, previous=previous)
        self.windows.setdefault(public, Window())
        self._table_epoch = None

    def remove_client(self, public):
        del self.clients[public]
        self._table_epoch = None

    def _look_up(self, masked_tag, nonce, now_us):
        """Client, secret, epoch and identity; the present identity comes first (10)."""
        now = epoch_of(now_us)
        if self._table_epoch != now:
            epochs = range(max(0, now - EPOCHS_BEFORE), now + EPOCHS_AFTER + 1)
            secrets = {
                self.present: [(c, c.secret) for c in self.clients.values()],
                self.previous: [(c, c.previous) for c in self.clients.values()],
            }
            self._tables = {
                identity: {epoch_tag(secret.k_tag, epoch): (client, secret, epoch, identity)
                           for client, secret in pairs if secret is not None for epoch in epochs}
                for identity, pairs in secrets.items() if identity is not None
            }
            self._table_epoch = now
        for identity, table in self._tables.items():
            found = table.get(xor(masked_tag, tag_mask(identity.k_mask, nonce)))
            if found is not None:
                return found
        return None

    def _may_be_fresh(self, epoch, now_us):
        first = epoch * EPOCH_US
        return first <= now_us + self.w and first + EPOCH_US - 1 >= now_us - self.w

    def _spend_skew(self, now_us):
        """At most four datagrams in any second that ends now."""
        while self.skewed and not now_us - SECOND < self.skewed[0] <= now_us:
            self.skewed.popleft()
        if len(self.skewed) >= SKEW_EXAMINED_PER_SECOND:
            return False
        self.skewed.append(now_us)
        return True

    def receive(self, packet, source, now_us):
        p = self.plaintext_length
        if len(packet) != p + OVERHEAD:
            return Verdict("length")
        masked_tag = packet[:16]
        nonce = packet[16:40]
        ciphertext = packet[40:40 + p]
        aead_tag = packet[40 + p:56 + p]
        mac = packet[56 + p:]

        found = self._look_up(masked_tag, nonce, now_us)
        if found is None:
            return Verdict("unknown-tag")
        client, secret, epoch, identity = found
        if not self._may_be_fresh(epoch, now_us) and not self._spend_skew(now_us):
            return Verdict("skew-unexamined", client.public)
        if not hmac.compare_digest(hmac_sha256(secret.k_mac, packet[:56 + p]), mac):
            return Verdict("mac", client.public)

        def drop(reason, request=None):
            return Verdict(reason, client.public, request, nonce)

        window = self.windows[client.public]
        if nonce in window.seen:
            return drop("replay")
        plaintext = xchacha20poly1305_open(secret.k_enc, nonce, ciphertext, aead_tag,
                                           masked_tag)
        if plaintext is None:
            return drop("decrypt")
        try:
            request = self._decode(plaintext, client)
        except SpaError:
            return drop("layout")
        at = request.timestamp_us
        if epoch_of(at) != epoch:
            return drop("epoch", request)
        if at < now_us - self.w:
            return drop("too-old", request)
        if at > now_us + self.w:
            return drop("too-new", request)
        if self.barrier_us is not None and at <= self.barrier_us:
            return drop("barrier", request)
        if window.floor is not None and at <= window.floor:
            return drop("floor", request)
        if request.bound_source is not None:
            if address_bytes(request.bound_source) != address_bytes(source):
                return drop("bound-source", request)
        refusal = self._judge(request, client, nonce, now_us, identity)
        if refusal is not None:
            return drop(refusal, request)

        highest = at if window.highest is None else max(window.highest, at)
        floor = highest - 2 * self.w
        if window.floor is not None:
            floor = max(floor, window.floor)
        kept = {n: t for n, t in window.seen.items() if t > floor}
        if len(kept) >= self.capacity:
            return drop("window-full", request)
        kept[nonce] = at
        window.seen, window.highest, window.floor = kept, highest, floor
        self._take_effect(request, client)
        return Verdict(None, client.public, request, nonce)

    # What section 9 does otherwise (announcement.py).

    def _decode(self, plaintext, client):
        return decode_plaintext(plaintext)

    def _judge(self, request, client, nonce, now_us, identity):
        """The drop reason of the checks after 12, or None."""
        if request.message_type == OPEN:
            at = request.timestamp_us
            if any(client.closed.get(port, -1) >= at for port in self.resolve(request.items)):
                return "superseded"
        return None

    def _take_effect(self, request, client):
        if request.message_type == CLOSE:
            at = request.timestamp_us
            for port in self.resolve(request.items):
                client.closed[port] = max(at, client.closed.get(port, -1))
