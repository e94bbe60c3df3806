"""minibert/explain.py: words, inputs, the terminal and the page of explain, on real runs of a tiny model."""

import html.parser
import io
import re
import sys

import numpy as np
import pytest

from minibert import Classifier, Data, TrainConfig, train
from minibert.__main__ import main
from minibert.attribution import attention_weights
from minibert.errors import InputError
from minibert.explain import Explanation, Word, bar_of, explain, html_of, in_terminal, shaded
from minibert.lab import pictures
from minibert.lines import columns

NAMES = ["\x1b[31mred", "<b>blue & dark"]
WINDOWS = np.random.default_rng(0).normal(size=(60, 20, 2)) + 3 * (np.arange(60) % 3)[:, None, None]
SHAPES = {"levels": (2, 5), "decimals": (2, 5), "grid": (1, 5)}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(60)))
    texts, labels = [f"{n % 50 + 50 * (n % 2)}" for n in range(60)], [NAMES[n % 2] for n in range(60)]
    windows = Data(WINDOWS, np.arange(60) % 3, channels=["heart", "breath"])
    config = {"model": str(tiny), "epochs": 1, "lr": 1e-2, "batch_size": 16, "steps": 5}
    made = {
        "texts": train(TrainConfig(**config, out=str(folder / "texts")), (texts, labels)),
        "pairs": train(TrainConfig(**config, out=str(folder / "pairs")), Data(texts, labels, pairs=texts[::-1])),
        "file": train(TrainConfig(**config, data=str(folder / "texts.csv"), out=str(folder / "file"))),
    }
    for kind in SHAPES:
        made[kind] = train(TrainConfig(**config, encoding=kind, out=str(folder / kind)), windows)
    return {name: run.path for name, run in made.items()}


def test_pieces_are_joined_to_words_as_they_were_written(runs):
    text = "Abc  12, D-9"  # tiny's vocabulary has letters: abc is a ##b ##c
    (found,) = explain(runs["texts"], [text], steps=4)
    assert [word.word for word in found.words] == ["Abc", "12", ",", "D", "-", "9"]
    assert [text[word.start : word.end] for word in found.words] == [word.word for word in found.words]
    assert sum(word.value for word in found.words) == pytest.approx(found.difference + found.gap, abs=1e-5)


def test_the_score_is_that_of_the_class_asked_about(runs):
    classifier = Classifier(runs["texts"], precision="fp32")  # as explain is, whatever the run was trained in
    p = classifier.predict_proba(["7 80"])[0]
    found = {name: explain(classifier, ["7 80"], label=name, steps=30)[0] for name in classifier.labels}
    for place, name in enumerate(classifier.labels):
        assert found[name].probability == pytest.approx(p[place], abs=1e-4)
        assert found[name].predicted == classifier.labels[p.argmax()]
    first, second = found.values()
    # Of two classes, what speaks for one speaks against the other.
    assert [word.value for word in first.words] == pytest.approx([-word.value for word in second.words], abs=1e-5)
    assert explain(classifier, ["7 80"], steps=30)[0] == found[classifier.labels[p.argmax()]]


def test_second_texts_and_what_was_cut(runs):
    (found,) = explain(runs["pairs"], ["1 2"], ["3"], steps=2)
    assert [(word.word, word.text) for word in found.words] == [("1", 0), ("2", 0), ("3", 1)]
    assert "second text" in "\n".join(in_terminal(found))
    assert not found.cut
    (found,) = explain(runs["texts"], ["1 " * 100], steps=1)
    assert found.cut
    assert len(found.words) == 62
    assert any("the end was cut" in line for line in in_terminal(found))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_window_has_a_number_for_each_channel_and_step(runs, kind):
    (found,) = explain(runs[kind], WINDOWS[:1], steps=2)
    numbers = found.texts[0].split(" ")
    rows, steps = SHAPES[kind]
    grid = found.grid()
    shown = numbers[: len(found.words)] + [None] * (len(numbers) - len(found.words))  # decimals are cut
    assert [word and word.word for row in grid for word in row] == shown
    assert [len(row) for row in grid] == [steps] * rows
    assert found.channels == (["heart,breath"] if kind == "grid" else ["heart", "breath"])
    assert len(re.findall("<rect", html_of(found))) == len(found.words)
    lines = in_terminal(found)
    assert sum("heart" in line for line in lines) == 2  # its numbers, its sum
    assert all(columns(line) <= 80 for line in lines)
    words, scaled = (
        found.words,
        [int(n) for line in lines if line.startswith("  ") for n in re.findall(r" (-?\d+)(?= |$)", line)],
    )
    most = max(abs(word.value) for word in words)
    assert sorted(scaled) == sorted([*range(1, steps + 1), *(round(99 * word.value / most) for word in words)])


