"""What the package says to its user: the one error that can be caused and mended, and lines as it goes on."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]  # gets one line, as print does


class InputError(ValueError):
    """What was got, what is allowed, what to do: one line. The commands print it and exit with 2."""
