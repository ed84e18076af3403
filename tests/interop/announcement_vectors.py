"""The vectors of announcements.json: docs/protocol.md, section 9."""

import announcement
import spa
from announcement import ENROLMENT, ROTATION
from cases import (ALICE, BOB, CAPACITY, EPOCH_START, OTHER_SERVER, OTHER_SERVER_PUBLIC,
                   OTHER_SRC, OTHER_SRC4, SECOND, SERVER, SERVER_PUBLIC, SERVICES, SRC, SRC4, T,
                   Knock, Party, digest, dropped, hexed, nonce, request)

KINDS = {"enrolment": ENROLMENT, "rotation": ROTATION}
P_25519 = 2**255 - 19
EXPIRY = T // SECOND + 86_400
INVITATION = digest("invitation 1")
OTHER_INVITATION = digest("invitation 2")
NEW = digest("new client key 1 private")
OTHER_NEW = digest("new client key 2 private")
THIRD_NEW = digest("new client key 3 private")
EPHEMERAL = digest("ephemeral 1 private")
OTHER_EPHEMERAL = digest("ephemeral 2 private")


# --- positive --------------------------------------------------------------------------


def compute_positive(v):
    """A vector from the inputs in `v`, by the client's side and checked by the server's."""
    kind = KINDS[v["message_type"]]
    server_private = bytes.fromhex(v["server_private"])
    server_public = spa.x25519_public(server_private)
    receiver = announcement.Receiver(server_private, plaintext_length=v["plaintext_length"])
    client_private = client_public = old_psk = secret = i_id = None
    if kind == ENROLMENT:
        secret = bytes.fromhex(v["invitation_secret"])
        keys = announcement.invitation_secret(secret, server_public)
        x, i_id = secret, keys.i_id
        receiver.invite(secret, 2**64 - 1)
    else:
        client_private = bytes.fromhex(v["client_private"])
        client_public = spa.x25519_public(client_private)
        old_psk = None if v["old_psk"] is None else bytes.fromhex(v["old_psk"])
        keys = spa.pair_secret(client_private, server_public, client_public, server_public,
                               old_psk)
        x = announcement.rotation_x(keys, client_public, server_public)
        receiver.add_client(client_public, old_psk)
    ephemeral, new = bytes.fromhex(v["ephemeral_private"]), bytes.fromhex(v["new_private"])
    n = bytes.fromhex(v["nonce"])
    made = announcement.announce(kind, x, ephemeral, new, server_public)
    plaintext = announcement.encode(kind, made, n, v["timestamp_us"], v["bound_source"],
                                    v["plaintext_length"])
    s = spa.seal_plaintext(keys, server_public, n, plaintext, spa.epoch_of(v["timestamp_us"]))

    read = announcement.decode(plaintext)
    if announcement.verify(server_private, x, read, n) != (made.new_public, made.psk):
        raise spa.SpaError("client and server derive different keys")
    verdict = receiver.receive(s.packet, v["bound_source"] or SRC, v["timestamp_us"])
    if not verdict.accepted or verdict.request != read:
        raise spa.SpaError(f"the receiver does not accept the packet: {verdict.drop_reason}")
    pair = spa.pair_secret(new, server_public, made.new_public, server_public, made.psk)
    if receiver.clients[made.new_public].secret != pair:
        raise spa.SpaError("the receiver has another pair secret for the new key")

    return {
        "name": v["name"],
        "message_type": v["message_type"],
        "server_private": server_private.hex(),
        "server_public": server_public.hex(),
        "invitation_secret": hexed(secret),
        "client_private": hexed(client_private),
        "client_public": hexed(client_public),
        "old_psk": hexed(old_psk),
        "ephemeral_private": ephemeral.hex(),
        "new_private": new.hex(),
        "nonce": n.hex(),
        "timestamp_us": v["timestamp_us"],
        "bound_source": v["bound_source"],
        "plaintext_length": v["plaintext_length"],
        "shared": hexed(keys.shared),
        "ikm": keys.ikm.hex(),
        "hkdf_output": keys.hkdf_output.hex(),
        "k_tag": keys.k_tag.hex(),
        "k_enc": keys.k_enc.hex(),
        "k_mac": keys.k_mac.hex(),
        "i_id": hexed(i_id),
        "x": x.hex(),
        "derived_ephemeral": announcement.derived_ephemeral(new, x, server_public).hex(),
        "ephemeral_public": made.ephemeral_public.hex(),
        "new_public": made.new_public.hex(),
        "es": made.es.hex(),
        "ns": made.ns.hex(),
        "k_new": made.k_new.hex(),
        "k_proof": made.k_proof.hex(),
        "psk": made.psk.hex(),
        "sealed_key": plaintext[58:106].hex(),
        "proof": plaintext[106:122].hex(),
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
        "pair_hkdf_output": pair.hkdf_output.hex(),
    }


