"""minibert/lab/pictures.py: what is drawn of a probe's figures, the same bytes each time, and where it is written."""

import re

import pytest

from minibert.__main__ import main
from minibert.errors import InputError
from minibert.lab import pictures

pytest.importorskip("matplotlib")


def result(curve=((1e-3, 0.9), (2e-3, 0.5), (4e-3, 0.2)), tolerance=2.7e-3, layers=3):
    names = ["embeddings", *(f"layer {i + 1}" for i in range(layers)), "pooler"]
    parts = [{"name": name, "tokens": 0.1 * i, "cls": 0.2 * i, "means": 0.3} for i, name in enumerate(names[:-1])]
    parts.append({"name": "pooler", "tokens": None, "cls": None, "means": None})
    return {"init": "random", "parts": parts, "drift": {"tolerance": tolerance, "curve": list(curve)}}


def letters(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def marks(svg, color):
    return len(re.findall(rf"<use [^>]*{color}", svg))


def test_a_mark_for_each_part_and_for_each_point_of_the_drift():
    svg = pictures.probe(result())
    assert svg == pictures.probe(result())
    assert {"emb.", "1", "2", "3", "random: mean cosine between", "tolerance 2.7e-03"} <= set(letters(svg))
    assert "pooler" not in letters(svg)
    assert marks(svg, "#0072b2") == 4 + 1 + 3  # parts, the legend, points of the drift
    assert marks(svg, "#d55e00") == marks(svg, "#009e73") == 4 + 1


def test_where_there_is_no_spread_to_lose_or_none_is_lost():
    assert "blind at the start: no spread to lose" in letters(pictures.probe(result(curve=(), tolerance=0.0)))
    assert not any("tolerance" in text for text in letters(pictures.probe(result(tolerance=None))))


def test_the_command_writes_it_beside_its_screen(tiny, tmp_path, capsys):
    out = tmp_path / "probe.svg"
    settings = ["--model", str(tiny), "--init", "random", "--inputs", "4", "--steps", "5"]
    assert main(["probe", *settings, "--out", str(out)]) == 0
    assert "activation  mean cosine between" in capsys.readouterr().out
    assert out.read_text().startswith("<svg")
    with pytest.raises(InputError, match=r"the name must end in .svg"):
        main(["probe", *settings, "--out", str(tmp_path / "probe.png")])
