"""The vectors of invitations.json: docs/protocol.md, section 9.5."""

import base64
import hashlib
from dataclasses import replace

import invitation
import spa
from announcement_vectors import EXPIRY, INVITATION, low_order, non_canonical
from cases import OTHER_SERVER, SERVER_PUBLIC, digest
from invitation import Invitation, Ports, Service

SSH = Service("ssh", (Ports("tcp", 22, 22),))
MINIMAL = Invitation(SERVER_PUBLIC, INVITATION, EXPIRY, 128, "a", (1,), ("h",))
USUAL = Invitation(
    SERVER_PUBLIC, INVITATION, EXPIRY, 128, "work.example.org", (62201, 443),
    ("work.example.org", "192.0.2.1", "2001:db8::1"),
    (SSH, Service("db.main", (Ports("tcp", 5432, 5440), Ports("udp", 53, 53)), True)))


def to_json(i):
    return {
        "server_public": i.server_public.hex(),
        "secret": i.secret.hex(),
        "expiry_s": i.expiry_s,
        "plaintext_length": i.plaintext_length,
        "name": i.name,
        "knock_ports": list(i.knock_ports),
        "hosts": list(i.hosts),
        "services": [{
            "name": s.name,
            "single_connection": s.single_connection,
            "ports": [{"transport": p.transport, "first": p.first, "last": p.last}
                      for p in s.ports],
        } for s in i.services],
    }


def build_valid():
    many = tuple(Service(f"s{n}".ljust(32, "-"), tuple(
        Ports("udp" if k % 2 else "tcp", 1 + k, 65535) for k in range(16)), n % 2 == 1)
        for n in range(32))
    cases = [
        ("minimal", MINIMAL),
        ("usual", USUAL),
        ("one-more-byte", replace(MINIMAL, name="ab")),
        ("two-more-bytes", replace(MINIMAL, name="abc")),
        ("no-services", replace(USUAL, services=())),
        ("other-server", replace(USUAL, server_public=spa.x25519_public(OTHER_SERVER))),
        ("other-secret", replace(USUAL, secret=digest("invitation 2"))),
        ("secret-all-ff", replace(USUAL, secret=b"\xff" * 32)),
        ("secret-one", replace(USUAL, secret=bytes(31) + b"\x01")),
        ("expiry-0", replace(USUAL, expiry_s=0)),
        ("expiry-max", replace(USUAL, expiry_s=253_402_300_799)),
        ("plaintext-320", replace(USUAL, plaintext_length=320)),
        ("plaintext-129", replace(USUAL, plaintext_length=129)),
        ("name-64-characters", replace(USUAL, name="Z" * 64)),
        ("name-all-kinds-of-characters", replace(USUAL, name="9aZ-_.-_.")),
        ("knock-ports-16", replace(USUAL, knock_ports=tuple(range(65520, 65536)))),
        ("knock-port-order-kept", replace(USUAL, knock_ports=(9, 1, 65535, 2))),
        ("hosts-8", replace(USUAL, hosts=tuple(f"h{n}.example.org" for n in range(8)))),
        ("host-253-bytes", replace(USUAL, hosts=(".".join(["a" * 62] * 4) + "b",))),
        ("host-all-kinds-of-characters", replace(USUAL, hosts=("aZ09-_.:", "_a", ".", "::", "9"))),
        ("host-twice", replace(USUAL, hosts=("h", "h"))),
        ("host-ipv6-only", replace(USUAL, hosts=("2001:db8::1",))),
        ("service-name-1-and-32-characters", replace(USUAL, services=(
            replace(SSH, name="z"), replace(SSH, name="a" + "0-_." * 7 + "xyz")))),
        ("service-one-connection", replace(USUAL, services=(
            replace(SSH, single_connection=True),))),
        ("service-ports-all", replace(USUAL, services=(
            Service("all", (Ports("tcp", 1, 65535), Ports("udp", 65535, 65535),
                            Ports("udp", 1, 1))),))),
        ("largest", replace(USUAL, name="n" * 64, knock_ports=tuple(range(1, 17)),
                            hosts=tuple(".".join([c * 62] * 4) + c for c in "abcdefgh"),
                            services=many)),
    ]
    return [{"id": name, "text": invitation.to_text(i), **to_json(i)} for name, i in cases]


