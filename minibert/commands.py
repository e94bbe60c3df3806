"""What all commands share: how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


def guarded(command: Callable[[list[str]], int | None], evaluates: bool = False) -> int:
    """Run `command` on the arguments. What the user can mend is one line and exit code 2; Ctrl-C is 130; where nobody
    reads the output any more, as behind `| head`, it is 141, as a shell counts it.

    Of several processes the first one on each machine says what all of them end for. `evaluates`: see steady.
    """
    from minibert.allocator import steady
    from minibert.errors import InputError, OwnError, is_out_of_memory
    from minibert.launch import launch
    from minibert.lines import visible

    steady(evaluates)
    # Line by line, so that a log file shows each epoch when it ends; and no letter that a terminal lacks ends a run.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    speaks = launch().local_rank == 0
    name = sys.argv[0].rsplit("/", 1)[-1].replace("__main__.py", "minibert")

    def end(code: int, said: str) -> int:
        if code == 141:  # else the interpreter's last flush complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(BrokenPipeError):
            print(said, end="", file=sys.stderr, flush=True)
        return code

    def interrupted(number: int, frame: FrameType | None) -> None:
        """Inside an import, which can make any error of a KeyboardInterrupt, the process ends at once."""
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(end(130, f"\n{name}: stopped\n"))
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    try:
        code = command(sys.argv[1:]) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return end(141, "")
    except (InputError, OSError) as error:
        return end(2, visible(f"{name}: error: {error}") + "\n" if speaks or isinstance(error, OwnError) else "")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return end(2, visible(f"{name}: error: out of memory: {error}") + "\n")
    except KeyboardInterrupt as stop:
        said = f"\n{name}: stopped{f'; {stop}' if str(stop) else ''}\n"
        return end(getattr(stop, "code", 130), said if speaks else "")
