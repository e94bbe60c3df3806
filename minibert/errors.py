"""What a user can cause and mend, and how users are told things."""

from collections.abc import Callable

Say = Callable[[str], None]  # takes one line for the user


def silent(line: str) -> None:
    """A `Say` that says nothing."""


LONGEST = 1000  # letters of an InputError


class InputError(ValueError):
    """What was got, what is allowed, what to do: one line. The commands print it and exit with 2. Of a long one, as
    where a file has a name of megabytes, the middle is left out.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 + 5 :]}"
        super().__init__(text)


class OwnError(InputError):
    """What one process of several meets alone, so that it has to say it itself."""


class LostProcessError(OwnError):
    """Another process of this run has gone, and the rest of them cannot go on without it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, torch's on a GPU, or torch's or oneDNN's on a CPU, RuntimeErrors like any other."""
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    texts = ("DefaultCPUAllocator", "could not create a primitive", "could not create a memory object")
    return own or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or another signal, in a run that can go on; its text says how. `code` is what the process ends with."""

    def __init__(self, text: str, code: int = 130) -> None:
        super().__init__(text)
        self.code = code
