"""Says, from attempts to connect, when a port was closed, and whether that was to be expected.

Pure: it only compares numbers. Times are seconds of CLOCK_BOOTTIME.
"""

IN_TIME = "in time"
EARLY = "early"
LATE = "late"
AT_RESUME = "at resume"
REST = "after the rest of the timer"
STILL_OPEN = "still open"

# By what the back-end's timer counts. Jiffies stand still in suspend and don't care for the
# clock; the wall clock is the opposite. A living daemon makes up for either.
EXPECTED = {
    "jiffies": {
        "nothing": {"alive": IN_TIME, "frozen": IN_TIME, "dead": IN_TIME},
        "clock +1 h": {"alive": IN_TIME, "frozen": IN_TIME, "dead": IN_TIME},
        "clock -1 h": {"alive": IN_TIME, "frozen": IN_TIME, "dead": IN_TIME},
        "suspend": {"alive": AT_RESUME, "frozen": REST, "dead": REST},
    },
    "wall clock": {
        "nothing": {"alive": IN_TIME, "frozen": IN_TIME, "dead": IN_TIME},
        "clock +1 h": {"alive": IN_TIME, "frozen": EARLY, "dead": EARLY},
        "clock -1 h": {"alive": IN_TIME, "frozen": STILL_OPEN, "dead": STILL_OPEN},
        "suspend": {"alive": AT_RESUME, "frozen": AT_RESUME, "dead": AT_RESUME},
    },
}
TIMERS = {"ipset": "jiffies", "nftables": "jiffies", "iptables": "wall clock"}

# The kernel counts whole seconds from when it takes the grant: one more than was asked for.
ROUNDING = 1.0
# How long a busy guest may take to do what is due; besides, as long as it was seen to take.
SLACK = 0.7
# The living daemon looks every second, and starts programs to close.
DAEMON = 2.0
# An attempt that took longer than this can't tell when the port was closed.
TOO_BUSY = 3.0


def expected(backend, event, daemon):
    return EXPECTED[TIMERS[backend]][event][daemon]


def closing(attempts, knocked, lifetime):
    """What the attempts show of a grant that was asked for at `knocked`.

    Gives the outcome and the numbers behind it: for how many seconds new connections were
    accepted, and for how many of these after the resume.
    """
    accepted = [attempt for attempt in attempts if attempt[3] and attempt[0] >= knocked]
    before = [attempt for attempt in attempts if attempt[1] < knocked]
    if not before or any(attempt[3] for attempt in before):
        return {"outcome": "was not closed before the knock"}
    if not accepted:
        return {"outcome": "the knock did not open"}
    opened, last = accepted[0][1], accepted[-1][0]
    after = [attempt for attempt in attempts if attempt[0] > last]
    slowest = max(end - begin for begin, end, *_ in attempts)
    slack = SLACK + slowest
    ends_first, ends_last = knocked + lifetime, opened + lifetime + ROUNDING
    result = {
        "slowest_attempt": round(slowest, 2),
        "open_for": round(last - opened, 2),
        "closed_in_between": round(max((later[0] - earlier[0] for earlier, later
                                        in zip(accepted, accepted[1:])
                                        if later[2] - earlier[2] < 0.5), default=0), 2),
    }
    asleep = attempts[-1][2] - accepted[0][2]
    awake = [attempt for attempt in attempts if attempt[2] - accepted[0][2] > 0.5]
    if awake:
        result["suspended_for"] = round(asleep, 2)
        result["open_after_resume"] = max(0, round(last - awake[0][0], 2))
        result["accepted_after_resume"] = sum(attempt[3] for attempt in awake)

    if slowest > TOO_BUSY:
        outcome = "too busy to tell"
    elif not after:
        outcome = STILL_OPEN
    elif awake and ends_last < awake[0][0]:
        rest_first, rest_last = ends_first + asleep, ends_last + asleep
        if after[0][0] < ends_first:
            outcome = EARLY
        elif last <= awake[0][0] + DAEMON + slack:
            outcome = AT_RESUME
        elif rest_first <= after[0][1] and last <= rest_last + slack:
            outcome = REST
        else:
            outcome = LATE
    elif after[0][1] < ends_first or result["closed_in_between"] > DAEMON + slack:
        outcome = EARLY
    elif last <= ends_last + slack:
        outcome = IN_TIME
    else:
        outcome = LATE
    return {"outcome": outcome, **result}