def build_positive():
    out = []

    def case(name, kind, *, party=ALICE, server=SERVER, secret=INVITATION, new=NEW, e=EPHEMERAL,
             n=None, at=T, bound=None, length=128):
        rotation = kind == "rotation"
        if e is None:
            public = spa.x25519_public(server)
            x = secret
            if rotation:
                x = announcement.rotation_x(party.secret(public), party.public, public)
            e = announcement.derived_ephemeral(new, x, public)
        out.append(compute_positive({
            "name": f"{kind}-{name}",
            "message_type": kind,
            "server_private": server.hex(),
            "invitation_secret": None if rotation else secret.hex(),
            "client_private": party.private.hex() if rotation else None,
            "old_psk": hexed(party.psk) if rotation else None,
            "ephemeral_private": e.hex(),
            "new_private": new.hex(),
            "nonce": (nonce(f"{kind} {name}") if n is None else n).hex(),
            "timestamp_us": at,
            "bound_source": bound,
            "plaintext_length": length,
        }))

    for kind in KINDS:
        case("minimal", kind)
        case("again", kind, at=T + 1)
        case("bound-ipv6", kind, bound="2001:db8:1:2:3:4:5:6")
        case("bound-ipv4", kind, bound="203.0.113.9")
        case("plaintext-129", kind, length=129)
        case("plaintext-320", kind, length=320)
        case("nonce-all-00", kind, n=bytes(24))
        case("nonce-all-ff", kind, n=b"\xff" * 24)
        case("derived-ephemeral", kind, e=None)
        case("other-ephemeral", kind, e=OTHER_EPHEMERAL)
        case("other-new-key", kind, new=OTHER_NEW)
        case("other-server", kind, server=OTHER_SERVER)
        case("ephemeral-is-new-key", kind, e=NEW)
        case("timestamp-beyond-32-bit-seconds", kind, at=2**32 * SECOND + 1)
    case("other-secret", "enrolment", secret=OTHER_INVITATION)
    case("secret-all-ff", "enrolment", secret=b"\xff" * 32)
    case("pre-shared-key", "rotation", party=BOB)
    case("pre-shared-key-bound", "rotation", party=BOB, bound="2001:db8::1", length=320)
    case("pre-shared-key-derived-ephemeral", "rotation", party=BOB, e=None)
    return out


# --- negative --------------------------------------------------------------------------


class Announce(Knock):
    """One datagram with an announcement; each value can be put in the place of the right one.

    `by` is a client, or the secret of an invitation; `to` is the server's public key. `kind` is what the keys are derived for,
    `message_type` what the packet says.
    """

    def __init__(self, label, *, by=INVITATION, kind=None, message_type=None, new=NEW,
                 e=EPHEMERAL, at=T, bound=None, source=SRC, now=T, length=128, x=None, es=None,
                 ns=None, ephemeral_public=None, new_public=None, proof_ephemeral=None,
                 proof_new=None, edit=None, sealed_edit=None, sealing_nonce=None,
                 proof_nonce=None, sealed_x=None, to=SERVER_PUBLIC, mask_public=None):
        invited = isinstance(by, bytes)
        kind = kind or (ENROLMENT if invited else ROTATION)
        secret = announcement.invitation_secret(by, to) if invited else by.secret(to)
        if x is None:
            x = by if invited else announcement.rotation_x(secret, by.public, to)
        n = nonce(label)
        ephemeral_public = ephemeral_public or spa.x25519_public(e)
        new_public = new_public or spa.x25519_public(new)
        es = es or spa.x25519(e, to)
        ns = ns or spa.x25519(new, to)
        k_new = announcement.sealing_key(kind, sealed_x or x, es, ephemeral_public, to)
        k_proof, self.psk = announcement.proof_and_psk(
            kind, x, es, ns, proof_ephemeral or ephemeral_public, proof_new or new_public,
            to)
        bound_bytes = bytes(16) if bound is None else spa.address_bytes(bound)
        head = bytearray(bytes([1, message_type or kind]) + at.to_bytes(8, "big") + bound_bytes
                         + ephemeral_public)
        # A change before the seal; what is changed in the seal or behind it, follows.
        for place, value in (edit or {}).items():
            if place < 58:
                head[place:place + len(value)] = value
        head = bytes(head)
        sealed, tag = spa.xchacha20poly1305_seal(k_new, sealing_nonce or n, new_public, head)
        body = bytearray(head + sealed + tag)
        for place, value in (sealed_edit or {}).items():
            body[place:place + len(value)] = value
        body = bytes(body)
        proof = announcement.proof_of(k_proof, proof_nonce or n, body)
        plaintext = bytearray((body + proof).ljust(length, b"\x00"))
        for place, value in (edit or {}).items():
            if place >= 58:
                plaintext[place:place + len(value)] = value
        sealed = spa.seal_plaintext(secret, mask_public or to, n, bytes(plaintext),
                                    spa.epoch_of(at))
        super().__init__(label, packet=sealed.packet, source=source, now=now)
        self.sealed, self.secret, self.nonce = sealed, secret, n
        self.epoch = spa.epoch_of(at)
        self.new = Known(new, self.psk)


class Known(Party):
    """A client by its key, as an announcement has made it known."""

    def __init__(self, private, psk):
        self.private, self.public, self.psk = private, spa.x25519_public(private), psk


