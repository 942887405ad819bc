"""The one error tree for people: what was wrong, where, and how to mend it, in one line.

Everything that a user can get wrong raises a `UserError`; the command line prints it without a traceback and
exits with 2, the service answers it as problem+json. Bugs stay ordinary exceptions with their tracebacks.
"""


class UserError(ValueError):
    """Wrong input. The message is one line: where, what, and the remedy."""