def explanation(*values, word="word", **more):
    words = [
        Word(word, value, 0, i * (len(word) + 1), i * (len(word) + 1) + len(word)) for i, value in enumerate(values)
    ]
    return Explanation([" ".join([word] * len(values))], words, "b", 0.25, "a", 50, sum(values), 0.0, **more)


def test_bars_go_to_both_sides_by_half_columns():
    assert bar_of(1.0, 1.0, False) == " " * 22 + "│" + "█" * 22
    assert bar_of(-1.0, 1.0, False) == "█" * 22 + "│"
    assert bar_of(3 / 44, 1.0, False) == " " * 22 + "│█▌"
    assert bar_of(-3 / 44, 1.0, False) == " " * 20 + "▐█│"
    assert bar_of(0.0, 0.0, False).strip() == "│"
    assert bar_of(-0.5, 1.0, True).strip() == "#" * 11 + "|"


def test_lines_fit_and_hold_nothing_that_moves_a_cursor():
    long = explanation(0.5, -0.2, word="wörter\x1b[2J" * 5, true="c" * 100)
    lines = "\n".join(in_terminal(long)).split("\n")
    assert all(columns(line) <= 80 or " " not in line.strip() for line in lines)
    assert not any("\x1b" in line for line in lines)
    painted = in_terminal(explanation(0.5, -0.2), colours=True)
    assert ["\x1b[34m" in painted[2], "\x1b[33m" in painted[3]] == [True, True]
    assert not re.search("[^\n -~]", "\n".join(in_terminal(explanation(0.5, -0.2), plain=True)))


def test_a_gap_is_told_with_what_helps():
    whole = explanation(1.0, 1.0)
    assert in_terminal(whole)[-1] == "sum +2.000, difference from the baseline +2.000: gap +0.000"
    wide = explanation(1.0, 1.0).__class__(**{**whole.__dict__, "gap": 0.3})
    assert wide.balance().endswith("gap +0.300; --steps 200 may close it")


