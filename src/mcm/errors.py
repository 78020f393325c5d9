"""The one exception that means "the user can mend this": its message is one clear line, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a bad setting.

    The message names what is wrong and where, says what was expected and what to do. The command line prints it
    as it is and leaves with exit code 1; the Python calls raise it.
    """


class SaidElsewhereError(UserError):
    """Another process of the same run tells what is wrong: this one leaves with exit code `code` and says nothing."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to `word`, or an empty string when none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def one_of(what: str, word: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones: names it, lists them, suggests the nearest."""
    names = sorted(known)
    return UserError(f"unknown {what} {word!r}: expected one of {', '.join(names)}{nearest(word, names)}")