class Negatives:
    def __init__(self):
        self.vectors = []

    def add(self, name, reason, why, packet, *, history=(), controls=(), w=60, length=128,
            capacity=CAPACITY, barrier=None, expiry=EXPIRY, void=False, previous=None):
        entries = []
        for item in history:
            k, accept = item if isinstance(item, tuple) else (item, True)
            entries.append({**k.json(), "accept": accept})
        self.vectors.append({
            "name": name,
            "why": why,
            "server_private": SERVER.hex(),
            "server_public": SERVER_PUBLIC.hex(),
            "previous_private": hexed(previous),
            "clients": [ALICE.json(), BOB.json()],
            "invitations": [
                {"secret": INVITATION.hex(), "expiry_s": expiry, "void": void},
                {"secret": OTHER_INVITATION.hex(), "expiry_s": EXPIRY, "void": False}],
            "services": SERVICES,
            "freshness_s": w,
            "plaintext_length": length,
            "window_capacity": capacity,
            "barrier_us": barrier,
            "history": entries,
            **packet.json(),
            "drop_reason": reason,
            "controls": [c.json() for c in controls],
        })


BOTH = (("enrolment", INVITATION), ("rotation", BOB))


def flipped(value, at, bit=0):
    return value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1:]


def add_packet(v):
    """What any packet is dropped for (checks 1 to 6)."""
    for kind, by in BOTH:
        good = Announce(f"{kind} good", by=by)
        v.add(f"{kind}-length", "length", "the last byte is missing",
              good.sent(packet=good.packet[:-1]), controls=[good])
        v.add(f"{kind}-flip-masked-tag", "unknown-tag", "a bit of the masked tag is flipped",
              good.flipped(3), controls=[good])
        v.add(f"{kind}-flip-mac", "mac", "a bit of the MAC is flipped", good.flipped(215),
              controls=[good])
        v.add(f"{kind}-flip-ciphertext", "mac", "a bit of the ciphertext is flipped",
              good.flipped(100), controls=[good])
        v.add(f"{kind}-decrypt", "decrypt", "a bit of the AEAD tag is flipped, the MAC is right",
              good.remade(aead_tag=flipped(good.sealed.aead_tag, 5)), controls=[good])
        v.add(f"{kind}-replay", "replay", "an accepted announcement again", good, history=[good],
              controls=[Announce(f"{kind} another nonce", by=by)])
        v.add(f"{kind}-replay-other-source", "replay",
              "an accepted announcement again, from another address",
              good.sent(source=OTHER_SRC), history=[good],
              controls=[Announce(f"{kind} another nonce", by=by)])
    v.add("enrolment-unknown-invitation", "unknown-tag",
          "an invitation that the server has not made",
          Announce("no such invitation", by=digest("invitation 3")),
          controls=[Announce("other invitation", by=OTHER_INVITATION)])
    v.add("rotation-psk-missing", "unknown-tag",
          "the client has a pre-shared key, the rotation is sealed without it",
          Announce("no psk", by=Known(BOB.private, None)),
          controls=[Announce("with psk", by=BOB)])
    fifth = EPOCH_START - 3 * spa.EPOCH_US
    v.add("enrolment-skew-unexamined", "skew-unexamined",
          "the fifth datagram in one second with a tag of an epoch that can't be fresh; the"
          " allowance is one for clients and invitations",
          Announce("skewed enrolment", at=fifth),
          history=[dropped(Knock(f"skewed knock {i}", request(at=fifth + i))) for i in range(4)],
          controls=[Announce("skew good")])


def add_layout(v):
    for kind, by in BOTH:
        good = Announce(f"{kind} layout good", by=by)

        def bad(name, why, edit, length=128, control=good):
            v.add(f"{kind}-layout-{name}", "layout", why,
                  Announce(f"{kind} layout {name}", by=by, edit=edit, length=length),
                  length=length, controls=[control])

        bad("version-0", "version 0", {0: b"\x00"})
        bad("version-2", "version 2", {0: b"\x02"})
        bad("type-0", "message type 0", {1: b"\x00"})
        bad("type-5", "message type 5", {1: b"\x05"})
        bad("type-255", "message type 255", {1: b"\xff"})
        bad("padding-first-byte", "the first byte of the padding is 1", {122: b"\x01"})
        bad("padding-last-byte", "the last byte of the padding is 1", {127: b"\x01"})
        longer = Announce(f"{kind} layout long", by=by, length=320)
        bad("padding-last-byte-320", "the last byte of the padding is 0x80", {319: b"\x80"}, 320,
            longer)
        bad("padding-middle-320", "a byte in the middle of the padding is 0xff", {200: b"\xff"},
            320, longer)
        bad("bound-source-ipv4-unspecified", "bound to ::ffff:0.0.0.0",
            {20: b"\xff\xff"})
    enrolment, rotation = Announce("enrolment right"), Announce("rotation right", by=BOB)
    v.add("enrolment-under-client", "layout",
          "an enrolment, right but for its key, sealed with a client's key",
          Announce("enrolment under client", by=BOB, kind=ENROLMENT, x=INVITATION),
          controls=[rotation])
    v.add("enrolment-under-client-its-x", "layout",
          "an enrolment sealed with a client's key, X is that of a rotation",
          Announce("enrolment under client x", by=BOB, kind=ENROLMENT), controls=[rotation])
    v.add("enrolment-says-rotation", "layout",
          "an enrolment that says it is a rotation", controls=[enrolment],
          packet=Announce("says rotation", message_type=ROTATION))
    v.add("rotation-says-enrolment", "layout",
          "a rotation that says it is an enrolment", controls=[rotation],
          packet=Announce("says enrolment", by=BOB, message_type=ENROLMENT))
    v.add("rotation-under-invitation", "layout", "a rotation sealed with an invitation",
          Announce("rotation under invitation", kind=ROTATION), controls=[enrolment])
    for name, close in (("open", False), ("close", True)):
        party = InvitationAsParty(INVITATION)
        v.add(f"{name}-under-invitation", "layout", f"a right {name} sealed with an invitation",
              Knock(f"{name} under invitation", request(close=close), party=party),
              controls=[enrolment, Knock(f"{name} under client", request(close=close))])
    v.add("enrolment-layout-before-epoch", "layout",
          "padding that is not zero, and a timestamp outside the tag's epoch",
          Announce("layout before epoch", edit={122: b"\x01", 2: (T - spa.EPOCH_US).to_bytes(8)}),
          controls=[enrolment])


