"""What users are told is of a length to be read."""

from minibert.errors import LONGEST, InputError


def test_of_a_long_line_the_middle_is_left_out():
    text = f"file: {'x' * 10**6}; write it anew"
    said = str(InputError(text))
    assert len(said) == LONGEST
    assert said.startswith("file: xxx")
    assert said.endswith("xxx; write it anew")
    assert " ... " in said
    assert str(InputError("x" * LONGEST)) == "x" * LONGEST
