"""What all commands share: how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable


def guarded(command: Callable[[list[str]], int | None], again: str = "") -> int:
    """Run `command` on the arguments. What the user can mend is one line and exit code 2; Ctrl-C is 130."""
    from minibert.errors import InputError

    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each epoch when it ends, not when the run does
    name = sys.argv[0].rsplit("/", 1)[-1].replace("__main__.py", "minibert")
    try:
        return command(sys.argv[1:]) or 0
    except (InputError, OSError) as error:
        print(f"\n{name}: error: {error}".lstrip("\n"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped{again}", file=sys.stderr)
        return 130
