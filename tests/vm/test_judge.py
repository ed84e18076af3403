"""What attempts to connect say about when a port was closed, on made-up attempts."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "guest"))
import judge

KNOCKED, LIFETIME = 100.0, 15


def attempts(is_open, slept=0.0, until=130.0):
    """One every half a second; the machine sleeps at 105 s, if it does."""
    made, time, asleep = [], 98.0, 0.0
    while time < until:
        made.append((time, time + 0.01, asleep, is_open(time)))
        time += 0.5
        if time == 105.0 and slept:
            time, asleep = time + slept, slept
    return made


def outcome(is_open, slept=0.0, until=130.0):
    return judge.closing(attempts(is_open, slept, until), KNOCKED, LIFETIME)["outcome"]


class Closing(unittest.TestCase):
    def test_awake(self):
        for closes, expected in [(115.5, judge.IN_TIME), (116.5, judge.IN_TIME),
                                 (105, judge.EARLY), (114, judge.EARLY), (118.5, judge.LATE),
                                 (999, judge.STILL_OPEN)]:
            with self.subTest(closes=closes):
                self.assertEqual(outcome(lambda time: 100.2 < time < closes), expected)

    def test_a_gap_is_early_unless_a_daemon_may_have_mended_it(self):
        for gap, expected in [(1.5, judge.IN_TIME), (4, judge.EARLY)]:
            with self.subTest(gap=gap):
                self.assertEqual(
                    outcome(lambda time: 100.2 < time < 116 and not 105 < time < 105 + gap),
                    expected)

    def test_asleep_beyond_the_end(self):
        # Asleep from 105 to 165; the kernel's timer has 10 of 15 seconds left, and one more.
        for closes, expected in [(104, judge.EARLY), (106, judge.AT_RESUME),
                                 (166.5, judge.AT_RESUME), (170, judge.LATE),
                                 (175.5, judge.REST), (180, judge.LATE), (999, judge.STILL_OPEN)]:
            with self.subTest(closes=closes):
                self.assertEqual(
                    outcome(lambda time: 100.2 < time < closes, slept=60.0, until=190.0),
                    expected)

    def test_a_host_that_is_too_busy_is_no_answer(self):
        made = attempts(lambda time: 100.2 < time < 116)
        begin, end, *rest = made[20]
        made[20] = (begin, end + 4, *rest)
        self.assertEqual(judge.closing(made, KNOCKED, LIFETIME)["outcome"], "too busy to tell")

    def test_what_is_no_grant_at_all(self):
        self.assertEqual(outcome(lambda _: False), "the knock did not open")
        self.assertEqual(outcome(lambda _: True), "was not closed before the knock")


if __name__ == "__main__":
    unittest.main()