def build_spaced():
    """White space around the text."""
    text = invitation.to_text(USUAL)
    around = [("", "\n"), ("", "\r\n"), (" ", ""), ("\t", "\t"), ("\n\r \t", "\t \r\n\n")]
    return [{"id": "usual", "text": before + text + behind} for before, behind in around]


def build_invalid():
    out = []

    def text(why, value):
        out.append({"why": why, "text": value})

    def body(why, i):
        text(why, invitation.body_to_text(i if isinstance(i, bytes) else
                                          invitation.encode_body(i)))

    def edited(i, at, value):
        raw = bytearray(invitation.encode_body(i))
        raw[at:at + len(value)] = value
        return bytes(raw)

    good = invitation.to_text(USUAL)
    chars = good[len(invitation.PREFIX):]
    raw = base64.urlsafe_b64decode(chars + "=" * (-len(chars) % 4))

    def encode(value):
        return invitation.PREFIX + base64.urlsafe_b64encode(value).decode().rstrip("=")

    text("empty", "")
    text("the prefix only", invitation.PREFIX)
    text("no prefix", chars)
    for prefix in ("spa2:", "SPA1:", "spa1", "spa:", "spa1-", "spa1:spa1:", "spa-invitation-"):
        text(f"the prefix is {prefix}", prefix + chars)
    text("the text of the secret", spa.key_to_text("invitation", INVITATION))
    for at in range(len(raw) - 4, len(raw)):
        text(f"a bit of byte {at - len(raw) + 4} of the checksum is flipped",
             encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:]))
    for at, what in ((0, "the server's key"), (32, "the secret"), (64, "the expiry"),
                     (80, "the name")):
        text(f"a bit of {what} is flipped, the checksum is as it was",
             encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:]))
    text("no checksum", encode(raw[:-4]))
    text("the checksum is zero", encode(raw[:-4] + bytes(4)))
    text("the checksum has no label in it",
         encode(raw[:-4] + hashlib.sha256(raw[:-4]).digest()[:4]))
    text("the checksum is that of a key",
         encode(raw[:-4] + hashlib.sha256(b"spa key v1" + b"spa1:" + raw[:-4]).digest()[:4]))

    # Texts of the three lengths modulo 4 that base64url has: 0, 2 and 3.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for name in ("a", "ab", "abc"):
        t = invitation.to_text(replace(MINIMAL, name=name))
        unused = {0: 0, 2: 4, 3: 2}[(len(t) - len(invitation.PREFIX)) % 4]
        for bit in range(unused):
            last = alphabet.index(t[-1])
            assert last & (1 << bit) == 0
            text(f"unused bit {bit} of the last character is set ({unused} are unused)",
                 t[:-1] + alphabet[last | 1 << bit])
        text("padding: =", t + "=")
        text("padding: ==", t + "==")
        text("one character more", t + "A")
        text("two characters more", t + "AA")
        text("four characters more", t + "AAAA")
    plus = invitation.to_text(replace(MINIMAL, secret=b"\xfb\xef" * 16))
    assert "-" in plus and "_" in invitation.to_text(replace(MINIMAL, secret=b"\xff" * 32))
    text("+ in the place of -", plus.replace("-", "+"))
    slash = invitation.to_text(replace(MINIMAL, secret=b"\xff" * 32))
    text("/ in the place of _", slash.replace("_", "/"))
    text("a space within", good[:40] + " " + good[40:])
    for c in " \t\r\n":
        text(f"{ascii(c)} behind the prefix", invitation.PREFIX + c + chars)
    text("white space alone", " \r\n\t")
    text("a line end within", good[:40] + "\n" + good[40:])
    text("a character outside of ASCII", good[:40] + "\u00e9" + good[41:])

    body("an empty body", b"")
    body("one byte behind the last field", invitation.encode_body(USUAL) + b"\x00")
    body("a second body behind the first", invitation.encode_body(USUAL) * 2)
    for name, u in low_order():
        body(f"the server's key is a point of low order: {name}",
             replace(USUAL, server_public=u))
    for name, u in non_canonical(SERVER_PUBLIC):
        body(f"the server's key is not canonical: {name}", replace(USUAL, server_public=u))
    for expiry in (253_402_300_800, 2**63, 2**64 - 1):
        body(f"expiry {expiry}", replace(USUAL, expiry_s=expiry))
    body("the secret is all zero", replace(USUAL, secret=bytes(32)))
    for p in (0, 127, 321, 65535):
        body(f"plaintext length {p}", replace(USUAL, plaintext_length=p))

    name_at = 74
    body("name of 0 characters", replace(USUAL, name=""))
    body("name of 65 characters", replace(USUAL, name="a" * 65))
    body("name of 255 characters", replace(USUAL, name="a" * 255))
    for name in (".a", "-a", "_a", "a b", "a/b", "a\n", "a\x00", "a:b", "a@b", "\u00e9"):
        body(f"name {ascii(name)}", replace(USUAL, name=name))
    body("name is not UTF-8", edited(USUAL, name_at + 2, b"\xff"))

    ports_at = name_at + 1 + len(MINIMAL.name)
    body("0 knock ports", replace(USUAL, knock_ports=()))
    body("17 knock ports", replace(USUAL, knock_ports=tuple(range(1, 18))))
    body("255 knock ports", replace(USUAL, knock_ports=tuple(range(1, 256))))
    body("knock port 0", replace(USUAL, knock_ports=(0,)))
    body("knock port 0 behind another", replace(USUAL, knock_ports=(62201, 0)))
    body("one knock port more than counted", edited(MINIMAL, ports_at, b"\x02"))

    body("0 hosts", replace(USUAL, hosts=()))
    body("9 hosts", replace(USUAL, hosts=tuple(f"h{n}" for n in range(9))))
    body("host of 0 bytes", replace(USUAL, hosts=("",)))
    body("host of 0 bytes behind another", replace(USUAL, hosts=("h", "")))
    body("host of 254 bytes", replace(USUAL, hosts=("h" * 254,)))
    body("host of 255 bytes", replace(USUAL, hosts=("h" * 255,)))
    for host in ("-", "-h", "a b", "a\n", "a\x00", "a/b", "a@b", "a%b", "[::1]", "$(a)", "a;b",
                 "a'b", "a\"b", "a\\b", "*", "a\x7f", "b\u00fccher.example", "fe80::1%eth0"):
        body(f"host {ascii(host)}", replace(USUAL, hosts=(host,)))
        body(f"host {ascii(host)} behind another", replace(USUAL, hosts=("h", host)))
    host_at = ports_at + 5
    for why, value in (("a lone continuation byte", b"\x80"), ("a byte 0xff", b"\xff"),
                       ("an overlong NUL", b"\xc0\x80"), ("a surrogate", b"\xed\xa0\x80"),
                       ("cut in a character", b"\xc3"), ("beyond U+10FFFF", b"\xf4\x90\x80\x80")):
        raw_body = invitation.encode_body(MINIMAL)
        assert raw_body[host_at - 1:host_at + 1] == b"\x01h"
        body(f"host is not UTF-8: {why}", raw_body[:host_at - 1] + bytes([len(value)]) + value
             + raw_body[host_at + 1:])

    def one(service):
        return replace(USUAL, services=(service,))

    body("33 services", replace(USUAL, services=tuple(
        replace(SSH, name=f"s{n}") for n in range(33))))
    body("255 services", replace(USUAL, services=tuple(
        replace(SSH, name=f"s{n}") for n in range(255))))
    body("one service more than there are", edited(
        replace(MINIMAL, services=(SSH,)), host_at + 1, b"\x02"))
    for why, names in (("next to each other", ("a", "b", "b")), ("apart", ("a", "b", "a"))):
        body(f"two services of one name, {why}", replace(USUAL, services=tuple(
            Service(name, (Ports("tcp", n + 1, n + 1),)) for n, name in enumerate(names))))
    body("one service less than there are", edited(
        replace(MINIMAL, services=(SSH, SSH)), host_at + 1, b"\x01"))
    body("service's name of 0 characters", one(replace(SSH, name="")))
    body("service's name of 33 characters", one(replace(SSH, name="a" * 33)))
    body("service's name of 64 characters", one(replace(SSH, name="a" * 64)))
    for name in ("Ssh", "9a", "-a", ".a", "_a", "a b", "a/b", "ssh\n", "ssh\x00", "\u00e9",
                 "a\u00e9", "tcp/22"):
        body(f"service's name {ascii(name)}", one(replace(SSH, name=name)))
    with_ssh = replace(MINIMAL, services=(SSH,))
    flags_at = host_at + 2 + 4
    assert invitation.encode_body(with_ssh)[flags_at - 3:flags_at] == b"ssh"
    for bit in range(1, 8):
        body(f"bit {bit} of the flags is set", edited(with_ssh, flags_at, bytes([1 << bit])))
    body("all bits of the flags are set", edited(with_ssh, flags_at, b"\xff"))
    body("a service without ports", one(replace(SSH, ports=())))
    body("a service with 17 ports", one(replace(SSH, ports=tuple(
        Ports("tcp", n, n) for n in range(1, 18)))))
    for value in (0, 1, 6, 17, 0x3F, 0x42, 0xC0, 0xFF):
        body(f"transport {value:#04x}", edited(with_ssh, flags_at + 2, bytes([value])))
    for first, last in ((0, 0), (0, 22), (22, 0), (23, 22), (65535, 1), (65535, 65534)):
        body(f"service's ports {first} to {last}",
             one(replace(SSH, ports=(Ports("tcp", first, last),))))
    body("the second port range is the wrong way round",
         one(replace(SSH, ports=(Ports("tcp", 22, 22), Ports("udp", 2, 1)))))

    whole = invitation.encode_body(with_ssh)
    for length in range(1, len(whole)):
        body(f"the body is cut to {length} of {len(whole)} bytes, the checksum is right",
             whole[:length])
    whole = invitation.to_text(with_ssh)
    for length in range(len(invitation.PREFIX) + 1, len(whole)):
        text(f"the text is cut to {length} of {len(whole)} characters", whole[:length])
    return out


