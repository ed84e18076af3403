"""What the vectors have in common: keys, times, addresses, and one datagram of a scene."""

import hashlib

import spa

W = 60
SECOND = spa.SECOND
# 2026-01-01T00:00:17.123456Z: inside its epoch, so that now - W and now + W are as well.
T = 1_767_225_617_123_456
# The first microsecond of that epoch.
EPOCH_START = T // spa.EPOCH_US * spa.EPOCH_US
SRC = "2001:db8::7"
OTHER_SRC = "2001:db8::8"
SRC4 = "192.0.2.7"
OTHER_SRC4 = "192.0.2.8"
SERVICES = {"ssh": ["tcp/22"], "web": ["tcp/80", "tcp/443"], "dns": ["tcp/53", "udp/53"]}
CAPACITY = 1024


def digest(label):
    return hashlib.sha256(b"spa test vector: " + label.encode()).digest()


SERVER = digest("server 1 private")
OTHER_SERVER = digest("server 2 private")
SERVER_PUBLIC = spa.x25519_public(SERVER)
OTHER_SERVER_PUBLIC = spa.x25519_public(OTHER_SERVER)


class Party:
    """A client of the vectors."""

    def __init__(self, name, psk=False):
        self.private = digest(f"{name} private")
        self.public = spa.x25519_public(self.private)
        self.psk = digest(f"{name} psk") if psk else None

    def json(self):
        return {"client_public": self.public.hex(), "psk": hexed(self.psk)}

    def secret(self, server_public=SERVER_PUBLIC, psk="own"):
        psk = self.psk if psk == "own" else psk
        return spa.pair_secret(self.private, server_public, self.public, server_public, psk)


ALICE = Party("client 1")
BOB = Party("client 2", psk=True)
STRANGER = Party("client 3")


def hexed(b):
    return None if b is None else b.hex()


def nonce(label):
    return digest(f"nonce {label}")[: spa.NONCE_LEN]


def request(*items, at=T, close=False, bound=None, lifetime=0):
    return spa.Request(spa.CLOSE if close else spa.OPEN, at, items or ("ssh",), bound, lifetime)


def resolve(services):
    """Section 5.2: a service stands for its ports; a port must be in some service."""
    known = {port for ports in services.values() for port in ports}

    def ports_of(items):
        out = []
        for item in items:
            for port in services.get(item, [item] if item in known else []):
                if port not in out:
                    out.append(port)
        return out

    return ports_of


class Knock:
    """One datagram of a negative vector: the packet, and how it gets to the server."""

    def __init__(self, label, req=None, *, party=ALICE, source=SRC, now=T, length=128,
                 server_public=SERVER_PUBLIC, psk="own", epoch=None, edit=None, plaintext=None,
                 packet=None, mask_public=None, n=None):
        self.source = source
        self.now = now
        self.ports = []
        req = req or request()
        if packet is None:
            if plaintext is None:
                plaintext = bytearray(spa.encode_plaintext(req, length))
                for at, value in (edit or {}).items():
                    plaintext[at:at + len(value)] = value
                plaintext = bytes(plaintext)
                assert len(plaintext) == length, label
            self.epoch = spa.epoch_of(req.timestamp_us) if epoch is None else epoch
            self.secret = party.secret(server_public, psk)
            self.server_public = server_public
            self.nonce = n or nonce(label)
            self.sealed = spa.seal_plaintext(self.secret, mask_public or server_public, self.nonce,
                                             plaintext, self.epoch)
            packet = self.sealed.packet
            try:
                self.ports = resolve(SERVICES)(spa.decode_plaintext(plaintext).items)
            except spa.SpaError:
                pass
        self.packet = packet

    def sent(self, *, source=None, now=None, packet=None):
        """The same packet, or a changed one, sent again or otherwise."""
        k = Knock("", packet=self.packet if packet is None else packet,
                  source=source or self.source, now=self.now if now is None else now)
        k.ports = self.ports
        return k

    def flipped(self, at, bit=0):
        b = bytearray(self.packet)
        b[at] ^= 1 << bit
        return self.sent(packet=bytes(b))

    def remade(self, *, masked_tag=None, ciphertext=None, aead_tag=None):
        """Fields replaced, and a right MAC over the result."""
        s = self.sealed
        body = ((masked_tag or s.masked_tag) + self.nonce + (ciphertext or s.ciphertext)
                + (aead_tag or s.aead_tag))
        return self.sent(packet=body + spa.hmac_sha256(self.secret.k_mac, body))

    def masked_tag_of(self, epoch):
        return spa.xor(spa.epoch_tag(self.secret.k_tag, epoch), self.sealed.mask)

    def json(self):
        return {"now_us": self.now, "source": self.source, "packet": self.packet.hex(),
                "ports": self.ports}


def dropped(knock):
    return (knock, False)
