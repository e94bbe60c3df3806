"""minibert/lines.py: 80 columns, and nothing that cannot be seen."""

import sys

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


def test_colours_are_for_terminals_that_want_them(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    row = "    2  0.600  0.700  learning  ▁█"
    tell(row)
    assert capsys.readouterr().out == row + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tell(row)
    tell("  collapsed since step 1,926")
    tell("learning: in a text\x1b[2J")
    assert capsys.readouterr().out == (
        "    2  0.600  0.700  \x1b[32mlearning\x1b[0m  \x1b[36m▁█\x1b[0m\n"
        "  \x1b[31mcollapsed since step 1,926\x1b[0m\n"
        "learning: in a text\\x1b[2J\n"
    )
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            tell(row)
            assert capsys.readouterr().out == row + "\n"


def test_cells():
    assert cell("walking", 10) == "walking   "
    assert cell("walking upstairs", 10) == "walking u~"
    assert [columns(cell(name, 9)) for name in ("步行" * 5, "e\u0301" * 20, "é")] == [9] * 3
