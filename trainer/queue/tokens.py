"""Fencing tokens: which ones a queue server can have given.

A token is the server's clock in microseconds, and always more than the branch's token before it. The scripts in `lua/`
compute with doubles, which are exact up to 2^53: in microseconds that is the year 2255. A token that somebody made up
must never become the newest, because no lease could get a newer one, and nobody could publish any more.
"""

MAX_TOKEN = 2**53 - 1
"""The largest whole number that is exact in a double, with the one before it."""
MOST_AHEAD_US = 24 * 3600 * 1_000_000
"""The newest token is ahead of the clock after the clock was set back: by a day at most, or somebody made it up."""


def may_publish(token: int, *, newest: int, now: int) -> bool:
    """Whether no newer token is known, and the server can have given this one."""
    # Between the newest and now: it was given in the last second before a crash, which the server has lost.
    return newest <= token <= max(now, min(newest, now + MOST_AHEAD_US))