class InvitationAsParty:
    psk = None

    def __init__(self, secret):
        self._secret = secret

    def secret(self, server_public, psk):
        return announcement.invitation_secret(self._secret, server_public)


def add_time_and_place(v):
    w = 60 * SECOND
    for kind, by in BOTH:
        def make(label, **more):
            return Announce(f"{kind} {label}", by=by, **more)

        good = make("time good")
        v.add(f"{kind}-epoch", "epoch", "the timestamp lies in the epoch before the tag's",
              make("epoch", edit={2: (EPOCH_START - 1).to_bytes(8)}), controls=[good])
        v.add(f"{kind}-too-old", "too-old", "one microsecond more than W ago",
              make("too old", at=T - w - 1), controls=[make("just old", at=T - w)])
        v.add(f"{kind}-too-new", "too-new", "one microsecond more than W ahead",
              make("too new", at=T + w + 1), controls=[make("just new", at=T + w)])
        v.add(f"{kind}-barrier", "barrier", "the timestamp is the barrier", good, barrier=T,
              controls=[make("above barrier", at=T + 1)])
        v.add(f"{kind}-floor", "floor", "the timestamp is the floor, which the same announcement"
              " with another timestamp has raised", make("at floor", at=T - w),
              history=[make("ahead", at=T + w)], controls=[make("above floor", at=T - w + 1)])
        v.add(f"{kind}-bound-source", "bound-source", "bound to one IPv6 address, came from"
              " another", make("bound", bound=SRC, source=OTHER_SRC),
              controls=[make("bound", bound=SRC)])
        v.add(f"{kind}-bound-source-ipv4", "bound-source",
              "bound to one IPv4 address, came from another",
              make("bound 4", bound=SRC4, source=OTHER_SRC4),
              controls=[make("bound 4", bound=SRC4, source=SRC4)])
        bound = make("not burned", bound=SRC)
        v.add(f"{kind}-bound-source-not-burned", "bound-source",
              "twice from a wrong address: the first did not enter the replay window",
              bound.sent(source=OTHER_SRC), history=[dropped(bound.sent(source=OTHER_SRC))],
              controls=[bound])
        v.add(f"{kind}-bound-source-before-proof", "bound-source",
              "bound to another address, and the proof is wrong",
              make("bound, no proof", bound=OTHER_SRC, edit={106: bytes(16)}), controls=[good])
        v.add(f"{kind}-window-full", "window-full", "the replay window is full",
              make("full 2", at=T + 2),
              history=[make(f"full {i}", at=T + i) for i in range(2)], capacity=2,
              controls=[Knock("another window", party=ALICE),
                        make("full room", at=T + 1 + 2 * w, now=T + 1 + 2 * w)])


def add_expiry(v):
    end = EXPIRY * SECOND
    v.add("enrolment-expired", "invitation-expired", "one microsecond after the expiry",
          Announce("expired", at=end + 1, now=end + 1),
          controls=[Announce("just before", at=end - 1, now=end - 1)])
    v.add("enrolment-expired-long-ago", "invitation-expired", "the expiry is 1970-01-01",
          Announce("expired 1970"), expiry=0,
          controls=[Announce("not expired", by=OTHER_INVITATION)])
    v.add("enrolment-expired-by-servers-clock", "invitation-expired",
          "the timestamp is before the expiry, the server's clock is past it",
          Announce("servers clock", at=end - SECOND, now=end + SECOND),
          controls=[Announce("clients clock", at=end + SECOND, now=end - SECOND)])
    v.add("enrolment-expired-before-proof", "invitation-expired", "expired, and a wrong proof",
          Announce("expired no proof", edit={106: bytes(16)}), expiry=1,
          controls=[Announce("not expired", by=OTHER_INVITATION)])
    v.add("enrolment-expired-same-key", "invitation-expired",
          "a key that was accepted is announced again after the expiry",
          Announce("expired again", at=end + 1, now=end + 1),
          history=[Announce("in time")], controls=[Announce("in time again", at=T + 1)])
    v.add("enrolment-void", "invitation-void",
          "the invitation is older than the server's records of enrolments",
          Announce("void"), void=True, controls=[Announce("not void", by=OTHER_INVITATION)])
    v.add("enrolment-void-before-proof", "invitation-void", "void, and a wrong proof",
          Announce("void no proof", edit={106: bytes(16)}), void=True,
          controls=[Announce("not void", by=OTHER_INVITATION)])