class Reader(html.parser.HTMLParser):
    """The tags and the letters of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.letters = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.letters += data


def test_a_page_is_one_file_with_every_letter_of_the_text_and_nothing_that_it_says_to_do(runs, tmp_path, capsys):
    text, out = '<script>alert("1")</script> a&b\x1b[2J', tmp_path / "page.html"
    assert main(["explain", str(runs["texts"]), text, "--steps", "2", "--label", NAMES[1], "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Reader(out.read_text(encoding="utf-8"))
    assert text.replace("\x1b", r"\x1b") in page.letters
    assert NAMES[1] in page.letters
    assert {"script", "b", "img", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    links = [(tag, a.get("href", a.get("src"))) for tag, a in page.tags if "href" in a or "src" in a]
    assert links == [("link", "data:,")]
    assert "url(" not in out.read_text()
    assert "default-src 'none'" in out.read_text()


def test_words_and_what_stands_between_and_behind_them_are_escaped():
    text = "<b> <i> <u> <s>"
    shown = shaded(text, [Word("<b>", 1.0, 0, 0, 3), Word("<u>", -0.5, 0, 8, 11)], 1.0)
    assert not re.search("<[bius]>", shown)
    assert [shown.count(f"&lt;{letter}&gt;") for letter in "bius"] == [1, 1, 1, 1]


def test_in_a_notebook_it_is_a_part_of_a_page(runs):
    shown = explain(runs["texts"], ["1 a"], steps=1)[0]._repr_html_()
    assert shown.startswith("<div>")
    assert shown.count("rgba(") == 2 + 2  # the key, and a word each


def test_the_command_takes_texts_files_standard_input_and_validation_rows(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "new.csv").write_text("text\n1 2\n70\n")

    def lines(*words):
        assert main(["explain", *map(str, words), "--steps", "2"]) == 0
        return capsys.readouterr().out.splitlines()

    run = runs["file"]
    one = lines(run, "1 2")
    assert len(one) == 5
    assert lines(run, tmp_path / "new.csv")[:6] == [*one, ""]
    val = [int(line.split(",")[1]) for line in predictions(run) if line.startswith("val,")]
    assert f"the data say '{'ab'[val[0] % 2]}'" in lines(run, "--row", val[0])[0]
    pair = lines(runs["pairs"], "1", "--text-b", "2")
    assert [line.split()[0] for line in pair[2:5]] == ["1", "second", "2"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2\n")))
    assert lines(run, "-", "--method", "gradient")[1].startswith("gradient x input: what each moved")


def predictions(run):
    from minibert.training.outcome import evaluate_run, write_predictions

    write_predictions(run / "predictions.csv", evaluate_run(run)[1])
    return (run / "predictions.csv").read_text().splitlines()


BAD = {
    "nothing": (["texts"], "give a text, a file, or -"),
    "text and row": (["texts", "1", "--row", "3"], "give a text, a file, or -"),
    "no file": (["texts", "no.csv"], "no.csv: no such file"),
    "no class": (["texts", "1", "--label", "green"], "no class 'green'; the run has"),
    "no steps": (["texts", "1", "--steps", "0"], "--steps 0: it must be at least 1"),
    "no second text": (["pairs", "1"], "give --text-b TEXT, or a file"),
    "a second text too many": (["texts", "1", "--text-b", "2"], "without second texts"),
    "a text for windows": (["levels", "1"], "was trained on windows: give an .npz"),
    "data in memory": (["texts", "--row", "3"], "given in memory"),
    "not of validation": (["file", "--row", "60"], "--row 60: not a validation row; 6 are: "),
    "suffix": (["texts", "1", "--out", "page.pdf"], "--out page.pdf: the name must end in .html$"),
    "folder": (["texts", "1", "--out", "no/page.html"], "there is no folder .*no"),
    "attention to a terminal": (["texts", "1", "--attention", "1"], "give --out FILE.svg or FILE.html"),
    "no layer": (["texts", "1", "--attention", "3", "--out", "a.svg"], "layers 1 to 2, heads 1 to 4"),
    "no head": (["texts", "1", "--attention", "2.5", "--out", "a.svg"], "layers 1 to 2, heads 1 to 4"),
    "head 0": (["texts", "1", "--attention", "2.0", "--out", "a.svg"], "layers 1 to 2, heads 1 to 4"),
    "no number": (["texts", "1", "--attention", "x", "--out", "a.svg"], "--attention x: give LAYER or LAYER.HEAD"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(runs, tmp_path, monkeypatch, case):
    (name, *words), said = BAD[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        main(["explain", str(runs[name]), *words])
    assert list(tmp_path.iterdir()) == []


def test_attention_of_one_text_alone(runs, tmp_path):
    (tmp_path / "two.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match="draws one text; got 2"):
        main(["explain", str(runs["texts"]), str(tmp_path / "two.txt"), "--attention", "1", "--out",
              str(tmp_path / "a.svg")])  # fmt: skip


@pytest.mark.parametrize("which", ["2", "2.3"])
def test_attention_as_a_picture_of_the_same_bytes_each_time(runs, tmp_path, which):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "c.html"):
        main(["explain", str(runs["pairs"]), "$1 a$ <x>", "--text-b", "4", "--attention", which, "--out",
              str(tmp_path / name)])  # fmt: skip
    svg, page = (tmp_path / "a.svg").read_text(), (tmp_path / "c.html").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert svg.count("<image") == {"2": 4, "2.3": 1}[which]
    for word in ("[CLS]", "[SEP]", "[UNK]", "4"):
        assert f">{word}</text>" in svg
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "<image" in page


def test_the_heads_are_those_asked_for(runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn, out = {}, str(tmp_path / "a.svg")
    monkeypatch.setattr(pictures, "attention", lambda title, heads, tokens: drawn.update(heads) or "<svg/>")
    main(["explain", str(runs["texts"]), "1 a", "--attention", "2", "--out", out])
    classifier = Classifier(runs["texts"], precision="fp32")
    weights = attention_weights(classifier.network.model.bert, classifier.tokenizer("1 a").input_ids)[1][0].numpy()
    assert list(drawn) == [f"head {number}" for number in range(1, 5)]
    np.testing.assert_allclose(list(drawn.values()), weights, atol=1e-5)
    drawn.clear()
    main(["explain", str(runs["texts"]), "1 a", "--attention", "2.3", "--out", out])
    np.testing.assert_allclose(drawn["head 3"], weights[2], atol=1e-5)
    assert len(drawn) == 1
