"""minibert/lab/plot.py: curves stand where their numbers are, in any terminal and as a picture."""

import json
import subprocess
import sys
from dataclasses import asdict

import forked
import pytest
from conftest import ROOT

from minibert.__main__ import main
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.lab.plot import COLUMNS, MOST, ROWS, Panel, bounds, in_terminal, must_be_plain, picture, read


@pytest.fixture
def folder_of(tmp_path):
    """Makes the folder of a run with these accuracies."""

    def make(name, val, majority=0.2):
        path = tmp_path / name
        path.mkdir(parents=True)
        parts = {"dataset": {"sha256": "0"}, "checkpoint": {"sha256": "0"}, "precision": "fp32"}
        (path / "config.json").write_text(json.dumps({"settings": asdict(TrainConfig()), **parts}))
        rows = [
            {"epoch": epoch, "train_accuracy": v / 2, "val_accuracy": v, "train_loss": 2 - v, "val_loss": 3 - v,
             "val_majority": majority, "verdict": {"name": "learning", "class_entropy": 1.7}}
            for epoch, v in enumerate(val, 1)
        ]  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def run(*words, **more):
    return forked.run("-m", "minibert", "plot", *words, **more)


def test_bounds_are_round_and_hold_all():
    assert bounds([0.198, 0.763]) == pytest.approx((0.1, 0.8))
    assert bounds([0.91, 0.93]) == pytest.approx((0.91, 0.93))
    assert bounds([0.2, 1.785]) == pytest.approx((0, 2))
    low, high = bounds([0.5])
    assert low <= 0.5 <= high
    assert low < high


def test_a_line_stands_where_its_numbers_are():
    """Plain, one dot a character: from the lower left corner to the upper right, then straight on."""
    panel = Panel((1, COLUMNS), (0, 1), plain=True)
    panel.curve([(1, 0), (ROWS, 1), (COLUMNS, 1)], "A", 0)
    lines = panel.lines()
    assert [line[column] for column, line in zip(range(ROWS), reversed(lines))] == ["A"] * ROWS
    assert lines[0] == " " * (ROWS - 1) + "A" * (COLUMNS - ROWS + 1)
    assert "".join(lines).count("A") == COLUMNS


def test_dots_of_braille_are_where_unicode_has_them():
    shown = ""
    for place in ((x, y) for x in (0, 1) for y in (3, 2, 1, 0)):
        panel = Panel((0, 2 * COLUMNS - 1), (0, 4 * ROWS - 1), plain=False)
        panel.put(*panel.dot(place), "A")
        shown += panel.lines()[-1][0]
    assert shown == "⠁⠂⠄⡀⠈⠐⠠⢀"


def test_two_lines_on_one_another_and_a_level_beneath():
    panel = Panel((1, 2), (0, 1), plain=True)
    panel.level(0)
    panel.curve([(1, 0), (2, 0)], "A", 0)
    assert panel.lines()[-1] == "A" * COLUMNS
    panel.curve([(1, 0), (2, 0)], "B", 0)
    assert panel.lines()[-1] == "*" * COLUMNS