def low_order():
    """Names and u of the points of low order, in canonical form."""
    order_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
    other_8 = 39382357235489614581723060781553021112529911719440698176882885853963445705823
    return [(name, u.to_bytes(32, "little")) for name, u in (
        ("zero", 0), ("one", 1), ("p-1", P_25519 - 1), ("order-8", order_8),
        ("other-order-8", other_8))]


def non_canonical(public):
    """Encodings that X25519 takes, with the u that it reads."""
    base = (9).to_bytes(32, "little")
    return [("bit-255", flipped(public, 31, 7)), ("p+9", (P_25519 + 9).to_bytes(32, "little")),
            ("base-bit-255", flipped(base, 31, 7)),
            ("p+18", (P_25519 + 18).to_bytes(32, "little"))]


def add_proof(v):
    for kind, by in BOTH:
        good = Announce(f"{kind} proof good", by=by)
        public = good.new.public
        ephemeral = spa.x25519_public(EPHEMERAL)
        if kind == "rotation":
            x = announcement.rotation_x(by.secret(), by.public, SERVER_PUBLIC)
            unmixed = announcement.rotation_x(by.secret(SERVER_PUBLIC, None), by.public,
                                              SERVER_PUBLIC)
            other_x = (("psk-left-out", "X is derived without the pre-shared key", unmixed),
                       ("shared", "X is the shared secret itself", by.secret().shared),
                       ("of-other-client", "X is that of another client",
                        announcement.rotation_x(ALICE.secret(), ALICE.public, SERVER_PUBLIC)))
        else:
            x = INVITATION
            other_x = (("i-id", "X is I_id",
                        announcement.invitation_secret(INVITATION, SERVER_PUBLIC).i_id),
                       ("of-other-invitation", "X is the secret of another invitation",
                        OTHER_INVITATION))

        def bad(name, why, **more):
            v.add(f"{kind}-proof-{name}", "proof", why,
                  Announce(f"{kind} proof {name}", by=by, **more), controls=[good])

        for name, u in low_order():
            bad(f"ephemeral-low-order-{name}", "E is a point of low order, es is taken as zero",
                ephemeral_public=u, es=bytes(32))
            bad(f"new-low-order-{name}", "N is a point of low order, ns is taken as zero",
                new_public=u, ns=bytes(32))
        for name, u in non_canonical(ephemeral):
            bad(f"ephemeral-not-canonical-{name}", "E is not canonical; all else is right for it",
                ephemeral_public=u, es=spa.x25519(SERVER, u))
        for name, u in non_canonical(public):
            bad(f"new-not-canonical-{name}", "N is not canonical; all else is right for it",
                new_public=u, ns=spa.x25519(SERVER, u))
        own = spa.x25519(SERVER, SERVER_PUBLIC)
        bad("ephemeral-is-server", "E = S; all else is right for it", e=SERVER, es=own)
        bad("new-is-server", "N = S; all else is right for it", new=SERVER, ns=own)
        body = good.sealed.plaintext
        for at, name in ((58, "sealed-key-first-byte"), (89, "sealed-key-last-byte"),
                         (90, "sealed-key-tag-first-byte"), (105, "sealed-key-tag-last-byte")):
            bad(name, f"a bit of byte {at} is flipped, the proof is made over that",
                sealed_edit={at: flipped(Announce(f"{kind} proof {name}", by=by)
                                         .sealed.plaintext, at)[at:at + 1]})
        bad("sealed-key-zero", "the sealed key is all zero", sealed_edit={58: bytes(48)})
        bad("sealed-key-nonce-zero", "the sealed key has a nonce of zeros",
            sealing_nonce=bytes(24))
        bad("sealed-key-of-other-packet", "the sealed key of another packet",
            sealed_edit={58: body[58:106]})
        bad("sealed-key-other-es", "es is that of another e than E's, in both keys",
            es=spa.x25519(OTHER_EPHEMERAL, SERVER_PUBLIC))
        bad("sealed-key-ephemeral-replaced", "E is put in the place of another after all was made",
            edit={26: spa.x25519_public(OTHER_EPHEMERAL)})
        for at, name in ((106, "first-byte"), (113, "byte-7"), (114, "byte-8"),
                         (121, "last-byte")):
            wrong = flipped(Announce(f"{kind} proof {name}", by=by).sealed.plaintext, at)
            bad(name, f"a bit of byte {at} is flipped", edit={at: wrong[at:at + 1]})
        bad("zero", "the proof is all zero", edit={106: bytes(16)})
        bad("of-other-packet", "the proof of another packet", edit={106: body[106:122]})
        bad("other-nonce", "the proof is made with another nonce", proof_nonce=bytes(24))
        bad("other-n", "ns is that of another private key than N's: N is not the sender's",
            ns=spa.x25519(OTHER_NEW, SERVER_PUBLIC))
        bad("ns-is-es", "ns is es: the sender has e only",
            ns=spa.x25519(EPHEMERAL, SERVER_PUBLIC))
        bad("ns-zero", "ns is left out as zero", ns=bytes(32))
        bad("key-of-another", "N is another client's public key, announced without the private one",
            new_public=ALICE.public)
        bad("other-ephemeral", "K_proof is derived for another E",
            proof_ephemeral=spa.x25519_public(OTHER_EPHEMERAL))
        bad("other-new", "K_proof is derived for another N",
            proof_new=spa.x25519_public(OTHER_NEW))
        for name, why, value in other_x:
            bad(f"x-{name}", why, x=value)
            bad(f"x-{name}-in-proof", why + ", in K_proof only", x=value, sealed_x=x)
        other = {"enrolment": ROTATION, "rotation": ENROLMENT}[kind]
        bad("other-label", f"the keys have the label of the other message",
            kind=other, message_type=KINDS[kind])


