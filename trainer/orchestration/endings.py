"""How the processes of a run end: an exit status that a supervisor can use, and a line for a person.

0: done, or told to stop. 2: what a person gave cannot be used, so that another start would end alike. 69: service or
queue were away for too long, or failed: worth another start. 70: something unforeseen, as well.
"""

import logging
import sys
from collections.abc import Callable

from adapters.errors import UserError
from clients.client import ServiceError
from trainer.queue.client import QueueAwayError

MISTAKE, UNAVAILABLE, UNFORESEEN = 2, 69, 70
"""A wrong word on a command line; EX_UNAVAILABLE and EX_SOFTWARE of sysexits.h."""


def status_of(program: str, work: Callable[[], int]) -> int:
    """Does the work; the exit status, whatever ended it."""
    try:
        return work()
    except (QueueAwayError, ServiceError, UserError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        # A service that is away is the caller's to mend, too, but nobody may be there; and 5xx is the service's own.
        passes = isinstance(error, QueueAwayError) or not isinstance(error, UserError)
        is_away = isinstance(error, ServiceError) and error.type == "no-answer"
        return UNAVAILABLE if passes or is_away else MISTAKE
    except KeyboardInterrupt:
        return 130
    except Exception:
        logging.getLogger(__name__).exception("%s ended", program)
        return UNFORESEEN
