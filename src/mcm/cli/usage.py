"""Wrong usage: what the one who typed the command can mend by typing it otherwise. Exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcm.errors import UserError


class UsageError(UserError):
    """A wrong name or value on the command line."""


@contextmanager
def usage() -> Iterator[None]:
    """Inside, every UserError is about the command line itself."""
    try:
        yield
    except UserError as error:
        raise UsageError(str(error)) from error