def build():
    out = {"valid": build_valid(), "spaced": build_spaced(), "invalid": build_invalid()}
    texts = [x["text"] for x in out["valid"] + out["spaced"] + out["invalid"]]
    assert len(set(texts)) == len(texts), "a text is there twice"
    return out


def run(v):
    complaints = []
    for x in v["valid"]:
        try:
            i = invitation.from_text(x["text"])
            if {"id": x["id"], "text": x["text"], **to_json(i)} != x:
                complaints.append(f"invitations: another invitation: {x['id']}")
            if invitation.to_text(i) != x["text"]:
                complaints.append(f"invitations: another text: {x['id']}")
        except (KeyError, spa.SpaError) as e:
            complaints.append(f"invitations: {x.get('id')}: {type(e).__name__}: {e}")
    plain = {x["id"]: x["text"] for x in v["valid"]}
    for x in v["spaced"]:
        try:
            if invitation.to_text(invitation.from_text(x["text"])) != plain[x["id"]]:
                complaints.append(f"invitations: another text: {x['text']!r}")
        except (KeyError, spa.SpaError) as e:
            complaints.append(f"invitations: {x['text']!r}: {type(e).__name__}: {e}")
    for x in v["invalid"]:
        try:
            invitation.from_text(x["text"])
            complaints.append(f"invitations: not refused: {x['why']}")
        except spa.SpaError:
            pass
    return complaints