def add_used(v):
    first = Announce("used first")
    other = Announce("used other", new=OTHER_NEW, e=OTHER_EPHEMERAL, at=T + 1)
    again = Announce("used again", at=T + 2)
    knock = Knock("used knock", party=first.new)
    v.add("enrolment-used", "invitation-used", "the invitation was used by another key",
          other, history=[first],
          controls=[again, knock, Announce("used elsewhere", by=OTHER_INVITATION, new=OTHER_NEW)])
    v.add("enrolment-used-after-the-same-key-again", "invitation-used",
          "the first key was announced twice, and has knocked; then another one comes",
          other, history=[first, again, knock],
          controls=[Announce("used a third time", at=T + 3)])
    v.add("enrolment-used-by-a-known-key", "invitation-used",
          "the invitation was used; the other key is one that the server knows",
          Announce("used known", new=ALICE.private, at=T + 1), history=[first], controls=[again])
    v.add("enrolment-proof-before-used", "proof",
          "the invitation was used by another key, and the proof is wrong",
          Announce("used no proof", new=OTHER_NEW, edit={106: bytes(16)}), history=[first],
          controls=[again])
    v.add("enrolment-used-not-by-dropped", "proof",
          "an announcement that was dropped does not use the invitation",
          Announce("not used", edit={106: bytes(16)}),
          history=[dropped(Announce("not used before", edit={121: b"\x00\x01"}))],
          controls=[Announce("not used other", new=OTHER_NEW)])
    v.add("enrolment-psk-left-out", "unknown-tag",
          "a knock with the new key, without the pre-shared key of its enrolment",
          Knock("new no psk", party=Known(NEW, None)), history=[first], controls=[knock])
    v.add("enrolment-psk-is-secret", "unknown-tag",
          "a knock with the new key, the invitation's secret for a pre-shared key",
          Knock("new secret psk", party=Known(NEW, INVITATION)), history=[first],
          controls=[knock])
    v.add("enrolment-not-yet", "unknown-tag", "a knock with a key before it was announced",
          knock, history=[dropped(Announce("not yet", edit={106: bytes(16)}))],
          controls=[first])


def add_pending(v):
    first = Announce("pending first", by=BOB)
    other = Announce("pending other", by=BOB, new=OTHER_NEW, e=OTHER_EPHEMERAL, at=T + 1)
    again = Announce("pending again", by=BOB, at=T + 2)
    old, new = Knock("pending old", party=BOB), Knock("pending new", party=first.new)
    v.add("rotation-pending", "rotation-pending", "another key is pending", other,
          history=[first], controls=[again, old, new])
    v.add("rotation-pending-back", "rotation-pending",
          "another key is pending, and the client's present one is announced",
          Announce("pending back", by=BOB, new=BOB.private, at=T + 1), history=[first],
          controls=[again])
    v.add("rotation-pending-after-old-knock", "rotation-pending",
          "a key is pending, the old one still knocks, another is announced",
          other, history=[first, old], controls=[again, new])
    v.add("rotation-proof-before-pending", "proof",
          "another key is pending, and the proof is wrong",
          Announce("pending no proof", by=BOB, new=OTHER_NEW, edit={106: bytes(16)}),
          history=[first], controls=[again])
    v.add("rotation-old-key-dies", "unknown-tag",
          "a knock with the old key after one with the new key was accepted", old,
          history=[first, new], controls=[Knock("pending new 2", party=first.new)])
    close = Knock("pending new close", request(close=True), party=first.new)
    v.add("rotation-old-key-dies-by-close", "unknown-tag",
          "a knock with the old key after a close with the new key", old,
          history=[first, close],
          controls=[Knock("pending new 3", request(at=T + 1), party=first.new)])
    bound = Knock("new bound", request(bound=SRC), party=first.new, source=OTHER_SRC)
    v.add("rotation-old-key-outlives-dropped-knock", "bound-source",
          "a knock with the new key that is dropped leaves the old key alive", bound,
          history=[first, dropped(bound)], controls=[old, bound.sent(source=SRC)])
    v.add("rotation-under-former-key", "unknown-tag",
          "a second rotation under the old key, after the new one was used",
          other, history=[first, new],
          controls=[Announce("rotation under new", by=first.new, new=OTHER_NEW, at=T + 1)])
    close = Knock("pending old close", request(close=True, at=T + 2), party=BOB)
    held = Knock("pending new held", request(at=T + 1), party=first.new)
    later = Knock("pending new later", request(at=T + 3), party=first.new)
    latest = Knock("pending new latest", request(at=T + 4), party=first.new)
    v.add("rotation-superseded-by-old-key", "superseded",
          "an open with the new key, held back until after a close with the old one", held,
          history=[first, close], controls=[later])
    v.add("rotation-superseded-before-announced", "superseded",
          "the same, and the new key was announced after the close", held,
          history=[close, first], controls=[later])
    v.add("rotation-superseded-by-former-key", "superseded",
          "the same, after the new key has taken the place of the old one", held,
          history=[first, close, later], controls=[latest])
    v.add("rotation-psk-left-out", "unknown-tag",
          "a knock with the new key, without its pre-shared key",
          Knock("pending no psk", party=Known(NEW, None)), history=[first], controls=[new])
    v.add("rotation-psk-is-the-old-one", "unknown-tag",
          "a knock with the new key and the pre-shared key of the old one",
          Knock("pending old psk", party=Known(NEW, BOB.psk)), history=[first], controls=[new])


