#!/usr/bin/env python3
"""Does a capture of packets hold anything that repeats, or that differs from random?

    randomness.py FILE LENGTH               judge the packets of LENGTH bytes in FILE
    randomness.py --controls FILE LENGTH    spoil them in known ways first: each must be noticed

FILE holds packets of one length, one after another, in the order of their sending. Exit status: 0
nothing was found, 1 something was, 2 the file or the call is no good.

The null hypothesis is that all bytes are independent and uniform. Each test has a bound that such
bytes pass but with probability ALARM / (number of tests); within a test, that is divided by the
number of its statistics (Bonferroni). So a false alarm has probability below ALARM = 1e-9 over all
tests of a file, whatever the number of packets: no bound is an approximation for large numbers.
They follow from

- Hoeffding's inequality, in its maximal form for walks: for n fair signs, the sum reaches t at
  some point, up or down, with probability <= 2 exp(-t^2 / 2n);
- Agrawal, "Finite-sample concentration of the multinomial in relative entropy" (2020): for n
  draws of k values, n KL(found || uniform) >= x has probability <= exp(-x) (e x / (k-1))^(k-1) for
  x > k-1. Twice this statistic is the likelihood ratio G, which is chi-square with k-1 degrees
  for large n;
- counting: of all strings, less than 256^-k * 256/255 can be written k bytes shorter;
- the union bound: two given places agree in k bytes with probability 256^-k, also if they overlap;
  m disjoint pairs of places among N agree with probability <= (N^2/2 * 256^-k)^m / m!.

The same file gives the same result: nothing is drawn.
"""

import argparse
import bz2
import math
import pathlib
import sys
import zlib
from dataclasses import dataclass

import numpy as np

ALARM = 1e-9
LEAST_PACKETS = 1000
LAGS = 8
WINDOW = 8
BLOCK = 16
TAG_END, NONCE_END, MASK_NONCE_END = 16, 40, 28
CHUNK = 4096
CONTROL_PACKETS = 10_000


class RandomnessError(Exception):
    pass


@dataclass(frozen=True)
class Result:
    test: str
    found: float
    bound: float
    where: str = ""

    @property
    def noticed(self):
        return self.found >= self.bound

    def __str__(self):
        word = "ALARM" if self.noticed else "ok"
        where = f"  ({self.where})" if self.where else ""
        return f"{word:5}  {self.test}: {self.found:.6g}, wanted < {self.bound:.6g}{where}"


# --- bounds ----------------------------------------------------------------------------


def walk_bound(n, alpha, statistics):
    """What the walks of n fair signs, so many of them, stay below."""
    return math.sqrt(2 * n * math.log(2 * statistics / alpha))


def entropy_bound(alpha, statistics, values=256):
    """What n KL(found || uniform) stays below."""
    k, wanted = values - 1, math.log(alpha / statistics)
    low, high = float(k), 100.0 * k - 10 * wanted
    for _ in range(200):
        x = (low + high) / 2
        if -x + k * (1 + math.log(x / k)) > wanted:
            low = x
        else:
            high = x
    return high


def match_length(places, alpha):
    """The least k for which no two of these places should agree in k bytes."""
    k = 1
    while places**2 / 2 * 256.0**-k > alpha:
        k += 1
    return k


def match_count(places, length, alpha):
    """The least m for which no m disjoint pairs of places should agree in `length` bytes."""
    expected = places**2 / 2 * 256.0**-length
    m = 1
    while expected**m / math.factorial(m) > alpha:
        m += 1
        if m > 150:
            raise RandomnessError("too many packets for windows of this length")
    return m


# --- tests -----------------------------------------------------------------------------


