"""minibert/predict.py: the whole command on real runs; what goes in, what comes out, what is refused."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT

from minibert import Classifier, Data, TrainConfig, train
from minibert.__main__ import main
from minibert.errors import InputError
from minibert.predict import predict_file

NAMES = ["\x1b[31mred\x07", "blue, därk"]
WINDOWS = np.random.default_rng(0).normal(size=(60, 20, 2)) + 3 * (np.arange(60) % 3)[:, None, None]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Of texts, of pairs of texts, of windows."""
    folder = tmp_path_factory.mktemp("runs")
    texts, labels = [f"{n % 50 + 50 * (n % 2)}" for n in range(60)], [NAMES[n % 2] for n in range(60)]
    config = {"model": str(tiny), "epochs": 1, "lr": 1e-2, "batch_size": 8, "steps": 5}
    return {
        name: train(TrainConfig(**config, out=str(folder / name)), data).path
        for name, data in (
            ("texts", (texts, labels)),
            ("pairs", Data(texts, labels, pairs=texts[::-1])),
            ("windows", Data(WINDOWS, np.arange(60) % 3, channels=["heart", "breath"])),
        )
    }


def command(*words, **more):
    done = forked.run("-m", "minibert", "predict", *words, **more)
    return done.returncode, done.stdout, done.stderr


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_texts_from_standard_input(runs):
    code, out, error = command(runs["texts"], input=b"1 2\n70 80\n")
    assert (code, error) == (0, "")
    rows, p = rows_of(out), Classifier.load(runs["texts"]).predict_proba(["1 2", "70 80"])
    assert list(rows[0]) == ["row", "label", "confidence", *(f"p({name})" for name in sorted(NAMES))]
    assert [row["row"] for row in rows] == ["0", "1"]
    for row, expected in zip(rows, p):
        given = [float(row[f"p({name})"]) for name in sorted(NAMES)]
        assert given == pytest.approx(expected.tolist(), abs=1e-6)
        assert float(row["confidence"]) == max(given)
        assert row["label"] == sorted(NAMES)[int(np.argmax(expected))]


