"""How a run can end early; suggestions for misspelled words."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix.

    Its text is one line: what is wrong, where, what was expected, what to do. Exit status 2.
    """


class NotFinite(UserError):
    """Raised when a network is measured whose logits are not finite."""


class TrainingDiverged(Exception):
    """No learning rate that the scheduler may use gives an acceptable epoch. Exit status 1."""


class Stopped(Exception):
    """A task ended because of Ctrl-C or SIGTERM: everything is saved.

    Args:
      number: the signal's. Exit status 128 + number.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def reason(error: BaseException) -> str:
    """Return why something failed, in words on one line; never empty."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(words)


def nearest(word: object, words: Iterable[object]) -> str:
    """Return '; did you mean X?' with the most similar word; '' without words."""
    by_lower = {str(w).lower().strip("-"): w for w in words}
    close = difflib.get_close_matches(str(word).lower().strip("-"), by_lower, n=1, cutoff=0.0)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
