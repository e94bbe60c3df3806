"""minibert/lab/ablation/results.py: what a grid left, and that nothing broken in it stops the reading."""

import json

import numpy as np
import pytest
from grids import two_starts, write_grid

from minibert.errors import InputError
from minibert.lab.ablation.results import read_grid


def test_a_finished_run(tmp_path):
    grid = read_grid(write_grid(tmp_path, two_starts(seeds=2)))
    assert (grid.baseline, grid.data, len(grid.runs)) == ("random", {"motion": "d" * 64}, 4)
    run = grid.runs[0]
    assert (run.name, run.start, run.seed, run.state, run.verdict) == (
        "run000", "pretrained", "0", "finished", "learning",
    )  # fmt: skip
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    test = run.answers["test"]
    assert test.rows.tolist() == list(range(2000, 2040))
    assert test.groups[:5] == ("person 0", "person 1", "person 2", "person 3", "person 0")
    assert run.accuracy("test") == test.correct.mean() == run.outcome["test"]["accuracy"] == 0.85


def test_examples_stand_in_the_order_of_their_rows(tmp_path):
    write_grid(tmp_path, two_starts(seeds=1, groups=0))
    was = read_grid(tmp_path).runs[0].answers["test"]
    file = tmp_path / "runs" / "run000" / "predictions.csv"
    head, *lines = file.read_text().splitlines()
    file.write_text("\n".join([head, *reversed(lines)]) + "\n")
    now = read_grid(tmp_path).runs[0].answers["test"]
    assert np.array_equal(was.rows, now.rows)
    assert np.array_equal(was.correct, now.correct)
    assert now.groups is None


def change(path, **fields):
    """Of a JSON file, some of its fields; None: removed."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cut_line(run):
    text = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(text[: len(text) - 20])


def cut_rows(run):
    lines = (run / "predictions.csv").read_text().splitlines(keepends=True)
    (run / "predictions.csv").write_text("".join(lines[:-3]))


def without_test(run):
    lines = (run / "predictions.csv").read_text().splitlines(keepends=True)
    (run / "predictions.csv").write_text("".join(line for line in lines if not line.startswith("test")))


def other_answers(run):
    text = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(text.replace(",sitting,sitting,", ",sitting,walking,"))


def other_settings(run):
    content = json.loads((run / "config.json").read_text())
    change(run / "config.json", settings=content["settings"] | {"lr": 1.0})


def not_finite(run):
    text = (run / "metrics.jsonl").read_text()
    first = json.loads(text.splitlines()[0])
    (run / "metrics.jsonl").write_text(text.replace(f'"val_accuracy": {first["val_accuracy"]}', '"val_accuracy": NaN'))


BROKEN = {
    "outcome.json is not JSON": lambda run: (run / "outcome.json").write_text('{"val": {'),
    "a file has no 'test'": lambda run: change(run / "outcome.json", test=None),
    "cut off": cut_line,
    "do not agree on test": cut_rows,
    "no line of test": without_test,
    "do not agree on val": other_answers,
    "no config.json": lambda run: (run / "config.json").unlink(),
    "another lr than the grid: 1.0": other_settings,
    "a file has no 'ended'": lambda run: change(run / "config.json", ended=None),
    "'val_accuracy' is nan": not_finite,
    "no such file": lambda run: (run / "metrics.jsonl").unlink(),
    "not 1, 2, 3": lambda run: (run / "metrics.jsonl").write_text(""),
    "expecting value": lambda run: (run / "metrics.jsonl").write_text("half a li\n"),
    "a file has no 'row'": lambda run: (run / "predictions.csv").write_text("split,label\nval,a\n"),
    "codec can't decode": lambda run: (run / "predictions.csv").write_bytes(b"split,row\n\xff\n"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_run_is_a_line_and_the_others_stand(tmp_path, reason):
    write_grid(tmp_path, two_starts(seeds=1))
    BROKEN[reason](tmp_path / "runs" / "run000")
    broken, whole = read_grid(tmp_path).runs
    assert broken.state == "broken"
    assert reason.lower() in broken.reason.lower()
    assert "\n" not in broken.reason
    assert broken.answers == {}
    assert whole.state == "finished"


def test_failed_missing_and_unfinished(tmp_path):
    runs = [({"seed": "0"}, "not finite\nat step 3"), ({"seed": "1"}, None), ({"seed": "2"}, {}), ({"seed": "3"}, {}),
            ({"seed": "4"}, "later it went well"), ({"seed": "5"}, "x")]  # fmt: skip
    write_grid(tmp_path, runs)
    (tmp_path / "runs" / "run002" / "outcome.json").unlink()
    (tmp_path / "runs" / "run003" / "predictions.csv").unlink()
    for file in (tmp_path / "runs" / "run003").iterdir():
        if file.name != "predictions.csv":
            (tmp_path / "runs" / "run004" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "runs" / "run005" / "failed.json").write_text("{}")
    runs = read_grid(tmp_path).runs
    assert [run.state for run in runs] == ["failed", "missing", "unfinished", "unfinished", "unfinished", "broken"]
    assert runs[0].reason == "not finite at step 3"
    assert runs[2].reason == "there is no outcome.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no grid.json"),
        ("[]", "no 'runs'"),
        ("{", "is not JSON"),
        ('{"format": 1, "runs": []}', "no 'runs'"),
        ('{"format": 2, "runs": {}}', "has format 2, this minibert reads 1"),
        ('{"format": 1, "runs": {}}', "asks for no run"),
        ('{"format": 1, "runs": {"a": {"init": "random"}}}', "run a has no settings"),
    ],
)
def test_what_is_no_grid_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "grid.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_grid(tmp_path)
    assert "\n" not in str(error.value)