def excess(rows):
    """n KL(found || uniform) of each column of bytes."""
    n, width = rows.shape
    counts = np.zeros(width * 256, dtype=np.int64)
    base = np.arange(width, dtype=np.int32) * 256
    for at in range(0, n, CHUNK):
        counts += np.bincount((rows[at:at + CHUNK] + base).ravel(), minlength=width * 256)
    counts = counts.reshape(width, 256).astype(np.float64)
    terms = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) * 256 / n), 0)
    return terms.sum(axis=1)


def highest(values):
    at = np.unravel_index(np.argmax(values), np.shape(values))
    return float(np.asarray(values)[at]), at


def frequencies(p, alpha):
    """Each value at each position."""
    found, (at,) = highest(excess(p))
    return Result("byte frequencies", found, entropy_bound(alpha, p.shape[1]), f"position {at}")


def differences(p, alpha):
    """byte - the byte at the same position of one of the packets before, modulo 256: constants,
    counters, slow changes. For independent uniform bytes these are independent and uniform."""
    results = [highest(excess(p[lag:] - p[:-lag])) for lag in range(1, LAGS + 1)]
    lag = max(range(LAGS), key=lambda i: results[i][0])
    found, (at,) = results[lag]
    return Result("differences to earlier packets", found,
                  entropy_bound(alpha, LAGS * p.shape[1]), f"position {at}, lag {lag + 1}")


def walks(p, bits_of):
    """The furthest that the walk of each bit's signs gets; an array of 8 x width."""
    out = np.empty((8, p.shape[1]))
    for bit in range(8):
        height = np.zeros(p.shape[1], dtype=np.int32)
        furthest = np.zeros(p.shape[1], dtype=np.int32)
        for at in range(0, len(p), CHUNK):
            signs = ((bits_of(at, at + CHUNK) >> bit) & 1).astype(np.int8) * 2 - 1
            path = np.cumsum(signs, axis=0, dtype=np.int32)
            path += height
            height = path[-1]
            np.maximum(furthest, np.abs(path).max(axis=0), out=furthest)
        out[bit] = furthest
    return out


def bit_balance(p, alpha):
    """Zeros against ones, of each bit of each position, at each time."""
    found, (bit, at) = highest(walks(p, lambda a, b: p[a:b]))
    return Result("bit balance", found, walk_bound(len(p), alpha, 8 * p.shape[1]),
                  f"position {at} bit {bit}")


def next_packet(p, alpha):
    """Each bit against the same bit of the next packet."""
    x = p[1:] ^ p[:-1]
    found, (bit, at) = highest(walks(x, lambda a, b: x[a:b]))
    return Result("correlation with the next packet", found,
                  walk_bound(len(x), alpha, 8 * p.shape[1]), f"position {at} bit {bit}")


def pairs(p, alpha):
    """Each bit against each other bit of the same packet."""
    width = 8 * p.shape[1]
    sums = np.zeros((width, width), dtype=np.float64)
    for at in range(0, len(p), CHUNK):
        signs = np.unpackbits(p[at:at + CHUNK], axis=1).astype(np.float32) * 2 - 1
        sums += signs.T @ signs
    np.fill_diagonal(sums, 0)
    found, (a, b) = highest(np.abs(sums))
    return Result("correlation within a packet", found,
                  walk_bound(len(p), alpha, width * (width - 1) / 2),
                  f"position {a // 8} bit {7 - a % 8}, position {b // 8} bit {7 - b % 8}")


def ones(p):
    return np.bitwise_count(p).sum(axis=1, dtype=np.int64)


def packet_balance(p, alpha):
    """Zeros against ones, in each packet."""
    bits = 8 * p.shape[1]
    found, (at,) = highest(np.abs(2 * ones(p) - bits))
    return Result("bit balance of a packet", found, walk_bound(bits, alpha, len(p)),
                  f"packet {at}")


