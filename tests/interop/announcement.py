"""Announcing a key (docs/protocol.md, section 9): enrolment and rotation, both sides."""

import hmac
import struct
from dataclasses import dataclass

import spa

ENROLMENT = 3
ROTATION = 4
LABELS = {ENROLMENT: b"enrolment", ROTATION: b"rotation"}

PROOF_LEN = 16
SEALED_AT = 58
PROOF_AT = 106
PADDING_AT = 122


# --- derivation (9.1, 9.2) -------------------------------------------------------------


@dataclass(frozen=True)
class InvitationSecret:
    """What an invitation's secret gives; it takes the place of a pair secret."""

    ikm: bytes
    hkdf_output: bytes
    shared = None

    @property
    def k_tag(self):
        return self.hkdf_output[:32]

    @property
    def k_enc(self):
        return self.hkdf_output[32:64]

    @property
    def k_mac(self):
        return self.hkdf_output[64:96]

    @property
    def i_id(self):
        return self.hkdf_output[96:]


def invitation_secret(secret, server_public):
    if len(secret) != 32 or secret == bytes(32):
        raise spa.SpaError("an invitation's secret has 32 bytes, not all of them zero")
    return InvitationSecret(
        secret, spa.hkdf(spa.SALT, secret, b"invitation" + server_public, 128))


def rotation_x(pair, client_public, server_public):
    return spa.hkdf(spa.SALT, pair.ikm, b"rotation" + client_public + server_public, 32)


def derived_ephemeral(new_private, x, server_public):
    """The ephemeral that a client need not store (9.2)."""
    return spa.hkdf(spa.SALT, new_private + x, b"ephemeral" + server_public, 32)


def sealing_key(kind, x, es, ephemeral_public, server_public):
    return spa.hkdf(spa.SALT, x + es, LABELS[kind] + b" key" + ephemeral_public + server_public,
                    32)


def proof_and_psk(kind, x, es, ns, ephemeral_public, new_public, server_public):
    out = spa.hkdf(spa.SALT, x + es + ns,
                   LABELS[kind] + b" proof" + ephemeral_public + new_public + server_public, 64)
    return out[:32], out[32:]


def require_usable(public, server_public):
    """`E` and `N` must be canonical, and not `S`; x25519 refuses those of low order."""
    if not spa.is_canonical(public):
        raise spa.SpaError("the key is not canonical")
    if public == server_public:
        raise spa.SpaError("the key is the server's own")


def proof_of(k_proof, nonce, plaintext):
    return spa.hmac_sha256(k_proof, nonce + plaintext[:PROOF_AT])[:PROOF_LEN]


@dataclass(frozen=True)
class Announced:
    """An announcement as the client makes it, but for the packet."""

    ephemeral_public: bytes
    new_public: bytes
    x: bytes
    es: bytes
    ns: bytes
    k_new: bytes
    k_proof: bytes
    psk: bytes


def announce(kind, x, ephemeral_private, new_private, server_public):
    ephemeral_public = spa.x25519_public(ephemeral_private)
    new_public = spa.x25519_public(new_private)
    for public in (ephemeral_public, new_public):
        require_usable(public, server_public)
    es = spa.x25519(ephemeral_private, server_public)
    ns = spa.x25519(new_private, server_public)
    k_new = sealing_key(kind, x, es, ephemeral_public, server_public)
    k_proof, psk = proof_and_psk(kind, x, es, ns, ephemeral_public, new_public, server_public)
    return Announced(ephemeral_public, new_public, x, es, ns, k_new, k_proof, psk)


# --- plaintext (9.3) -------------------------------------------------------------------


@dataclass(frozen=True)
class Announcement:
    """The plaintext, as the server reads it before it opens the sealed key."""

    message_type: int
    timestamp_us: int
    bound_source: str | None
    ephemeral_public: bytes
    plaintext: bytes


def encode(kind, announced, nonce, timestamp_us, bound_source=None,
           plaintext_length=spa.DEFAULT_PLAINTEXT):
    if not spa.MIN_PLAINTEXT <= plaintext_length <= spa.MAX_PLAINTEXT:
        raise spa.SpaError("plaintext length")
    if not 0 <= timestamp_us < 1 << 64:
        raise spa.SpaError("the timestamp does not fit into 64 bits")
    bound = bytes(16)
    if bound_source is not None:
        bound = spa.address_bytes(bound_source)
        if bound in (bytes(16), spa.address_bytes("0.0.0.0")):
            raise spa.SpaError("an announcement can't be bound to an unspecified address")
    head = struct.pack(">BBQ16s", 1, kind, timestamp_us, bound) + announced.ephemeral_public
    sealed, tag = spa.xchacha20poly1305_seal(announced.k_new, nonce, announced.new_public, head)
    body = head + sealed + tag
    return (body + proof_of(announced.k_proof, nonce, body)).ljust(plaintext_length, b"\x00")


