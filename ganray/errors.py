"""The error class for problems that the user can fix."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error in the user's input, files or environment.

    The message is one line that names the value, the rule it breaks and a way out. The command
    line prints it without a traceback and exits with code 2. Raise it only for what a user can
    fix; every other exception is a bug and keeps its traceback.
    """


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a message: a question with the most similar name; '' if none is similar."""
    similar = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"; did you mean {similar[0]}?" if similar else ""