def add_known(v):
    for kind, by in BOTH:
        good = Announce(f"{kind} known good", by=by)

        def bad(name, why, private, history=(), controls=(good,)):
            v.add(f"{kind}-key-known-{name}", "key-known", why,
                  Announce(f"{kind} known {name}", by=by, new=private, at=T + 9),
                  history=history, controls=controls)

        bad("other-client", "the key of another client", ALICE.private)
        pending = Announce("known pending", by=ALICE, new=OTHER_NEW)
        bad("pending", "the pending key of another client", OTHER_NEW, [pending])
        bad("former", "the former key of another client", ALICE.private,
            [pending, Knock("known now", party=pending.new)])
        enrolled = Announce("known enrolled", by=OTHER_INVITATION, new=OTHER_NEW)
        bad("enrolled", "the key of a client that was enrolled", OTHER_NEW, [enrolled])
    bad("itself", "the client's own present key", BOB.private)
    new = Announce("known own", by=BOB)
    v.add("rotation-key-known-own-former", "key-known", "the client's own former key",
          Announce("known own former", by=new.new, new=BOB.private, at=T + 9),
          history=[new, Knock("known own now", party=new.new)],
          controls=[Announce("known own next", by=new.new, new=THIRD_NEW, at=T + 9)])
    v.add("enrolment-proof-before-key-known", "proof",
          "the key of another client, and the proof is wrong",
          Announce("known no proof", new=ALICE.private, edit={106: bytes(16)}),
          controls=[Announce("known proof")])


def add_psk(v):
    """The same key by another `e` has another `psk`: it is not the same announcement."""
    first, again = Announce("psk first"), Announce("psk again", at=T + 1)
    other = Announce("psk other e", e=OTHER_EPHEMERAL, at=T + 1)
    v.add("enrolment-used-same-key-other-psk", "invitation-used",
          "the invitation was used by this key, with another E", other, history=[first],
          controls=[again, Knock("psk first knock", party=first.new)])
    v.add("enrolment-psk-of-refused", "unknown-tag",
          "a knock with the pre-shared key of an announcement that was refused",
          Knock("psk refused", party=other.new), history=[first, dropped(other)],
          controls=[Knock("psk accepted", party=first.new)])
    first, again = Announce("psk pending", by=BOB), Announce("psk pending again", by=BOB, at=T + 1)
    other = Announce("psk pending other e", by=BOB, e=OTHER_EPHEMERAL, at=T + 1)
    v.add("rotation-pending-same-key-other-psk", "rotation-pending",
          "this key is pending, with another E", other, history=[first],
          controls=[again, Knock("psk pending knock", party=first.new)])
    under_new = Announce("psk under pending", by=first.new, at=T + 1)
    v.add("rotation-pending-announces-itself", "rotation-pending",
          "a pending key is announced under itself", under_new, history=[first],
          controls=[again])


