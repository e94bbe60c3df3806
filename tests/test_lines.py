"""minibert/lines.py: 80 columns, and nothing that cannot be seen."""

import pytest

from minibert.lines import cell, columns, fold, tell, visible


def test_a_line_is_folded_at_80_columns_and_keeps_its_words():
    text = "  data: " + "word " * 40
    lines = fold(text).splitlines()
    assert max(map(len, lines)) <= 80
    assert [len(line) - len(line.lstrip()) for line in lines] == [2, 4, 4]
    assert " ".join(fold(text).split()) == " ".join(text.split())
    assert fold("x" * 80) == "x" * 80


def test_a_path_stands_alone_and_whole():
    path = "/some-where/" + "a-b" * 40
    assert fold(f"folder of the run: {path}").splitlines() == ["folder of the run:", f"  {path}"]


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202eright to left", "\ud800", "\x7f"])
def test_what_has_no_picture_is_escaped(text, capsys):
    assert visible(text).isprintable()
    assert visible(text) != text
    tell(text)
    assert capsys.readouterr().out == visible(text) + "\n"


def test_cells():
    assert cell("walking", 10) == "walking   "
    assert cell("walking upstairs", 10) == "walking u~"
    assert [columns(cell(name, 9)) for name in ("步行" * 5, "e\u0301" * 20, "é")] == [9] * 3