def distances(p, alpha):
    """How far packets are from the ones before: too near, or too far."""
    bits = 8 * p.shape[1]
    worst = [highest(np.abs(2 * ones(p[lag:] ^ p[:-lag]) - bits)) for lag in range(1, LAGS + 1)]
    lag = max(range(LAGS), key=lambda i: worst[i][0])
    found, (at,) = worst[lag]
    return Result("distance to earlier packets", found,
                  walk_bound(bits, alpha, LAGS * len(p)), f"packet {at + lag + 1}, lag {lag + 1}")


def windows(p):
    view = np.lib.stride_tricks.sliding_window_view(p, WINDOW, axis=1)
    return np.ascontiguousarray(view).view(np.uint64)[:, :, 0]


def repeated_windows(p, alpha):
    """The same 8 bytes at any two places, and longer ones: two results."""
    values = windows(p)
    places = values.size
    length = max(WINDOW + 1, match_length(places, alpha / 2))
    count = match_count(places, WINDOW, alpha / 2)
    ordered = np.sort(values, axis=None)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    # More than that is an alarm anyway, and might be very many.
    many = len(twice) > 100_000
    packets, at = np.nonzero(np.isin(values, twice[:1000]))
    groups = {}
    for packet, offset in zip(packets.tolist()[:100_000], at.tolist()):
        groups.setdefault(int(values[packet, offset]), []).append((packet, offset))
    disjoint, longest, where, used = 0, WINDOW if groups else 0, "", set()
    for group in groups.values():
        for a, b in zip(group, group[1:]):
            k = agreement(p, a, b)
            if k > longest or not where:
                longest = max(longest, k)
                where = f"packet {a[0]} at {a[1]}, packet {b[0]} at {b[1]}"
            bytes_of = {(packet, o + i) for packet, o in (a, b) for i in range(WINDOW)}
            if used.isdisjoint(bytes_of):
                used |= bytes_of
                disjoint += 1
    if many:
        disjoint = max(disjoint, len(twice) // WINDOW)
    return [Result(f"repeated {WINDOW} bytes at any place", disjoint, count, where),
            Result("longest repeated bytes at any place", longest, length, where)]


def agreement(p, a, b):
    """How many bytes agree from these two places on."""
    x, y = p[a[0], a[1]:], p[b[0], b[1]:]
    n = min(len(x), len(y))
    differ = np.nonzero(x[:n] != y[:n])[0]
    return int(differ[0]) if len(differ) else n


def duplicates(rows):
    """How many of these byte strings were there before."""
    rows = np.ascontiguousarray(rows)
    flat = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
    return len(flat) - len(np.unique(flat))


def repeated_blocks(p, alpha):
    """Two equal aligned blocks of 16 bytes, at whatever positions."""
    width = p.shape[1] // BLOCK * BLOCK
    blocks = p[:, :width].reshape(-1, BLOCK)
    if match_length(len(blocks), alpha) > BLOCK:
        raise RandomnessError("too many packets for blocks of this length")
    return Result("repeated aligned blocks of 16 bytes", duplicates(blocks), 1)


def repeated_fields(p, alpha):
    """Two equal masked tags, nonces, or first halves of nonces (those make the mask)."""
    fields = {"masked tag": (0, TAG_END), "nonce": (TAG_END, NONCE_END),
              "nonce[..12]": (TAG_END, MASK_NONCE_END)}
    if match_length(len(p), alpha / len(fields)) > MASK_NONCE_END - TAG_END:
        raise RandomnessError("too many packets for fields of this length")
    found = {name: duplicates(p[:, a:b]) for name, (a, b) in fields.items()}
    return Result("repeated tags and nonces", sum(found.values()), 1,
                  ", ".join(name for name, n in found.items() if n))


def compression(p, alpha):
    """Packet after packet, and position after position; a result is the bytes that were saved."""
    columns = np.ascontiguousarray(p.T).tobytes()
    rows = p.tobytes()
    steps = (p[1:] - p[:-1]).tobytes()
    saved = {
        "zlib, by packet": len(rows) - len(zlib.compress(rows, 6)),
        "zlib, by position": len(columns) - len(zlib.compress(columns, 6)),
        "zlib, differences": len(steps) - len(zlib.compress(steps, 6)),
        "bz2, by position": len(columns) - len(bz2.compress(columns, 9)),
    }
    k = 1
    while len(saved) * 256.0**-k * 256 / 255 > alpha:
        k += 1
    name = max(saved, key=saved.get)
    return Result("compression", saved[name], k, name)


def run_lengths(flat, bits):
    """How often a value differs from the one before, and the longest run of equal ones."""
    changes, longest, begun, at, last = 0, 0, 0, 0, None
    for start in range(0, len(flat), CHUNK * 256):
        values = flat[start:start + CHUNK * 256]
        if bits:
            values = np.unpackbits(values)
        edges = np.nonzero(values[1:] != values[:-1])[0] + (at + 1)
        if last is not None and values[0] != last:
            edges = np.concatenate(([at], edges))
        if len(edges):
            longest = max(longest, int(edges[0]) - begun, int(np.diff(edges).max(initial=0)))
            begun = int(edges[-1])
        changes += len(edges)
        at += len(values)
        last = values[-1]
    return changes, max(longest, at - begun), at


def runs(p, alpha):
    """How often the bits change from one to the next, and the longest runs: three results."""
    third = alpha / 3
    changes, longest, bits = run_lengths(p.ravel(), True)
    _, longest_bytes, size = run_lengths(p.ravel(), False)
    return [
        Result("number of runs of bits", abs(2 * changes - (bits - 1)),
               walk_bound(bits - 1, third, 1)),
        Result("longest run of bits", longest, 1 + math.ceil(math.log2(bits / third))),
        Result("longest run of bytes", longest_bytes,
               1 + math.ceil(math.log(size / third, 256))),
    ]


TESTS = (frequencies, differences, bit_balance, next_packet, pairs, packet_balance, distances,
         repeated_windows, repeated_blocks, repeated_fields, compression, runs)


def judge(p, tests=TESTS):
    """The results of all tests, of an array of packets x bytes."""
    out = []
    for test in tests:
        found = test(p, ALARM / len(TESTS))
        out += found if isinstance(found, list) else [found]
    return out


# --- controls --------------------------------------------------------------------------


def counter_nonce(p):
    for i in range(len(p)):
        p[i, TAG_END:NONCE_END] = np.frombuffer((2**100 + i).to_bytes(24), dtype=np.uint8)


def little_counter(p):
    """Its lowest byte is uniform at its position: only the differences show it."""
    p[:, 20] = np.arange(len(p)) % 256


def unmasked_tag(p):
    """A tag for each of 50 clients, in each epoch of 500 packets."""
    for i in range(len(p)):
        p[i, :TAG_END] = p[i // 500 * 50 % len(p) + i % 50, NONCE_END:NONCE_END + TAG_END]


def tag_twice(p):
    p[len(p) // 2 + 7, :TAG_END] = p[len(p) // 2, :TAG_END]


def set_byte(p):
    p[:, 41] = 0x5A


def x25519_in_clear(p):
    p[:, NONCE_END + 31] &= 0x7F


def copied_bit(p):
    """One bit of position 100 is one of position 50: each for itself is uniform."""
    p[:, 100] = p[:, 100] & 0xFE | p[:, 50] >> 7


def sticky_bit(p):
    """A bit stays as it was in the packet before, two times of three."""
    stay = p[:, 1] % 3 != 0
    for i in range(1, len(p)):
        if stay[i]:
            p[i, 150] = p[i, 150] & 0xFB | p[i - 1, 150] & 4


def bias_that_turns(p):
    """A bit is 0 in the first half and 1 in the second: balanced at the end."""
    p[:len(p) // 2, 60] &= 0xFE
    p[len(p) // 2:, 60] |= 1


def shifted_bytes(p):
    """Two packets hold 8 bytes of others, elsewhere."""
    p[10, 50:58] = p[900, 121:129]
    p[11, 77:85] = p[901, 3:11]


def long_copy(p):
    p[10, 50:64] = p[900, 121:135]


def block_elsewhere(p):
    p[3, 48:64] = p[300, 96:112]


def near_copy(p):
    """A packet again, with each seventh byte left as it was: no 8 bytes in a row are the same."""
    keep = np.arange(p.shape[1]) % 7 == 0
    p[501, ~keep] = p[500, ~keep]


def empty_packet(p):
    p[77] &= 0x55


def long_run(p):
    p[5, 30:42] = 0


def repeated_bits(p):
    """Each bit 3 of a byte is its bit 4, in one packet of four."""
    q = p[::4]
    q[:] = q & 0xF7 | (q & 0x10) >> 1


def text(p):
    p[:, 60:80] = 0x20 + p[:, 60:80] % 64


CONTROLS = (
    (set_byte, (frequencies, bit_balance, differences, next_packet, compression)),
    (x25519_in_clear, (frequencies, bit_balance)),
    (unmasked_tag, (repeated_blocks, repeated_fields, repeated_windows, compression)),
    (tag_twice, (repeated_blocks, repeated_fields, repeated_windows)),
    (counter_nonce, (frequencies, differences, next_packet, bit_balance, repeated_windows,
                     compression)),
    (little_counter, (differences,)),
    (copied_bit, (pairs,)),
    (sticky_bit, (next_packet,)),
    (bias_that_turns, (bit_balance,)),
    (shifted_bytes, (repeated_windows,)),
    (long_copy, (repeated_windows,)),
    (block_elsewhere, (repeated_blocks,)),
    (near_copy, (distances,)),
    (empty_packet, (packet_balance,)),
    (long_run, (runs,)),
    (repeated_bits, (runs, pairs)),
    (text, (compression, frequencies)),
)


def control(p, spoil, tests):
    """The results of the tests that must notice, each with all of its results."""
    bad = p[:CONTROL_PACKETS].copy()
    spoil(bad)
    return [(test, judge(bad, (test,))) for test in tests]


# --- the program -----------------------------------------------------------------------


def read(path, length):
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as e:
        raise RandomnessError(f"{path}: {e.strerror}") from e
    if len(data) % length:
        raise RandomnessError(f"{path}: {len(data)} bytes are no packets of {length} bytes")
    if len(data) < LEAST_PACKETS * length:
        raise RandomnessError(f"{path}: {len(data) // length} packets tell too little,"
                              f" {LEAST_PACKETS} are wanted")
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, length)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="randomness.py", allow_abbrev=False,
        description="Look for anything that repeats or differs from random in captured packets.")
    parser.add_argument("file", metavar="FILE", help="packets of one length, one after another")
    parser.add_argument("length", metavar="LENGTH", type=int, help="bytes of a packet: 216 to 408")
    parser.add_argument("--controls", action="store_true",
                        help="spoil the packets in known ways: each must be noticed")
    args = parser.parse_args(argv)
    if not 216 <= args.length <= 408:
        parser.error("a packet has 216 to 408 bytes")
    try:
        p = read(args.file, args.length)
        if not args.controls:
            results = judge(p)
            for r in results:
                print(r)
            noticed = [r for r in results if r.noticed]
            print(f"{len(p)} packets of {args.length} bytes: "
                  + (f"{len(noticed)} of {len(results)} tests notice something" if noticed
                     else f"no difference from random in {len(results)} tests"))
            return 1 if noticed else 0
        missed = 0
        for spoil, tests in CONTROLS:
            for test, results in control(p, spoil, tests):
                noticed = [r for r in results if r.noticed]
                missed += not noticed
                said = noticed[0] if noticed else f"MISSED by {test.__name__}"
                print(f"{spoil.__name__}: {said}")
        return 1 if missed else 0
    except RandomnessError as e:
        print(f"randomness.py: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