def add_identities(v):
    """A server with two identities (10): SERVER is the present one, OTHER_SERVER the previous."""
    def add(name, reason, why, packet, **more):
        v.add(f"identities-{name}", reason, why, packet, previous=OTHER_SERVER, **more)

    def old(label, *args, **more):
        return Knock(label, *args, server_public=OTHER_SERVER_PUBLIC, **more)

    new = Knock("to present")
    w = 60 * SECOND
    add("replay", "replay", "an accepted knock to the previous identity again", old("to previous"),
        history=[old("to previous")], controls=[old("to previous again"), new])
    add("replay-nonce-of-other", "replay",
        "a knock to the previous identity with the nonce of one to the present",
        old("same nonce", n=nonce("to present")), history=[new],
        controls=[old("another nonce")])
    add("replay-nonce-of-other-back", "replay",
        "a knock to the present identity with the nonce of one to the previous",
        new, history=[old("same nonce", n=nonce("to present"))],
        controls=[Knock("another nonce")])
    add("floor", "floor", "the floor that a knock to the present identity has raised",
        old("at floor", request(at=T - w)), history=[Knock("ahead", request(at=T + w))],
        controls=[old("above floor", request(at=T - w + 1))])
    add("window-full", "window-full", "the window is full of knocks to both identities",
        old("full 3", request(at=T + 2)), capacity=2,
        history=[old("full 1", request(at=T)), Knock("full 2", request(at=T + 1))],
        controls=[old("other window", party=BOB)])
    add("superseded", "superseded",
        "an open to the previous identity, before a close to the present",
        old("superseded"), history=[Knock("close", request(at=T + 1, close=True))],
        controls=[old("later", request(at=T + 2)), old("another port", request("web"))])
    add("skew-unexamined", "skew-unexamined", "the allowance is one for both identities",
        old("skewed 5", request(at=T - 3 * spa.EPOCH_US)),
        history=[dropped(make(f"skewed {i}", request(at=T - 3 * spa.EPOCH_US)))
                 for i, make in enumerate((Knock, old, Knock, old))],
        controls=[old("not skewed")])
    for name, to, mask in (("present", SERVER_PUBLIC, OTHER_SERVER_PUBLIC),
                           ("previous", OTHER_SERVER_PUBLIC, SERVER_PUBLIC)):
        add(f"wrong-mask-{name}", "unknown-tag",
            f"sealed to the {name} identity, masked for the other one",
            Knock(f"wrong mask {name}", server_public=to, mask_public=mask),
            controls=[Knock(f"right mask {name}", server_public=to)])
        add(f"enrolment-wrong-mask-{name}", "unknown-tag",
            f"an enrolment sealed to the {name} identity, masked for the other one",
            Announce(f"enrolment wrong mask {name}", to=to, mask_public=mask),
            controls=[Announce(f"enrolment right mask {name}", to=to)])
    add("psk-left-out", "unknown-tag", "the client has a pre-shared key under both identities",
        old("no psk", party=BOB, psk=None), controls=[old("psk", party=BOB)])
    add("flip-mac", "mac", "a bit of the MAC of a knock to the previous identity is flipped",
        old("mac").flipped(215), controls=[old("mac")])
    v.add("identities-no-previous", "unknown-tag", "the server has one identity", old("no more"),
          controls=[new])

    def to_old(label, **more):
        return Announce(label, to=OTHER_SERVER_PUBLIC, **more)

    rotation = Announce("identities rotation", by=BOB)
    add("rotation", "previous-server-key", "a rotation sealed to the previous identity",
        to_old("rotation to previous", by=BOB),
        controls=[rotation, to_old("enrolment to previous")])
    add("rotation-same-key-again", "previous-server-key",
        "a pending key is announced again, to the previous identity",
        to_old("rotation again to previous", by=BOB, at=T + 1), history=[rotation],
        controls=[Announce("rotation again", by=BOB, at=T + 1)])
    add("rotation-before-proof", "previous-server-key",
        "a rotation sealed to the previous identity, and the proof is wrong",
        to_old("rotation no proof", by=BOB, edit={106: bytes(16)}), controls=[rotation])
    add("rotation-bound-source-first", "bound-source",
        "a rotation sealed to the previous identity, bound to another address",
        to_old("rotation bound", by=BOB, bound=OTHER_SRC), controls=[rotation])
    for name, knock in (("present", Knock), ("previous", old)):
        add(f"rotation-old-key-dies-{name}", "unknown-tag",
            f"a knock to the {name} identity with a key that was replaced",
            knock(f"old key {name}", party=BOB),
            history=[rotation, old("new key to previous", party=rotation.new)],
            controls=[knock(f"new key {name}", party=rotation.new)])
    enrolment = to_old("enrolment first to previous")
    add("enrolment-used", "invitation-used",
        "the invitation was used under the previous identity, by another key",
        Announce("enrolment other", new=OTHER_NEW, at=T + 1), history=[enrolment],
        controls=[to_old("enrolment again to previous", at=T + 1),
                  Knock("enrolled to present", party=enrolment.new),
                  old("enrolled to previous", party=enrolment.new)])
    add("enrolment-used-same-key", "invitation-used",
        "the same key under the other identity has another psk",
        Announce("enrolment same key", at=T + 1), history=[enrolment],
        controls=[to_old("enrolment again to previous", at=T + 1)])
    add("enrolment-proof", "proof", "the keys are those of the present identity",
        to_old("enrolment wrong es", es=spa.x25519(EPHEMERAL, SERVER_PUBLIC)),
        controls=[enrolment])
    for kind, by in BOTH:
        add(f"{kind}-key-known", "key-known", "the server's previous public key",
            Announce(f"{kind} previous key", by=by, new=OTHER_SERVER),
            controls=[Announce(f"{kind} another key", by=by)])
    add("enrolment-key-known-present", "key-known",
        "the server's present public key, announced to the previous identity",
        to_old("enrolment present key", new=SERVER), controls=[enrolment])


def build():
    v = Negatives()
    for add in (add_packet, add_layout, add_time_and_place, add_expiry, add_proof, add_used,
                add_pending, add_known, add_psk, add_identities):
        add(v)
    out = {"positive": build_positive(), "negative": v.vectors}
    for vectors in out.values():
        names = [x["name"] for x in vectors]
        assert len(set(names)) == len(names)
    return out
