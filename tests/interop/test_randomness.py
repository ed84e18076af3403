"""Tests of randomness.py: good packets pass, each kind of bad ones is noticed."""

import hashlib
import io
import math
import pathlib
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout

import numpy as np

import announcement
import randomness
import spa
from cases import SECOND, SERVER, SERVER_PUBLIC, T, digest, request

LENGTH = 216
PACKETS = 4000


def noise(label, packets=PACKETS, length=LENGTH):
    raw = hashlib.shake_256(label.encode()).digest(packets * length)
    return np.frombuffer(raw, dtype=np.uint8).reshape(packets, length)


def array(packets):
    return np.frombuffer(b"".join(packets), dtype=np.uint8).reshape(len(packets), -1)


def knocks(clients, count):
    """Packets of real clients, one second apart, of which many are in one epoch."""
    secrets = []
    for i in range(clients):
        private = digest(f"random client {i}")
        public = spa.x25519_public(private)
        secrets.append(spa.pair_secret(private, SERVER_PUBLIC, public, SERVER_PUBLIC))
    out = []
    for i in range(count):
        at = T + i * SECOND
        plaintext = spa.encode_plaintext(request("ssh", at=at))
        out.append(spa.seal_plaintext(secrets[i % clients], SERVER_PUBLIC,
                                      digest(f"random nonce {clients} {i}")[:24], plaintext,
                                      spa.epoch_of(at)).packet)
    return array(out)


def enrolments(count):
    """Packets of one announcement: the same E, N and bound source in each of them."""
    secret = digest("random invitation")
    keys = announcement.invitation_secret(secret, SERVER_PUBLIC)
    made = announcement.announce(announcement.ENROLMENT, secret, digest("random e"),
                                 digest("random n"), SERVER_PUBLIC)
    out = []
    for i in range(count):
        at, n = T + i * SECOND, digest(f"random enrolment nonce {i}")[:24]
        plaintext = announcement.encode(announcement.ENROLMENT, made, n, at, "2001:db8::1")
        out.append(spa.seal_plaintext(keys, SERVER_PUBLIC, n, plaintext,
                                      spa.epoch_of(at)).packet)
    return array(out)


class Good(unittest.TestCase):
    def passes(self, p):
        noticed = [str(r) for r in randomness.judge(p) if r.noticed]
        self.assertEqual(noticed, [])

    def test_noise(self):
        self.passes(noise("noise"))
        self.passes(noise("long noise", 1000, 408))

    def test_knocks_of_one_client(self):
        self.passes(knocks(1, 1500))

    def test_knocks_of_many_clients(self):
        self.passes(knocks(50, 1500))

    def test_enrolments(self):
        self.passes(enrolments(1500))

    def test_the_result_is_the_same_each_time(self):
        p = noise("again")
        self.assertEqual(randomness.judge(p), randomness.judge(p))


