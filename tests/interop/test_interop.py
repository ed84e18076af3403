"""Tests of the second implementation: RFC values, round trips, vectors, the client."""

import copy
import io
import json
import pathlib
import socket
import sys
import tempfile
import time
import unittest
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import announcement
import announcement_vectors
import invitation
import invitation_vectors
import knock
import spa
import vectors

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors"
SUNSCREEN = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for"
             b" the future, sunscreen would be it.")
h = bytes.fromhex


class Primitives(unittest.TestCase):
    def test_x25519_rfc7748_section_5_2(self):
        self.assertEqual(
            spa.x25519(h("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
                       h("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")),
            h("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"))
        # The highest bit of this u coordinate is set and has to be ignored.
        self.assertEqual(
            spa.x25519(h("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d"),
                       h("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493")),
            h("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"))

    def test_x25519_rfc7748_section_6_1(self):
        a = h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
        b = h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
        a_public = h("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        b_public = h("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        shared = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
        self.assertEqual(spa.x25519_public(a), a_public)
        self.assertEqual(spa.x25519_public(b), b_public)
        self.assertEqual(spa.x25519(a, b_public), shared)
        self.assertEqual(spa.x25519(b, a_public), shared)

    def test_hkdf_rfc5869_a_1(self):
        self.assertEqual(
            spa.hkdf(bytes(range(13)), b"\x0b" * 22, bytes(range(0xF0, 0xFA)), 42),
            h("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"))

    def test_hkdf_rfc5869_a_2(self):
        """Three blocks of output, as the pair secret has."""
        self.assertEqual(
            spa.hkdf(bytes(range(0x60, 0xB0)), bytes(range(0x50)), bytes(range(0xB0, 0x100)), 82),
            h("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
              "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
              "cc30c58179ec3e87c14c01d5c1f3434f1d87"))

    def test_hmac_rfc4231_case_1(self):
        self.assertEqual(
            spa.hmac_sha256(b"\x0b" * 20, b"Hi There"),
            h("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"))

    def test_chacha20_rfc8439_2_4_2(self):
        stream = spa.chacha20_stream(bytes(range(32)), h("000000000000004a00000000"), 1,
                                     len(SUNSCREEN))
        self.assertEqual(
            spa.xor(SUNSCREEN, stream),
            h("6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
              "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
              "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
              "5af90bbf74a35be6b40b8eedf2785e42874d"))

    def test_chacha20_rfc8439_a_1_counter_0(self):
        self.assertEqual(spa.chacha20_stream(bytes(32), bytes(12), 0, 16),
                         h("76b8e0ada0f13d90405d6ae55386bd28"))

    def test_hchacha20_draft_2_2_1(self):
        self.assertEqual(
            spa.hchacha20(bytes(range(32)), h("000000090000004a0000000031415927")),
            h("82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"))

    def test_xchacha20poly1305_draft_a_3_1(self):
        key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
        aad = h("50515253c0c1c2c3c4c5c6c7")
        ciphertext, tag = spa.xchacha20poly1305_seal(key, nonce, SUNSCREEN, aad)
        self.assertEqual(
            ciphertext,
            h("bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
              "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
              "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
              "21f9664c97637da9768812f615c68b13b52e"))
        self.assertEqual(tag, h("c0875924c1c7987947deafd8780acf49"))
        self.assertEqual(spa.xchacha20poly1305_open(key, nonce, ciphertext, tag, aad), SUNSCREEN)
        self.assertIsNone(spa.xchacha20poly1305_open(key, nonce, ciphertext, tag, aad[1:]))


class Keys(unittest.TestCase):
    def test_round_trip(self):
        for kind in spa.PREFIXES:
            key = vectors.digest(kind)
            text = spa.key_to_text(kind, key)
            self.assertEqual(len(text), len(spa.PREFIXES[kind]) + 48)
            self.assertEqual(spa.key_from_text(kind, text), key)

    def test_each_changed_character_is_noticed(self):
        text = spa.key_to_text("public", vectors.ALICE.public)
        for i in range(len(text)):
            changed = text[:i] + ("A" if text[i] != "A" else "B") + text[i + 1:]
            with self.assertRaises(spa.SpaError):
                spa.key_from_text("public", changed)

    def test_messages_keep_the_secret(self):
        text = spa.key_to_text("private", vectors.ALICE.private)
        for kind, bad in (("public", text), ("private", text[:-1] + "!"), ("private", text[:-1])):
            with self.assertRaises(spa.SpaError) as e:
                spa.key_from_text(kind, bad)
            self.assertNotIn(text[12:40], str(e.exception))

    def test_both_sides_agree(self):
        c, s, psk = vectors.ALICE.private, vectors.SERVER, b"\x01" * 32
        cp, sp = spa.x25519_public(c), spa.x25519_public(s)
        self.assertEqual(spa.pair_secret(c, sp, cp, sp, psk), spa.pair_secret(s, cp, cp, sp, psk))
        self.assertNotEqual(spa.pair_secret(c, sp, cp, sp).hkdf_output,
                            spa.pair_secret(c, sp, cp, sp, psk).hkdf_output)

    def test_a_removed_client_keeps_its_window(self):
        r = spa.Receiver(vectors.SERVER)
        r.add_client(vectors.ALICE.public)
        packet = vectors.Knock("again").packet
        self.assertTrue(r.receive(packet, vectors.SRC, vectors.T).accepted)
        r.remove_client(vectors.ALICE.public)
        self.assertEqual(r.receive(packet, vectors.SRC, vectors.T).drop_reason, "unknown-tag")
        r.add_client(vectors.ALICE.public)
        self.assertEqual(r.receive(packet, vectors.SRC, vectors.T).drop_reason, "replay")


class Plaintext(unittest.TestCase):
    def test_round_trip(self):
        for items in (("ssh",), ("tcp/22", "udp/22"), ("a" * 32, "b.c-d_9"), ("tcp/1", "udp/65535")):
            for bound in (None, "192.0.2.1", "2001:db8::1"):
                r = spa.Request(spa.OPEN, 2**64 - 1, items, bound, 2**32 - 1)
                for p in (128, 320):
                    raw = spa.encode_plaintext(r, p)
                    self.assertEqual(len(raw), p)
                    self.assertEqual(spa.decode_plaintext(raw), r)

    def test_the_client_refuses(self):
        good = dict(message_type=spa.OPEN, timestamp_us=1, items=("ssh",))
        bad = [dict(items=()), dict(items=("ssh", "ssh")), dict(items=("tcp/22", "tcp/22")),
               dict(items=tuple(f"s{i}" for i in range(9))), dict(items=("tcp/0",)),
               dict(items=("tcp/65536",)), dict(items=("tcp/022",)), dict(items=("Ssh",)),
               dict(items=("9a",)), dict(items=("a" * 33,)), dict(items=("",)),
               dict(items=("s\u00e9h",)), dict(items=("ssh\n",)),
               dict(items=tuple(f"service-{i:04}" for i in range(8))),
               dict(message_type=3), dict(lifetime_s=2**32), dict(lifetime_s=-1),
               dict(timestamp_us=2**64), dict(timestamp_us=-1), dict(bound_source="0.0.0.0"),
               dict(bound_source="::"), dict(bound_source="::ffff:0.0.0.0"),
               dict(bound_source="example"), dict(bound_source="fe80::1%eth0")]
        spa.encode_plaintext(spa.Request(**good))
        for change in bad:
            with self.subTest(change), self.assertRaises(spa.SpaError):
                spa.encode_plaintext(spa.Request(**{**good, **change}))
        for p in (127, 321):
            with self.assertRaises(spa.SpaError):
                spa.encode_plaintext(spa.Request(**good), p)

    def test_each_single_byte_change_decodes_otherwise_or_not_at_all(self):
        """There is one encoding of a request: no two plaintexts decode to the same one."""
        r = spa.Request(spa.OPEN, vectors.T, ("ssh", "tcp/80"), "192.0.2.1", 60)
        raw = spa.encode_plaintext(r)
        for at in range(len(raw)):
            for value in range(256):
                if value != raw[at]:
                    try:
                        other = spa.decode_plaintext(raw[:at] + bytes([value]) + raw[at + 1:])
                    except spa.SpaError:
                        continue
                    self.assertNotEqual(other, r, f"byte {at} = {value}")


class Vectors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = {name: json.loads((VECTORS / name).read_text()) for name in vectors.FILES}

    def test_check(self):
        self.assertEqual(vectors.check(VECTORS), [])

    def test_write_is_deterministic(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            self.assertEqual(vectors.write(d), [])
            for name in vectors.FILES:
                self.assertEqual((d / name).read_bytes(), (VECTORS / name).read_bytes())

    def test_each_drop_reason_is_there(self):
        wanted = {"length", "unknown-tag", "skew-unexamined", "mac", "replay", "decrypt",
                  "layout", "epoch", "too-old", "too-new", "barrier", "floor", "bound-source",
                  "superseded", "window-full"}
        self.assertEqual({v["drop_reason"] for v in self.files["negative.json"]}, wanted)

    def test_the_builders_catch_nothing_by_chance(self):
        """A bad layout must be dropped because of the layout only: repaired, it passes."""
        for v in self.files["negative.json"]:
            if v["drop_reason"] == "layout" and v["name"] != "layout-before-epoch":
                with self.subTest(v["name"]):
                    original, spa.decode_plaintext = spa.decode_plaintext, self.lenient
                    try:
                        self.assertEqual(vectors.run_negative({**v, "drop_reason": None, "controls": [],
                                                               "ports": ["tcp/22"]}), [])
                    finally:
                        spa.decode_plaintext = original

    @staticmethod
    def lenient(plaintext):
        return spa.Request(spa.OPEN, int.from_bytes(plaintext[2:10], "big"), ("ssh",))

    # Negative controls: the check must notice whatever is changed in a file.

    def test_positive_notices_each_changed_field(self):
        v = self.files["positive.json"][0]
        self.assertEqual(vectors.check_positive([v]), [])
        for key in v.keys() - {"name"}:
            with self.subTest(key):
                changed = copy.deepcopy(v)
                value = v[key]
                if key == "psk":
                    changed[key] = "01" * 32
                elif key == "bound_source":
                    changed[key] = "192.0.2.1"
                elif key == "message_type":
                    changed[key] = "close"
                elif key == "items":
                    changed[key] = value + ["web"]
                elif isinstance(value, int):
                    changed[key] = value + 1
                else:
                    changed[key] = value[:-1] + ("0" if value[-1] != "0" else "1")
                self.assertNotEqual(vectors.check_positive([changed]), [])
        for key in v:
            changed = copy.deepcopy(v)
            del changed[key]
            self.assertNotEqual(vectors.check_positive([changed]), [])
        self.assertNotEqual(vectors.check_positive([{**v, "more": 1}]), [])

    def test_negative_notices_another_reason(self):
        for v in self.files["negative.json"]:
            other = "mac" if v["drop_reason"] != "mac" else "length"
            self.assertNotEqual(vectors.run_negative({**v, "drop_reason": other}), [])

    def test_negative_notices_a_good_packet(self):
        for v in self.files["negative.json"]:
            for c in v["controls"]:
                self.assertNotEqual(vectors.run_negative({**v, **c}), [], v["name"])

    def test_negative_notices_a_bad_control(self):
        for v in self.files["negative.json"]:
            bad = {key: v[key] for key in ("now_us", "source", "packet", "ports")}
            self.assertNotEqual(vectors.run_negative({**v, "controls": [bad]}), [])

    def test_negative_notices_wrong_history(self):
        for v in self.files["negative.json"]:
            for i in range(len(v["history"])):
                changed = copy.deepcopy(v)
                changed["history"][i]["accept"] = not changed["history"][i]["accept"]
                self.assertNotEqual(vectors.run_negative(changed), [])

    def test_history_matters(self):
        for v in self.files["negative.json"]:
            if v["history"] and v["name"] not in (
                    "mac-before-replay", "bound-source-not-burned", "barrier-before-floor",
                    "bound-source-before-superseded", "skew-allowance-of-four",
                    "skew-allowance-comes-back", "skew-fresh-epochs-cost-nothing",
                    "skew-epoch-touches-window-start", "skew-epoch-touches-window-end"):
                self.assertNotEqual(vectors.run_negative({**v, "history": []}), [], v["name"])

    def test_files_notice_a_missing_vector(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            for name, value in self.files.items():
                (d / name).write_text(vectors.dump(value))
            self.assertEqual(vectors.check(d), [])
            (d / "negative.json").write_text(vectors.dump(self.files["negative.json"][:-1]))
            self.assertNotEqual(vectors.check(d), [])
            (d / "negative.json").unlink()
            self.assertNotEqual(vectors.check(d), [])

    def test_keys_notice(self):
        keys = self.files["keys.json"]
        for v in (
            {**keys, "invalid": [{**keys["valid"][0], "why": "it is valid"}]},
            {**keys, "valid": [{**keys["invalid"][-1], "key": "00" * 32}]},
            {**keys, "valid": [{**keys["valid"][0], "key": "00" * 32}]},
            {**keys, "refused_clients": [{"why": "", "client_public": vectors.BOB.public.hex(),
                                          "psk": None}]},
        ):
            self.assertNotEqual(vectors.run_keys(v), [])


class Announcements(unittest.TestCase):
    """Section 9: the vectors, and that they show what they say."""

    @classmethod
    def setUpClass(cls):
        cls.file = json.loads((VECTORS / "announcements.json").read_text())
        cls.negative = cls.file["negative"]

    def test_each_drop_reason_is_there(self):
        wanted = {"length", "unknown-tag", "skew-unexamined", "mac", "replay", "decrypt",
                  "layout", "epoch", "too-old", "too-new", "barrier", "floor", "bound-source",
                  "superseded", "window-full", "previous-server-key", "invitation-expired",
                  "invitation-void", "proof", "invitation-used", "rotation-pending",
                  "key-known"}
        self.assertEqual({v["drop_reason"] for v in self.negative}, wanted)
        for kind in announcement_vectors.KINDS:
            self.assertTrue(any(v["name"].startswith(kind) for v in self.file["positive"]))

    def test_each_refused_proof_has_one_fault(self):
        """What is wrong is what the name says; without that check, the announcement verifies."""
        faults = {"ephemeral-low-order": "low order", "new-low-order": "low order",
                  "ephemeral-not-canonical": "not canonical", "new-not-canonical": "not canonical",
                  "ephemeral-is-server": "server's own", "new-is-server": "server's own",
                  "sealed-key": "does not open"}
        seen = set()
        for v in self.negative:
            kind, _, rest = v["name"].partition("-proof-")
            if not rest:
                continue
            with self.subTest(v["name"]):
                fault = next((f for f in faults if rest.startswith(f)), None)
                other_key = rest == "other-label" or (
                    rest.startswith("x-") and not rest.endswith("-in-proof"))
                message = faults.get(fault) or (
                    "does not open" if other_key else "proof does not hold")
                seen.add(message)
                with self.assertRaisesRegex(spa.SpaError, message):
                    self.verify(v, kind)
                if fault and fault != "sealed-key":
                    usable, x25519 = announcement.require_usable, spa.x25519
                    announcement.require_usable = lambda *_: None
                    spa.x25519 = lambda *keys: self.or_zero(x25519, *keys)
                    try:
                        self.verify(v, kind)
                    finally:
                        announcement.require_usable, spa.x25519 = usable, x25519
        self.assertEqual(len(seen), 5)

    @staticmethod
    def or_zero(x25519, private, public):
        try:
            return x25519(private, public)
        except spa.SpaError:
            return bytes(32)

    @staticmethod
    def verify(v, kind):
        server = h(v["server_private"])
        if kind == "enrolment":
            x = announcement_vectors.INVITATION
            keys = announcement.invitation_secret(x, vectors.SERVER_PUBLIC)
        else:
            keys = vectors.BOB.secret()
            x = announcement.rotation_x(keys, vectors.BOB.public, vectors.SERVER_PUBLIC)
        packet = h(v["packet"])
        plaintext = spa.xchacha20poly1305_open(keys.k_enc, packet[16:40], packet[40:168],
                                               packet[168:184], packet[:16])
        return announcement.verify(server, x, announcement.decode(plaintext), packet[16:40])

    def test_positive_notices_each_changed_field(self):
        for v in (self.file["positive"][0], self.file["positive"][-1]):
            for key in v.keys() - {"name"}:
                with self.subTest(key):
                    changed, value = copy.deepcopy(v), v[key]
                    if key == "message_type":
                        changed[key] = {"enrolment": "rotation", "rotation": "enrolment"}[value]
                    elif key == "bound_source":
                        changed[key] = "192.0.2.1"
                    elif value is None:
                        changed[key] = "01" * 32
                    elif isinstance(value, int):
                        changed[key] = value + 1
                    else:
                        changed[key] = value[:-1] + ("0" if value[-1] != "0" else "1")
                    self.assertNotEqual(self.check(positive=[changed]), [])
                with self.subTest(missing=key):
                    changed = copy.deepcopy(v)
                    del changed[key]
                    self.assertNotEqual(self.check(positive=[changed]), [])

    @staticmethod
    def check(positive=(), negative=()):
        return vectors.check_announcements({"positive": positive, "negative": negative})

    def test_negative_notices(self):
        for v in self.negative:
            with self.subTest(v["name"]):
                other = "mac" if v["drop_reason"] != "mac" else "length"
                self.assertNotEqual(self.check(negative=[{**v, "drop_reason": other}]), [])
                self.assertTrue(v["controls"], "a control is missing")
                for c in v["controls"]:
                    self.assertNotEqual(self.check(negative=[{**v, **c}]), [])
                bad = {key: v[key] for key in ("now_us", "source", "packet", "ports")}
                self.assertNotEqual(self.check(negative=[{**v, "controls": [bad]}]), [])
                for i in range(len(v["history"])):
                    changed = copy.deepcopy(v)
                    changed["history"][i]["accept"] = not changed["history"][i]["accept"]
                    self.assertNotEqual(self.check(negative=[changed]), [])

    def test_a_packet_of_one_kind_repeats_nothing(self):
        """Two packets of one announcement: no 4 bytes of one are in the other."""
        for kind in announcement_vectors.KINDS:
            a, b = (h(v["packet"]) for v in self.file["positive"]
                    if v["name"] in (f"{kind}-minimal", f"{kind}-again"))
            parts = {a[i:i + 4] for i in range(len(a) - 3)}
            self.assertFalse(any(b[i:i + 4] in parts for i in range(len(b) - 3)))


class Invitations(unittest.TestCase):
    def test_each_changed_character_is_noticed(self):
        text = invitation.to_text(invitation_vectors.USUAL)
        for i in range(len(text)):
            changed = text[:i] + ("A" if text[i] != "A" else "B") + text[i + 1:]
            with self.assertRaises(spa.SpaError):
                invitation.from_text(changed)

    def test_messages_keep_the_secret(self):
        text = invitation.to_text(invitation_vectors.USUAL)
        for bad in (text[:-1], text + "=", "spa2:" + text[5:], text[:60] + "A" + text[61:]):
            with self.assertRaises(spa.SpaError) as e:
                invitation.from_text(bad)
            self.assertNotIn(text[12:40], str(e.exception))

    def test_a_body_of_any_bytes_is_decoded_or_refused(self):
        """Each byte of a good body changed to each value; what is read is written the same."""
        body = invitation.encode_body(invitation_vectors.USUAL)
        for at in range(len(body)):
            for value in range(256):
                changed = body[:at] + bytes([value]) + body[at + 1:]
                try:
                    i = invitation.decode_body(changed)
                except spa.SpaError:
                    continue
                self.assertEqual(invitation.encode_body(i), changed)

    def test_the_vectors_notice(self):
        v = json.loads((VECTORS / "invitations.json").read_text())
        for i, good in enumerate(v["valid"]):
            self.assertNotEqual(
                invitation_vectors.run({**v, "invalid": [{"why": "", "text": good["text"]}]}), [])
            for key in good.keys() - {"id"}:
                changed = copy.deepcopy(v)
                value = good[key]
                changed["valid"][i][key] = (
                    value + 1 if isinstance(value, int) else
                    value + [1] if isinstance(value, list) else value[:-1] + "!")
                self.assertNotEqual(invitation_vectors.run(changed), [], (good["id"], key))


class Command(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        self.key = self.file("key", "# a comment\n\n"
                             + spa.key_to_text("private", vectors.BOB.private) + "\n")
        self.psk = self.file("psk", spa.key_to_text("psk", vectors.BOB.psk))
        self.server = spa.key_to_text("public", vectors.SERVER_PUBLIC)

    def file(self, name, text):
        path = self.dir / name
        path.write_text(text)
        return str(path)

    def run_knock(self, *args, server="127.0.0.1", public=None, key=None):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = knock.main(["--server", server, "--server-public", public or self.server,
                                   "--client-private-file", key or self.key, *args])
            except SystemExit as e:
                code = e.code
        return code, out.getvalue(), err.getvalue()

    def listen(self, family, address):
        s = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(s.close)
        try:
            s.bind((address, 0))
        except OSError:
            self.skipTest(f"no {address} here")
        s.settimeout(5)
        return s, str(s.getsockname()[1])

    def receive(self, s, **more):
        packet, source = s.recvfrom(2000)
        r = spa.Receiver(vectors.SERVER, **more)
        r.add_client(vectors.BOB.public, vectors.BOB.psk)
        return r.receive(packet, source[0], time.time_ns() // 1000)

    def test_ipv4(self):
        s, port = self.listen(socket.AF_INET, "127.0.0.1")
        code, out, err = self.run_knock("--port", port, "--psk-file", self.psk, "ssh", "udp/53")
        self.assertEqual((code, err), (0, ""))
        verdict = self.receive(s)
        self.assertTrue(verdict.accepted, verdict)
        self.assertEqual(verdict.nonce.hex(), out.strip())
        self.assertEqual(verdict.request.items, ("ssh", "udp/53"))
        self.assertEqual((verdict.request.message_type, verdict.request.bound_source,
                          verdict.request.lifetime_s), (spa.OPEN, None, 0))

    def test_ipv6_and_all_options(self):
        s, port = self.listen(socket.AF_INET6, "::1")
        code, out, err = self.run_knock(
            "--port", port, "--psk-file", self.psk, "--type", "close", "--bound-source", "::1",
            "--lifetime", "77", "--plaintext-length", "200", "web", server="::1")
        self.assertEqual((code, err), (0, ""))
        verdict = self.receive(s, plaintext_length=200)
        self.assertTrue(verdict.accepted, verdict)
        self.assertEqual((verdict.request.message_type, verdict.request.bound_source,
                          verdict.request.lifetime_s), (spa.CLOSE, "::1", 77))

    def run_join(self, text, *args, key="joined.key"):
        out, err = io.StringIO(), io.StringIO()
        stdin, sys.stdin = sys.stdin, io.StringIO(text)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = knock.main(["join", "--client-private-file", str(self.dir / key),
                                   "--psk-file", str(self.dir / "joined.psk"), *args])
        finally:
            sys.stdin = stdin
        return code, out.getvalue(), err.getvalue()

    def invited(self, port, **more):
        i = replace(invitation_vectors.MINIMAL, hosts=("127.0.0.1",), knock_ports=(int(port),),
                    expiry_s=int(time.time()) + 600, plaintext_length=200, **more)
        return i, invitation.to_text(i) + "\n"

    def test_join_and_knock(self):
        s, port = self.listen(socket.AF_INET, "127.0.0.1")
        i, text = self.invited(port)
        r = announcement.Receiver(vectors.SERVER, plaintext_length=200)
        r.invite(i.secret, i.expiry_s)

        def arrives():
            packet, source = s.recvfrom(2000)
            return r.receive(packet, source[0], time.time_ns() // 1000)

        code, out, err = self.run_join(text, "--bound-source", "127.0.0.1")
        self.assertEqual((code, err), (0, ""))
        verdict = arrives()
        self.assertTrue(verdict.accepted, verdict)
        self.assertEqual(out.split(), [self.server, verdict.nonce.hex()])
        for name in ("joined.key", "joined.psk"):
            self.assertEqual((self.dir / name).stat().st_mode & 0o777, 0o600)
        # Once more, as after an interruption: the same key and pre-shared key, without effect.
        (self.dir / "joined.psk").unlink()
        known = len(r.clients)
        self.assertEqual(self.run_join(text)[0], 0)
        verdict = arrives()
        self.assertTrue(verdict.accepted, verdict)
        self.assertEqual(len(r.clients), known)
        code, _, err = self.run_knock(
            "--port", port, "--psk-file", str(self.dir / "joined.psk"), "--plaintext-length",
            "200", "ssh", key=str(self.dir / "joined.key"))
        self.assertEqual((code, err), (0, ""))
        verdict = arrives()
        self.assertTrue(verdict.accepted, verdict)

    def test_join_sends_nothing_that_can_not_be_right(self):
        s, port = self.listen(socket.AF_INET, "127.0.0.1")
        s.settimeout(0.05)
        i, text = self.invited(port)
        past = invitation.to_text(replace(i, expiry_s=int(time.time()) - 1))
        for bad in ("", text[:-2], past, self.server):
            code, out, err = self.run_join(bad)
            self.assertEqual((code, out), (1, ""))
            self.assertNotIn(text[12:40], err)
            self.assertEqual(list(self.dir.glob("joined.*")), [])
        self.file("joined.psk", spa.key_to_text("psk", vectors.BOB.psk))
        self.assertEqual(self.run_join(text)[0], 1)
        with self.assertRaises(TimeoutError):
            s.recv(2000)

    def test_nonces_differ(self):
        s, port = self.listen(socket.AF_INET, "127.0.0.1")
        nonces = {self.run_knock("--port", port, "ssh")[1] for _ in range(3)}
        self.assertEqual(len(nonces), 3)

    def test_errors(self):
        private = spa.key_to_text("private", vectors.BOB.private)
        s, port = self.listen(socket.AF_INET, "127.0.0.1")
        s.settimeout(0.05)
        two = self.file("two", private + "\n" + private + "\n")
        none = self.file("none", "# nothing\n")
        cut = self.file("cut", private[:-1])
        zero = self.file("zero", spa.key_to_text("psk", bytes(32)))
        self_public = spa.key_to_text("public", vectors.BOB.public)
        low = spa.key_to_text("public", bytes(32))
        for code, args, more in (
            (1, ["ssh"], dict(key=two)),
            (1, ["ssh"], dict(key=none)),
            (1, ["ssh"], dict(key=cut)),
            (1, ["ssh"], dict(key=str(self.dir / "missing"))),
            (1, ["ssh"], dict(key=self.psk)),
            (1, ["ssh"], dict(public=self.server[:-1])),
            (1, ["ssh"], dict(public=self_public)),
            (1, ["ssh"], dict(public=low)),
            (1, ["--psk-file", zero, "ssh"], {}),
            (1, ["ssh", "ssh"], {}),
            (1, ["Ssh"], {}),
            (1, ["--bound-source", "nowhere", "ssh"], {}),
            (1, [f"service-{i:04}" for i in range(8)], {}),
            (1, ["ssh"], dict(server="host.invalid")),
            (2, [], {}),
            (2, ["--lifetime", "-1", "ssh"], {}),
            (2, ["--lifetime", str(2**32), "ssh"], {}),
            (2, ["--plaintext-length", "127", "ssh"], {}),
            (2, ["--type", "other", "ssh"], {}),
        ):
            with self.subTest(args=args, **more):
                got, out, err = self.run_knock("--port", port, *args, **more)
                self.assertEqual((got, out), (code, ""))
                self.assertNotEqual(err, "")
                self.assertNotIn("Traceback", err)
                self.assertNotIn(private[12:40], err)
        with self.assertRaises(TimeoutError):
            s.recv(2000)


if __name__ == "__main__":
    unittest.main()
