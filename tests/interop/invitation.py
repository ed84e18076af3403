"""The text of an invitation (docs/protocol.md, section 9.5)."""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass

import spa

PREFIX = "spa1:"
CHECKSUM_LABEL = b"spa invitation v1"
TRANSPORTS = {"tcp": spa.KIND_TCP, "udp": spa.KIND_UDP}
SINGLE_CONNECTION = 1
# 9999-12-31T23:59:59Z.
MAX_EXPIRY = 253_402_300_799
WHITE_SPACE = " \t\r\n"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]{0,252}")
_SERVICE = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_BODY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Ports:
    transport: str
    first: int
    last: int


@dataclass(frozen=True)
class Service:
    name: str
    ports: tuple
    single_connection: bool = False


@dataclass(frozen=True)
class Invitation:
    server_public: bytes
    secret: bytes
    expiry_s: int
    plaintext_length: int
    name: str
    knock_ports: tuple
    hosts: tuple
    services: tuple = ()


def require(condition, what):
    if not condition:
        raise spa.SpaError(what)


def validate(i):
    require(spa.is_canonical(i.server_public), "the server's key is not canonical")
    spa.x25519(b"\x01" * 32, i.server_public)  # refuses a point of low order
    require(i.secret != bytes(32), "the secret is all zero")
    require(i.expiry_s <= MAX_EXPIRY, "expiry")
    require(spa.MIN_PLAINTEXT <= i.plaintext_length <= spa.MAX_PLAINTEXT, "plaintext length")
    require(_NAME.fullmatch(i.name), "name")
    require(1 <= len(i.knock_ports) <= 16, "number of knock ports")
    require(all(1 <= port <= 65535 for port in i.knock_ports), "knock port")
    require(1 <= len(i.hosts) <= 8, "number of hosts")
    require(all(_HOST.fullmatch(host) for host in i.hosts), "host")
    require(len(i.services) <= 32, "number of services")
    require(len({s.name for s in i.services}) == len(i.services), "a service is there twice")
    for service in i.services:
        require(_SERVICE.fullmatch(service.name), "service's name")
        require(1 <= len(service.ports) <= 16, "number of a service's ports")
        for p in service.ports:
            require(1 <= p.first <= p.last <= 65535, "a service's ports")


def encode_body(i):
    """The body, unchecked: negative vectors need bad ones, too."""
    def text(value):
        raw = value.encode()
        return bytes([len(raw)]) + raw

    out = i.server_public + i.secret + struct.pack(">QH", i.expiry_s, i.plaintext_length)
    out += text(i.name)
    out += bytes([len(i.knock_ports)])
    out += b"".join(struct.pack(">H", port) for port in i.knock_ports)
    out += bytes([len(i.hosts)]) + b"".join(text(host) for host in i.hosts)
    out += bytes([len(i.services)])
    for service in i.services:
        out += text(service.name)
        out += bytes([SINGLE_CONNECTION if service.single_connection else 0, len(service.ports)])
        for p in service.ports:
            out += struct.pack(">BHH", TRANSPORTS[p.transport], p.first, p.last)
    return out


def body_to_text(body):
    checksum = hashlib.sha256(CHECKSUM_LABEL + body).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def to_text(i):
    validate(i)
    return body_to_text(encode_body(i))


class _Reader:
    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def bytes(self, n):
        value = self.raw[self.at:self.at + n]
        require(len(value) == n, "the invitation is cut")
        self.at += n
        return value

    def number(self, n):
        return int.from_bytes(self.bytes(n), "big")

    def count(self, low, high, what):
        n = self.number(1)
        require(low <= n <= high, what)
        return n

    def text(self, encoding, low, high, what):
        raw = self.bytes(self.count(low, high, what))
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as e:
            raise spa.SpaError(what) from e


def decode_body(body):
    r = _Reader(body)
    server_public, secret = r.bytes(32), r.bytes(32)
    expiry_s, plaintext_length = r.number(8), r.number(2)
    name = r.text("ascii", 1, 64, "name")
    knock_ports = tuple(r.number(2) for _ in range(r.count(1, 16, "number of knock ports")))
    hosts = tuple(r.text("ascii", 1, 253, "host")
                  for _ in range(r.count(1, 8, "number of hosts")))
    services = []
    for _ in range(r.count(0, 32, "number of services")):
        service = r.text("ascii", 1, 32, "service's name")
        flags = r.number(1)
        require(flags in (0, SINGLE_CONNECTION), "flags")
        ports = []
        for _ in range(r.count(1, 16, "number of a service's ports")):
            transport = {v: k for k, v in TRANSPORTS.items()}.get(r.number(1))
            require(transport is not None, "transport")
            ports.append(Ports(transport, r.number(2), r.number(2)))
        services.append(Service(service, tuple(ports), flags == SINGLE_CONNECTION))
    require(r.at == len(body), "bytes follow the last field")
    i = Invitation(server_public, secret, expiry_s, plaintext_length, name, knock_ports, hosts,
                   tuple(services))
    validate(i)
    return i


def from_text(text):
    """The Invitation. The messages never repeat the text: it is a secret."""
    text = text.strip(WHITE_SPACE)
    require(text.startswith(PREFIX), f"an invitation begins with {PREFIX}")
    body = text[len(PREFIX):]
    require(_BODY.fullmatch(body) and len(body) % 4 != 1, f"after {PREFIX} there must be base64url")
    raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    require(base64.urlsafe_b64encode(raw).decode().rstrip("=") == body,
            "unused bits of the base64url are set")
    require(len(raw) > 4, "the invitation is cut")
    checksum = hashlib.sha256(CHECKSUM_LABEL + raw[:-4]).digest()[:4]
    require(checksum == raw[-4:], "the checksum is wrong: the invitation is mistyped or cut")
    return decode_body(raw[:-4])
