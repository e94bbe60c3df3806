"""minibert/evaluation.py: figures against hand-made ones."""

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.engine.machine import choose_machine
from minibert.engine.network import Padded
from minibert.evaluation import Outputs, format_report, predict, report
from minibert.lines import columns
from minibert.model import BertClassifier
from minibert.verdict import mean_cosine


def test_report_against_figures_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    guesses = [0, 0, 1, 1, 0, 1]
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), 4).float()
    result = report(Outputs(logits, logits, False), labels, ["a", "b", "c", "d"])
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["majority"] == pytest.approx(3 / 6)
    assert result["majority_class"] == "a"
    assert result["confusion"] == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    a, b, c = (result["classes"][name] for name in "abc")
    assert a == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert b == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    assert c["f1"] == 0
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)  # d neither occurs nor is predicted
    right, wrong = -np.log(np.e / (np.e + 3)), -np.log(1 / (np.e + 3))
    assert result["loss"] == pytest.approx((3 * right + 3 * wrong) / 6, rel=1e-6)


def test_predictions_come_in_the_order_of_the_examples():
    torch.manual_seed(0)
    model = perturbed(BertClassifier(TINY)).train()
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in generator.integers(2, 30, 150)]
    examples = Examples(ids, None, np.zeros(150, np.int64), np.arange(150))
    logits, directions, shut = predict(Padded(model, choose_machine("fp32", torch.device("cpu"))), examples)
    assert not shut
    assert model.training
    model.eval()
    for i in (0, 1, 77, 149):
        alone = torch.from_numpy(ids[i]).long()[None]
        torch.testing.assert_close(logits[i], model(alone)[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        vectors = torch.cat([model.bert(torch.from_numpy(text).long()[None])[1] for text in ids])
    assert mean_cosine(directions) == pytest.approx(mean_cosine(vectors), rel=1e-5)


def test_printed_report_has_every_class():
    result = report(Outputs(torch.eye(3), torch.eye(3), False), np.array([0, 1, 1]), ["walking", "b", "c"])
    text = format_report("test", result)
    assert "accuracy 0.667" in text
    assert "majority baseline 0.667 (always 'b')" in text
    assert [line.split()[1] for line in text.splitlines()[4:7]] == ["walking", "b", "c"]
    assert " ".join(text.split()).endswith(
        "not yet: the best constant answer has loss 0.637; predicted classes have entropy 1.099, the largest 0.333 of"
        " all; cosine between inputs 0.000000, logits spread 0.47"
    )


def shown(names, count):
    """The lines for a split of `count` rows a class, each taken for the next class once."""
    labels = np.repeat(np.arange(len(names)), count)
    guesses = labels.copy()
    guesses[::count] = (guesses[::count] + 1) % len(names)
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), len(names)).float()
    lines = format_report(f"{'validation':<10}", report(Outputs(logits, logits, False), labels, names)).splitlines()
    assert max(map(columns, lines)) <= 80
    return lines


def test_the_matrix_stands_beside_the_table_where_there_is_room():
    lines = shown(["walking upstairs", "walking downstairs", *"abcd"], 1200)
    assert lines[2].split() == ["predicted", "as"]
    assert lines[5].split() == ["2", "walking", "downstairs", "0.999", "0.999", "1200", "0", "1199", "1", "0", "0", "0"]


def test_the_matrix_stands_below_the_table_where_there_are_more_classes():
    lines = shown([f"class {i}" for i in range(14)], 150)
    place = lines.index("        predicted as".replace("        ", "       "))
    assert lines[place + 1].split() == [str(i) for i in range(1, 15)]
    assert lines[place + 2].split() == ["1", "149", "1", *["0"] * 12]


def test_the_most_frequent_mistakes_stand_for_a_matrix_that_fits_nowhere():
    lines = shown([f"class {i} {'x' * (i % 2 * 40)}" for i in range(77)], 3)
    place = next(i for i, line in enumerate(lines) if "mistakes" in line)
    assert all(line.split()[0] == "1" and " -> " in line for line in lines[place + 1 : place + 11])
    assert "class 76" in lines[place + 1]
    assert f"  14: class 13 {'x' * 40}" in lines  # a name that was cut, whole


def test_names_from_data_cannot_move_the_cursor_and_wide_letters_are_counted():
    lines = shown(["\x1b[31mred\n", "\u6b65\u884c" * 18, "e\u0301" * 20], 2)
    assert not any("\x1b" in line for line in lines)
    assert r"\x1b[31mred\n" in lines[4]
    assert len({columns(line) for line in lines[3:7]}) == 1


def test_of_very_many_classes_the_worst_are_listed():
    """1,500 classes took 22 MB of lines and 956 MB of memory."""
    lines = shown([f"class {i}" for i in range(1500)], 2)
    assert "  the 20 of 1,500 classes with the lowest F1 (--json has all):" in lines
    assert len(lines) < 50
    labels = np.arange(101).repeat(2)[:-1]  # class 100 occurs once
    logits = torch.nn.functional.one_hot(torch.tensor([*labels[:-2], 7, 7]), 102).float()  # 99 and 100 as 7
    text = format_report("test", report(Outputs(logits, logits, False), labels, [f"c{i}" for i in range(102)]))
    rows = [line.split()[1] for line in text.splitlines() if line.split()[0].isdecimal() and "->" not in line]
    assert rows[:3] == ["c100", "c7", "c99"]  # F1 0, 2/3 twice; c101, which does not occur, is not among them
    assert len(rows) == 20


def test_numbers_of_very_many_classes_take_little_memory():
    """All probabilities of all examples as Python's numbers took a hundred times as much."""
    import tracemalloc

    from minibert.training.outcome import predictions

    examples = Examples([], None, np.zeros(300, np.int64), np.arange(300))
    names = [f"c{i}" for i in range(1500)]
    tracemalloc.start()
    rows = predictions("val", examples, Outputs(torch.zeros(300, 1500), torch.zeros(300, 1), False), names)
    assert sum(len(row) for row in rows) == 300 * 1505
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