class Bad(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.good = noise("to be spoiled")
        cls.found = [(spoil, test, results) for spoil, tests in randomness.CONTROLS
                     for test, results in randomness.control(cls.good, spoil, tests)]

    def test_each_control_is_noticed_by_each_of_its_tests(self):
        self.assertFalse(any(r.noticed for r in randomness.judge(self.good)))
        for spoil, test, results in self.found:
            with self.subTest(spoil=spoil.__name__, test=test.__name__):
                self.assertTrue(any(r.noticed for r in results), list(map(str, results)))

    def test_each_test_has_a_control(self):
        used = {test for _, tests in randomness.CONTROLS for test in tests}
        self.assertEqual(used, set(randomness.TESTS))

    def test_each_result_of_a_test_can_alarm(self):
        names = {r.test for _, _, results in self.found for r in results if r.noticed}
        flat = self.good.copy()
        flat[2, 100:112] = 7
        names |= {r.test for r in randomness.judge(flat, (randomness.runs,)) if r.noticed}
        self.assertEqual(names, {r.test for r in randomness.judge(self.good)})

    def test_knocks_with_the_tag_unmasked(self):
        public = spa.x25519_public(digest("random client 0"))
        secret = spa.pair_secret(SERVER, public, public, SERVER_PUBLIC)
        p = knocks(1, 1000).copy()
        for i in range(len(p)):
            epoch = spa.epoch_of(T + i * SECOND)
            p[i, :16] = np.frombuffer(spa.epoch_tag(secret.k_tag, epoch), dtype=np.uint8)
        noticed = {r.test for r in randomness.judge(p) if r.noticed}
        self.assertLessEqual({"repeated tags and nonces", "repeated aligned blocks of 16 bytes",
                              "repeated 8 bytes at any place", "compression"}, noticed)

    def test_a_real_ephemeral_in_clear(self):
        """X25519 public keys are below 2^255: the top bit tells."""
        p = noise("ephemerals", 1000).copy()
        for i in range(len(p)):
            p[i, 40:72] = np.frombuffer(spa.x25519_public(digest(f"ephemeral {i}")),
                                        dtype=np.uint8)
        noticed = {r.test for r in randomness.judge(p) if r.noticed}
        self.assertEqual(noticed, {"byte frequencies", "bit balance",
                                   "correlation with the next packet"})

    def test_announcements_sealed_twice_with_one_nonce(self):
        p = enrolments(1000).copy()
        p[700] = p[30]
        self.assertTrue(any(r.noticed for r in randomness.judge(p)))


class Bounds(unittest.TestCase):
    def test_runs_are_those_of_a_plain_count(self):
        for flat in (noise("runs", 1, 5000).ravel(), np.zeros(3, dtype=np.uint8),
                     noise("few values", 1, 5000).ravel() % 2, np.array([1, 0, 0], np.uint8)):
            for bits in (False, True):
                values = (np.unpackbits(flat) if bits else flat).tolist()
                changes, longest, run = 0, 1, 1
                for a, b in zip(values, values[1:]):
                    run = run + 1 if a == b else 1
                    changes += a != b
                    longest = max(longest, run)
                for chunk in (1, randomness.CHUNK):
                    old, randomness.CHUNK = randomness.CHUNK, chunk
                    try:
                        self.assertEqual(randomness.run_lengths(flat, bits),
                                         (changes, longest, len(values)))
                    finally:
                        randomness.CHUNK = old

    def test_a_fair_statistic_keeps_its_bound_and_is_not_far_from_it(self):
        """The bounds hold at a probability that can be tried: 1 in 100, 1000 times."""
        p = noise("bounds", 1000, 1000)
        excess = randomness.excess(p)
        self.assertLess(np.count_nonzero(excess >= randomness.entropy_bound(0.01, 1)), 30)
        # 255 / 2 for many packets, a little more for so few; the bound allows for 255.
        self.assertTrue(125 < excess.mean() < 145, excess.mean())
        walks = randomness.walks(p, lambda a, b: p[a:b])[0]
        self.assertLess(np.count_nonzero(walks >= randomness.walk_bound(1000, 0.01, 1)), 30)
        self.assertGreater(np.count_nonzero(walks >= randomness.walk_bound(1000, 1.0, 1)), 30)

    def test_the_bounds_solve_their_equations(self):
        x = randomness.entropy_bound(1e-10, 216)
        self.assertAlmostEqual(-x + 255 * (1 + math.log(x / 255)), math.log(1e-10 / 216), places=6)
        t = randomness.walk_bound(100, 1e-10, 7)
        self.assertAlmostEqual(2 * 7 * math.exp(-t * t / 200) / 1e-10, 1, places=6)
        k = randomness.match_length(10**7, 1e-10)
        self.assertLessEqual(10**14 / 2 * 256.0**-k, 1e-10)
        self.assertGreater(10**14 / 2 * 256.0**(1 - k), 1e-10)

    def test_repeated_windows_are_those_of_a_plain_count(self):
        p = noise("windows", 1000).copy()
        for copies in (0, 1, 3):
            for i in range(copies):
                p[i, 10 + i:18 + i] = p[500 + i, 100:108]
            found = randomness.repeated_windows(p, 1e-10)[0]
            self.assertEqual(found.found, copies)
        p[900] = p[901]
        self.assertEqual(randomness.repeated_windows(p, 1e-10)[1].found, LENGTH)


class Command(unittest.TestCase):
    def run_it(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = randomness.main(list(args))
            except SystemExit as e:
                code = e.code
        return code, out.getvalue(), err.getvalue()

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)

    def file(self, name, raw):
        (self.dir / name).write_bytes(raw)
        return str(self.dir / name)

    def test_good_bad_and_useless_files(self):
        good = noise("file", 1000)
        bad = good.copy()
        randomness.set_byte(bad)
        code, out, err = self.run_it(self.file("good", good.tobytes()), str(LENGTH))
        self.assertEqual((code, err), (0, ""))
        self.assertIn("no difference from random", out)
        code, out, err = self.run_it(self.file("bad", bad.tobytes()), str(LENGTH))
        self.assertEqual((code, err), (1, ""))
        self.assertIn("ALARM", out)
        code, out, err = self.run_it("--controls", self.file("good", good.tobytes()), str(LENGTH))
        self.assertEqual((code, err), (0, ""))
        self.assertNotIn("MISSED", out)
        for name, raw in (("few", good[:999].tobytes()), ("odd", good.tobytes() + b"\x00"),
                          ("empty", b"")):
            code, out, err = self.run_it(self.file(name, raw), str(LENGTH))
            self.assertEqual((code, out), (2, ""))
            self.assertIn("randomness.py: ", err)
        code, out, err = self.run_it(str(self.dir / "missing"), str(LENGTH))
        self.assertEqual((code, out), (2, ""))
        for length in ("0", "-1", "215", "409", "x"):
            self.assertEqual(self.run_it(self.file("good", good.tobytes()), length)[0], 2)


if __name__ == "__main__":
    unittest.main()