@pytest.mark.parametrize("plain", [False, True])
def test_the_screen(folder_of, plain):
    long = "ä" * 60
    runs = read([folder_of("one", [0.3, 0.5, 0.9]), folder_of(long, [0.2, 0.4])])
    lines = in_terminal(runs, ["accuracy", "loss"], plain)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert text.isascii() == plain
    assert "majority baseline: 0.200" in text
    assert "the best constant answer: 1.700" in text
    assert "A  one: validation accuracy 0.900, epoch 3 of 3" in text
    assert lines[-1].endswith("0.400, epoch 2 of 2")
    accuracy = lines[1 : 1 + ROWS]
    assert [line.split()[0] for line in (accuracy[0], accuracy[ROWS // 2], accuracy[-1])] == ["0.9", "0.5", "0.1"]
    assert accuracy[0].endswith("A")  # validation ends at 0.9, the top
    for letter in "AB":  # in either panel
        assert all(any(letter in line[start : start + COLUMNS] for line in accuracy) for start in (7, 8 + COLUMNS))
    assert len(in_terminal(runs, ["accuracy"])) < len(lines)


def test_one_epoch_and_equal_numbers(folder_of):
    (only,) = runs = read([folder_of("one", [0.2])])
    assert sum("A" in line for line in in_terminal(runs, ["accuracy", "loss"])[: ROWS + 1]) == 2  # one in each panel
    only.history[0]["train_loss"] = float("inf")
    in_terminal(runs, ["loss"])


def test_runs_on_other_data_have_baselines_of_their_own(folder_of):
    runs = read([folder_of("a", [0.3, 0.5]), folder_of("b", [0.3, 0.5], majority=0.4)])
    text = "\n".join(in_terminal(runs, ["accuracy"], plain=True))
    assert "majority baseline: 0.200, 0.400" in text
    assert sum("- - - - - -" in line for line in text.splitlines()) == 2


def test_names_that_are_alike_are_told_apart(folder_of):
    paths = [folder_of("x/same", [0.3]), folder_of("y/same", [0.3])]
    assert [run.name for run in read(paths)] == [str(path) for path in paths]


def test_a_row_that_is_being_written_is_left_out(folder_of):
    path = folder_of("one", [0.3, 0.5])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_')
    assert [row["epoch"] for row in read([path])[0].history] == [1, 2]
    (path / "metrics.jsonl").write_text("what\n")
    with pytest.raises(InputError, match="metrics.jsonl is not whole"):
        read([path])


def test_too_many_runs(folder_of):
    path = folder_of("one", [0.3])
    assert len(read([path] * MOST)) == MOST
    with pytest.raises(InputError, match=f"at most {MOST}"):
        read([path] * (MOST + 1))


@pytest.mark.parametrize(("encoding", "plain"), [("utf-8", False), ("ascii", True), ("cp437", True), (None, True)])
def test_encodings(encoding, plain):
    class Stream:
        pass

    stream = Stream()
    stream.encoding = encoding
    assert must_be_plain(stream) == plain


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_has_the_same_bytes_each_time(folder_of, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    runs = read([folder_of("$^$", [0.3, 0.5, 0.9]), folder_of("two", [0.4])])
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        picture(runs, ["accuracy", "loss"], file)
    one, two = (file.read_bytes() for file in files)
    assert one == two
    assert one[:5] == {".svg": b"<?xml", ".png": b"\x89PNG\r"}[suffix]
    assert suffix == ".png" or b"<dc:date>" not in one


def test_the_command(folder_of, capsys):
    path = str(folder_of("one", [0.3, 0.5]))

    def shown(*flags):
        assert main(["plot", path, *flags]) == 0
        return capsys.readouterr().out

    assert any(0x2800 < ord(character) < 0x2900 for character in shown())
    assert "training loss" not in shown()
    assert "training loss" in shown("--loss")
    assert run(path, env={"PYTHONIOENCODING": "ascii"}).stdout == shown("--ascii")


def test_a_picture_needs_no_pyplot(folder_of, tmp_path):
    pytest.importorskip("matplotlib")
    program = "import sys; from minibert.__main__ import main; main(sys.argv[1:]); assert 'matplotlib.pyplot' not in"
    words = ["plot", folder_of("one", [0.3, 0.5]), "--out", tmp_path / "p.svg"]
    done = subprocess.run(
        [sys.executable, "-c", f"{program} sys.modules", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'p.svg'}\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/none"], "no such folder"),
        (["{}"], "no config.json"),
        (["{}/one"], "no epoch yet"),
        (["{}/one", "--out", "p.gif"], "--out p.gif: the name must end in .svg or .png"),
        (["{}/one", "--out", "{}/none/p.svg"], "there is no folder"),
    ],
)
def test_what_cannot_be_drawn(folder_of, tmp_path, words, said):
    folder_of("one", [])
    with pytest.raises(InputError, match=said):
        main(["plot", *(word.format(tmp_path) for word in words)])


def test_without_matplotlib_there_is_one_line(folder_of, tmp_path):
    path = folder_of("one", [0.3])
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    done = run(path, "--out", tmp_path / "p.svg", env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert "pip install -e '.[report]'" in done.stderr
    assert not (tmp_path / "p.svg").exists()
