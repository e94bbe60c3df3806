"""What all commands share: how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def guarded(command: Callable[[list[str]], int | None]) -> int:
    """Run `command` on the arguments. What the user can mend is one line and exit code 2; Ctrl-C is 130; where nobody
    reads the output any more, as behind `| head`, it ends without a word (141, as a shell counts it).

    Of several processes the first one on each machine says what all of them end for.
    """
    from minibert.errors import InputError, LostProcessError
    from minibert.launch import launch
    from minibert.lines import visible

    # Line by line, so that a log file shows each epoch when it ends; and no letter that a terminal lacks ends a run.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    speaks = launch().local_rank == 0
    name = sys.argv[0].rsplit("/", 1)[-1].replace("__main__.py", "minibert")
    try:
        code = command(sys.argv[1:]) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's last flush complains
        return 141
    except (InputError, OSError) as error:
        if speaks or isinstance(error, LostProcessError):
            print(visible(f"{name}: error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if speaks:
            print(f"\n{name}: stopped{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return getattr(stop, "code", 130)