def decode(plaintext):
    """SpaError if the bytes are not laid out as 9.3 has them."""
    if len(plaintext) < PADDING_AT:
        raise spa.SpaError("short plaintext")
    version, kind, timestamp_us, bound = struct.unpack_from(">BBQ16s", plaintext)
    if version != 1:
        raise spa.SpaError("version")
    if kind not in LABELS:
        raise spa.SpaError("message type")
    if bound == spa.address_bytes("0.0.0.0"):
        raise spa.SpaError("bound source")
    if any(plaintext[PADDING_AT:]):
        raise spa.SpaError("padding")
    return Announcement(kind, timestamp_us,
                        None if bound == bytes(16) else spa.address_text(bound),
                        plaintext[26:SEALED_AT], plaintext)


def verify(server_private, x, announcement, nonce):
    """The server's check d of 9.4: the new public key and its pre-shared key."""
    server_public = spa.x25519_public(server_private)
    kind, plaintext = announcement.message_type, announcement.plaintext
    ephemeral = announcement.ephemeral_public
    require_usable(ephemeral, server_public)
    es = spa.x25519(server_private, ephemeral)
    k_new = sealing_key(kind, x, es, ephemeral, server_public)
    new = spa.xchacha20poly1305_open(k_new, nonce, plaintext[SEALED_AT:PROOF_AT - 16],
                                     plaintext[PROOF_AT - 16:PROOF_AT], plaintext[:SEALED_AT])
    if new is None:
        raise spa.SpaError("the sealed key does not open")
    require_usable(new, server_public)
    ns = spa.x25519(server_private, new)
    k_proof, psk = proof_and_psk(kind, x, es, ns, ephemeral, new, server_public)
    if not hmac.compare_digest(proof_of(k_proof, nonce, plaintext),
                               plaintext[PROOF_AT:PADDING_AT]):
        raise spa.SpaError("the proof does not hold")
    return new, psk


# --- the server (9.4) ------------------------------------------------------------------


@dataclass
class Invitation:
    """What the server knows of an invitation; it has an I_id for each of its identities."""

    secret: bytes
    expiry_s: int
    void: bool
    used_by: tuple | None = None


@dataclass
class Invited(spa.Client):
    """An invitation, in the place of a client."""

    invitation: Invitation | None = None


class Receiver(spa.Receiver):
    """Section 6 with section 9. The checks a and b are outside, as 13 and 14 are.

    A client with a pending key is two entries of `clients`; `pending` leads from the present
    key to the other one and its pre-shared key.
    """

    def __init__(self, server_private, **more):
        super().__init__(server_private, **more)
        self.pending = {}
        self.former = set()
        self._opened = None

    def invite(self, secret, expiry_s, void=False):
        invitation = Invitation(secret, expiry_s, void)
        for identity in (self.present, self.previous):
            if identity is None:
                continue
            keys = invitation_secret(secret, identity.public)
            present, previous = (keys if i is identity else None
                                 for i in (self.present, self.previous))
            self.clients[keys.i_id] = Invited(keys.i_id, present, {}, previous, invitation)
            self.windows.setdefault(keys.i_id, spa.Window())
        self._table_epoch = None

    def _decode(self, plaintext, client):
        kind = plaintext[1]
        if isinstance(client, Invited):
            wanted = kind == ENROLMENT
        else:
            wanted = kind != ENROLMENT
        if not wanted:
            raise spa.SpaError("message type")
        return decode(plaintext) if kind in LABELS else super()._decode(plaintext, client)

    def _judge(self, request, client, nonce, now_us, identity):
        if not isinstance(request, Announcement):
            return super()._judge(request, client, nonce, now_us, identity)
        enrolment = request.message_type == ENROLMENT
        if enrolment:
            if now_us >= client.invitation.expiry_s * spa.SECOND:
                return "invitation-expired"
            if client.invitation.void:
                return "invitation-void"
            x = client.invitation.secret
        else:
            if identity is not self.present:
                return "previous-server-key"
            x = rotation_x(client.secret, client.public, identity.public)
        try:
            announced = verify(identity.private, x, request, nonce)
        except spa.SpaError:
            return "proof"
        before = client.invitation.used_by if enrolment else self._pending_of(client)
        self._opened = None
        if before is not None:
            # The same key is accepted without effect, so `key-known` is not asked for it. With
            # another `psk` it is refused: its owner would take that one for accepted.
            if before == announced:
                return None
            return "invitation-used" if enrolment else "rotation-pending"
        new, _ = announced
        own = {i.public for i in (self.present, self.previous) if i is not None}
        if new in self.clients or new in self.former or new in own:
            return "key-known"
        self._opened = announced
        return None

    def _pending_of(self, client):
        """The pending key of the client and its psk, whichever of its two keys `client` is."""
        for old, (new, psk) in self.pending.items():
            if client.public in (old, new):
                return new, psk
        return None

    def _take_effect(self, request, client):
        if not isinstance(request, Announcement):
            for old, (new, _) in list(self.pending.items()):
                if new == client.public:
                    del self.pending[old]
                    self.remove_client(old)
                    self.former.add(old)
            super()._take_effect(request, client)
            return
        if self._opened is None:
            return
        new, psk = self._opened
        self.add_client(new, psk)
        if request.message_type == ENROLMENT:
            client.invitation.used_by = (new, psk)
        else:
            self.pending[client.public] = (new, psk)
            self.clients[new].closed = client.closed
