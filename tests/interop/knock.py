#!/usr/bin/env python3
"""Send one knock (docs/protocol.md) by UDP, or enrol by an invitation: knock.py join."""

import argparse
import os
import socket
import sys
import time

import announcement
import invitation
import spa

# Linux: set "don't fragment" (the module `socket` of Python 3.11 has no names for these).
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO = 23, 2


class KnockError(Exception):
    pass


def read_key_file(kind, path):
    """A key file has '#' comment lines, empty lines, and one line with the key's text."""
    try:
        with open(path, encoding="ascii") as f:
            lines = [line.strip() for line in f]
    except OSError as e:
        raise KnockError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise KnockError(f"{path}: not an ASCII text file") from e
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        raise KnockError(f"{path}: one line with a key is wanted, {len(lines)} are there")
    try:
        return spa.key_from_text(kind, lines[0])
    except spa.SpaError as e:
        raise KnockError(f"{path}: {e}") from e


def send(host, port, packet):
    """Send one datagram to the first address of the host; gives the address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as e:
        raise KnockError(f"{host}: {e.strerror or e}") from e
    except UnicodeError as e:
        raise KnockError(f"{host}: not a host's name") from e
    family, kind, proto, _, address = found[0]
    try:
        with socket.socket(family, kind, proto) as s:
            if sys.platform == "linux":
                if family == socket.AF_INET6:
                    s.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
                else:
                    s.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            s.sendto(packet, address)
    except OSError as e:
        raise KnockError(f"{address[0]} port {port}: {e.strerror or e}") from e
    return address[0]


def number(low, high):
    def parse(text):
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"a number from {low} to {high} is wanted")
        return int(text)

    return parse


def write_key_file(kind, path, key):
    """A new file that nobody else can read."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="ascii") as f:
            f.write(spa.key_to_text(kind, key) + "\n")
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise KnockError(f"{path}: {e.strerror}") from e


def join(argv):
    """Section 9.2: the key is stored before anything is sent, so that it can be sent again."""
    parser = argparse.ArgumentParser(
        prog="knock.py join", allow_abbrev=False,
        description="Read an invitation (spa1:…) from standard input, make a key, and announce it"
        " to the server. Prints the server's public key and the packet's nonce.")
    parser.add_argument("--client-private-file", required=True, metavar="FILE",
                        help="the new key is written here; one that is there is announced again")
    parser.add_argument("--psk-file", required=True, metavar="FILE",
                        help="its pre-shared key is written here")
    parser.add_argument("--server", metavar="HOST",
                        help="name or address (default: the first of the invitation)")
    parser.add_argument("--port", type=number(1, 65535),
                        help="(default: the first of the invitation)")
    parser.add_argument("--bound-source", metavar="ADDRESS",
                        help="the address that the packet is good for (default: as observed)")
    args = parser.parse_args(argv)
    try:
        i = invitation.from_text(sys.stdin.read())
        if time.time() >= i.expiry_s:
            raise KnockError("the invitation has expired")
        if os.path.exists(args.client_private_file):
            private = read_key_file("private", args.client_private_file)
        else:
            private = os.urandom(32)
            write_key_file("private", args.client_private_file, private)
        kind, keys = announcement.ENROLMENT, announcement.invitation_secret(i.secret,
                                                                            i.server_public)
        ephemeral = announcement.derived_ephemeral(private, i.secret, i.server_public)
        made = announcement.announce(kind, i.secret, ephemeral, private, i.server_public)
        if not os.path.exists(args.psk_file):
            write_key_file("psk", args.psk_file, made.psk)
        elif read_key_file("psk", args.psk_file) != made.psk:
            raise KnockError(f"{args.psk_file}: this is another key's, or another invitation's")
        nonce, at = os.urandom(spa.NONCE_LEN), time.time_ns() // 1000
        plaintext = announcement.encode(kind, made, nonce, at, args.bound_source,
                                        i.plaintext_length)
        sealed = spa.seal_plaintext(keys, i.server_public, nonce, plaintext, spa.epoch_of(at))
        send(args.server or i.hosts[0], args.port or i.knock_ports[0], sealed.packet)
    except (spa.SpaError, KnockError) as e:
        print(f"knock.py: {e}", file=sys.stderr)
        return 1
    print(spa.key_to_text("public", i.server_public))
    print(nonce.hex())
    return 0


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["join"]:
        return join(argv[1:])
    parser = argparse.ArgumentParser(prog="knock.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--server", required=True, metavar="HOST", help="name or address")
    parser.add_argument("--port", type=number(1, 65535), default=spa.DEFAULT_PORT)
    parser.add_argument("--server-public", required=True, metavar="KEY", help="spa-public-…")
    parser.add_argument("--client-private-file", required=True, metavar="FILE")
    parser.add_argument("--psk-file", metavar="FILE")
    parser.add_argument("--type", choices=["open", "close"], default="open")
    parser.add_argument("--bound-source", metavar="ADDRESS",
                        help="the address that the knock is good for (default: as observed)")
    parser.add_argument("--lifetime", type=number(0, 2**32 - 1), default=0, metavar="SECONDS",
                        help="0 is the server's default")
    parser.add_argument("--plaintext-length", default=spa.DEFAULT_PLAINTEXT, metavar="P",
                        type=number(spa.MIN_PLAINTEXT, spa.MAX_PLAINTEXT))
    parser.add_argument("items", nargs="+", metavar="ITEM", help="ssh, tcp/22, udp/53")
    args = parser.parse_args(argv)
    try:
        server_public = spa.key_from_text("public", args.server_public)
        client_private = read_key_file("private", args.client_private_file)
        psk = read_key_file("psk", args.psk_file) if args.psk_file else None
        request = spa.Request(
            message_type=spa.OPEN if args.type == "open" else spa.CLOSE,
            timestamp_us=time.time_ns() // 1000,
            items=tuple(args.items),
            bound_source=args.bound_source,
            lifetime_s=args.lifetime,
        )
        nonce = os.urandom(spa.NONCE_LEN)
        sealed = spa.seal(client_private, server_public, psk, nonce, request,
                          args.plaintext_length)
        send(args.server, args.port, sealed.packet)
    except (spa.SpaError, KnockError) as e:
        print(f"knock.py: {e}", file=sys.stderr)
        return 1
    print(nonce.hex())
    return 0


if __name__ == "__main__":
    sys.exit(main())
