"""minibert/comparison.py and eval.py with several runs: one table, differences to the first."""

import json
import shutil

import pytest

import eval as evaluation
from minibert.comparison import Scored, format_comparison, score
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.lines import columns
from minibert.training.run import train

EXAMPLES = ("hash", [("val", 0, "a"), ("test", 1, "b")])


def scored(path="runs/a", accuracy=0.5, examples=EXAMPLES, **settings):
    verdict = {"name": "collapsed"}
    report = {"n": 806, "accuracy": accuracy, "macro_f1": accuracy / 2, "loss": 2 - accuracy, "majority": 0.18,
              "verdict": verdict}  # fmt: skip
    return Scored(path, TrainConfig(**settings), {"val": report | {"accuracy": 0.9}, "test": report}, examples)


def test_differences_are_to_the_first_and_all_fits():
    runs = [
        scored(accuracy=0.694, lr=3.5e-5),
        scored("runs/b", 0.435, init="random"),
        scored("runs/c", 0.7, init="random:truncated", lr=1e-10),
        *[scored(f"runs/{number}") for number in range(8)],
    ]
    text = format_comparison(runs)
    lines = text.splitlines()
    assert max(map(columns, lines)) <= 80
    test = lines[lines.index("test, n 806, majority baseline 0.180") + 1 :]
    assert test[0].split() == ["accuracy", "macro-F1", "loss", "start", "lr", "verdict"]
    assert test[1].split() == ["1", "0.694", "0.347", "1.306", "pretrained", "3.5e-05", "collapsed"]
    assert test[2].split() == [
        "2", "0.435", "-0.259", "0.217", "-0.129", "1.565", "+0.259", "random", "1e-05", "collapsed",
    ]  # fmt: skip
    assert "random:truncat~  1e-10" in test[3]
    assert test[3].index("collapsed") == test[0].index("verdict")
    assert " 2 runs/b" in lines
    assert lines[2].split()[1] == "0.900"  # validation has a table of its own


@pytest.mark.parametrize("other", [("other", EXAMPLES[1]), ("hash", EXAMPLES[1][:1])])
def test_other_examples_have_no_differences(other):
    text = format_comparison([scored(), scored("runs/b", 0.6, other), scored("runs/c", 0.7)])
    assert "2: scored on other examples than 1, so there are no differences" in text
    rows = [line.split() for line in text.split("test\n")[1].splitlines()]
    assert rows[2][:4] == ["2", "0.600", "0.300", "1.400"]
    assert rows[3][:3] == ["3", "0.700", "+0.200"]


def test_the_command(tiny, tmp_path, capsys):
    lines = [f"{i % 50 + 50 * (i % 2)},{i % 2}" for i in range(60)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    path = train(
        TrainConfig(data=str(tmp_path / "a.csv"), model=str(tiny), epochs=1, batch_size=16, out=str(tmp_path / "one")),
        str,
    )
    two = shutil.copytree(path, tmp_path / "two")
    evaluation.main([str(path), str(two)])
    shown = capsys.readouterr().out
    assert shown.count(" +0.000") == 6
    evaluation.main([str(path), str(two), "--json"])
    entries = json.loads(capsys.readouterr().out)
    assert [entry["run"] for entry in entries] == [str(path), str(two)]
    assert entries[0]["test"] == entries[1]["test"] == score(path).reports["test"]
    for flag in (["--predictions", "p.csv"], ["--baseline", "words"]):
        with pytest.raises(InputError, match=f"{flag[0]} is about one run; got 2"):
            evaluation.main([str(path), str(two), *flag])