FILES = {
    "a.txt": "1 2\n70 80",
    "a.csv": "n,text\n1,1 2\n2,70 80\n",
    "a.tsv": "text\tn\n1 2\t1\n70 80\t2\n",
    "a.jsonl": '{"text": "1 2"}\n{"text": "70 80", "label": "any"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file(runs, tmp_path, name, capsys):
    (tmp_path / name).write_text(FILES[name])
    out = tmp_path / "out.jsonl"
    predict_file(runs["texts"], str(tmp_path / name), out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    p = Classifier.load(runs["texts"]).predict_proba(["1 2", "70 80"])
    assert [list(row["p"].values()) for row in rows] == [pytest.approx(row.tolist(), abs=1e-6) for row in p]
    predict_file(runs["texts"], str(tmp_path / name), tmp_path / "out.csv")
    assert [row["label"] for row in rows_of((tmp_path / "out.csv").read_text())] == [row["label"] for row in rows]
    predict_file(runs["texts"], str(tmp_path / name), None, as_json=True)
    said = capsys.readouterr().out
    assert said.isascii()
    assert [json.loads(line) for line in said.splitlines()] == rows


def test_columns_are_called_as_in_training_or_as_said(tiny, tmp_path):
    (tmp_path / "a.csv").write_text("stars;review\n" + "".join(f"{n % 2};{n % 50 + 50 * (n % 2)}\n" for n in range(60)))
    config = TrainConfig(
        data=str(tmp_path / "a.csv"), text_column="review", label_column="stars", model=str(tiny), epochs=1,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    path, out = train(config).path, tmp_path / "out.csv"
    expected = Classifier.load(path).predict_proba(["7"]).max()
    (tmp_path / "b.csv").write_text("review,text\n7,8\n")
    (tmp_path / "c.csv").write_text("words|text\n7|8\n")
    (tmp_path / "d.csv").write_text("text\n7\n")
    for name, columns in (("b.csv", {}), ("c.csv", {"text_column": "words", "delimiter": "|"})):
        predict_file(path, str(tmp_path / name), out, columns=columns)
        assert float(rows_of(out.read_text())[0]["confidence"]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="no column 'review'; found text; --text-column NAME: what it is called"):
        predict_file(path, str(tmp_path / "d.csv"), out)
    assert main(["predict", str(path), str(tmp_path / "d.csv"), "--text-column", "text", "--out", str(out)]) == 0


def test_pairs_and_another_charset(runs, tmp_path):
    (tmp_path / "a.csv").write_bytes("text,text_b\n1 é,70\n".encode("cp1252"))
    predict_file(runs["pairs"], str(tmp_path / "a.csv"), tmp_path / "o.csv", "cp1252")
    p = Classifier.load(runs["pairs"]).predict_proba(["1 é"], ["70"])
    assert float(rows_of((tmp_path / "o.csv").read_text())[0]["confidence"]) == pytest.approx(p.max(), abs=1e-6)


def test_windows(runs, tmp_path):
    np.savez(tmp_path / "new.npz", x=2 * WINDOWS[:4])
    predict_file(runs["windows"], str(tmp_path / "new.npz"), tmp_path / "o.csv")
    rows = rows_of((tmp_path / "o.csv").read_text())
    p = Classifier.load(runs["windows"]).predict_proba(2 * WINDOWS[:4])
    assert [[float(row[f"p({c})"]) for c in "012"] for row in rows] == [pytest.approx(r.tolist(), abs=1e-6) for r in p]


def test_names_reach_a_terminal_escaped_and_a_pipe_as_they_are(runs, tmp_path):
    (tmp_path / "a.txt").write_text("1\n")
    words = [sys.executable, "-m", "minibert", "predict", str(runs["texts"]), str(tmp_path / "a.txt")]
    outer, inner = pty.openpty()
    subprocess.run(words, cwd=ROOT, stdout=inner, check=True)
    os.close(inner)
    shown = os.read(outer, 9999).decode()
    assert r"p(\x1b[31mred\x07)" in shown
    assert "\x1b" not in shown
    assert "p(\x1b[31mred\x07)" in subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout


def test_what_is_refused_is_one_line_and_code_2(runs, tmp_path):
    assert command(runs["texts"], input=b"") == (2, "", "minibert: error: standard input: no texts in it\n")


BAD = {
    "no file": ("texts", "no.csv", None, "no such file; give one of .txt, .csv"),
    "a folder": ("texts", ".", None, "no such file"),
    "unknown kind": ("texts", "a.xml", b"", "unknown kind"),
    "empty": ("texts", "a.txt", b"", "no texts in it"),
    "header only": ("texts", "a.csv", b"text\n", "no texts in it"),
    "blank line": ("texts", "a.txt", b"1\n\n2\n", "line 2: empty 'text'"),
    "no column": ("texts", "a.csv", b"words\na\n", "no column 'text'; found words"),
    "no second text": ("pairs", "a.csv", b"text\na\n", "no column 'text_b'"),
    "lines for pairs": ("pairs", "a.txt", b"a\n", "no 'text_b'"),
    "charset": ("texts", "a.txt", b"caf\xe9\n", "is not utf-8"),
    "windows for texts": ("texts", "a.npz", {"x": WINDOWS}, "was trained on texts"),
    "texts for windows": ("windows", "a.txt", b"a\n", "was trained on windows: give an .npz"),
    "no x": ("windows", "a.npz", {"X": WINDOWS}, "no array 'x'; found X"),
    "no windows": ("windows", "a.npz", {"x": WINDOWS[:0]}, "must be numbers"),
    "channels": ("windows", "a.npz", {"x": WINDOWS[:, :, :1]}, "windows of 1 channels; .* 2, heart, breath"),
    "swapped": ("windows", "a.npz", {"x": WINDOWS, "channels": ["breath", "heart"]}, "channels breath, heart; the"),
    "steps": ("windows", "a.npz", {"x": WINDOWS[:, :3]}, "windows of 3 steps; the run needs at least 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(runs, tmp_path, case):
    run, name, content, said = BAD[case]
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        predict_file(runs[run], str(tmp_path / name), None)


def test_runs_that_cannot_predict(runs, tmp_path):
    (tmp_path / "a.txt").write_text("1\n")
    moved = shutil.copytree(runs["texts"], tmp_path / "moved")
    content = json.loads((moved / "config.json").read_text())

    def refused(said, out=None):
        with pytest.raises(InputError, match=said):
            predict_file(moved, str(tmp_path / "a.txt"), out)

    refused("--out a.xml: unknown kind", Path("a.xml"))
    (moved / "config.json").write_text(json.dumps(content | {"head": "MyHead"}))
    refused("head of your own, MyHead")
    content["dataset"].pop("encoding")
    (moved / "config.json").write_text(json.dumps(content))
    refused("older version")
    (moved / "model" / "model.safetensors").unlink()
    refused("the best epoch, is gone, and nothing else holds it")
    (moved / "outcome.json").write_text("{}")
    refused("its weights were dropped")
    shutil.rmtree(moved)
    refused("no such folder")
