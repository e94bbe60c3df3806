"""The one error that a user can cause and mend."""


class InputError(ValueError):
    """What was got, what is allowed, what to do: one line. The commands print it and exit with 2."""
