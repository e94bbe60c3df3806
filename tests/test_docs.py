"""README and docs/: links lead somewhere, commands exist, snippets run, figures are those of the results."""

import csv
import re
import shlex
import shutil
from itertools import dropwhile

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def test_the_readme_fits_150_lines():
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=list(TEXTS))
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def commands():
    """(page, words of a command of ours) from the shell blocks."""
    for name, text in TEXTS.items():
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in shlex.split(line, comments=True) and re.split(r"&&|[|>]", line):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["torchrun"]:
                        words = ["python", *dropwhile(lambda word: not word.endswith(".py"), words)]
                    if words[:1] == ["python"] and words[1] in ("train.py", "eval.py", "-m"):
                        yield pytest.param(words, id=f"{name}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_ones_that_exist(words, monkeypatch, capsys):
    """Each command's own parser reads it; nothing is run."""
    import argparse

    import eval as evaluation
    import train
    from minibert.__main__ import main

    class ReadError(Exception):
        """Stands in the place of what a command would do."""

    real = argparse.ArgumentParser.parse_args

    def parse(parser, arguments):
        real(parser, arguments)
        raise ReadError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    if words[1] == "-m" and words[2] != "minibert":
        return  # venv, zipfile
    run, arguments = {"train.py": (train.main, words[2:]), "eval.py": (evaluation.main, words[2:])}.get(
        words[1], (main, words[3:])
    )
    try:
        with pytest.raises(ReadError):
            run(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def test_the_readmes_snippets_run(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "weights" / "minilm-l6")
    monkeypatch.setenv("MINIBERT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    assert len(blocks) == 2
    names = {"texts": ["1 2 3", "70 80 90"] * 20, "labels": ["low", "high"] * 20}
    for block in blocks:
        exec(block, names)
    assert names["run"].best["epoch"] == 1


def test_the_readmes_answer_is_that_of_the_results():
    with open(ROOT / "docs" / "results" / "starts" / "data" / "matched.csv", newline="") as file:
        rows = {row["start"]: row for row in csv.DictReader(file)}
    answer = " ".join(TEXTS["README.md"].split("## The answer")[1].split("## ")[0].split())
    row = rows["pretrained"]
    difference, low, high = (float(row[f"test.{key}"]) for key in ("difference", "interval.low", "interval.high"))
    figures = [
        f"reaches {float(row['test.mean']):.3f} test accuracy",
        f"{float(row['test.baseline']):.3f} from random weights",
        f"{difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}", f"{row['n']} paired seeds",
        f"{row['test.examples']} windows of {row['test.groups']} people", f"p = {float(row['sign_flip.p']):.3f}",
    ]  # fmt: skip
    for figure in figures:
        assert figure in answer, figure
    assert all(abs(float(rows[start]["test.difference"]) - 0.10) < 0.01 for start in ("xavier", "shuffle"))
