"""minibert/notebook.py, pages.py: what a notebook shows of real runs; nothing in data becomes a part of a page."""

import html.parser
import re
import xml.etree.ElementTree as ElementTree

import pytest

from minibert import Data, TrainConfig, train
from minibert.notebook import Answers, Report, run_html
from minibert.pages import curve, escaped, page, shade, table

NAMES = ["<script>", 'a"&b']


class Reader(html.parser.HTMLParser):
    """A part of a page: its tags, those left open, and its letters."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.letters = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("br", "meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.letters.append(data)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    texts, labels = [f"{n % 50 + 50 * (n % 2)}" for n in range(60)], [NAMES[n % 2] for n in range(60)]
    config = TrainConfig(model=str(tiny), epochs=2, lr=1e-2, batch_size=16,
                         out=str(tmp_path_factory.mktemp("runs") / "<b>run"))  # fmt: skip
    return train(config, Data(texts, labels))


def test_a_run_shows_its_epochs_and_its_curve(run):
    shown = Reader(run._repr_html_())
    assert {"script", "b"}.isdisjoint(shown.tags)
    assert shown.tags.count("tr") == 1 + 2
    assert shown.tags.count("polyline") == 2
    assert f"{run.best['val_accuracy']:.3f}" in shown.letters
    assert shown.letters.count("best") == 1
    assert any("<b>run" in text for text in shown.letters)
    Reader(run_html("no epoch", {}, [], 0))


def test_reports_and_answers_are_what_they_were_with_a_table(run):
    report = run.report()
    assert isinstance(report, dict)
    shown = Reader(report._repr_html_())
    assert shown.tags.count("table") == 2
    assert [text for text in shown.letters if text.startswith("as ")] == [f"as {name}" for name in sorted(NAMES)] * 2
    classifier = run.classifier()
    answers = classifier.answers(["1 <i>", "70 " * 40])
    assert [answer["label"] for answer in answers] == classifier.predict(["1 <i>", "70 " * 40])
    assert answers[0]["p"] == pytest.approx(
        dict(zip(classifier.labels, classifier.predict_proba(["1 <i>"])[0])), abs=1e-5
    )
    letters = Reader(answers._repr_html_()).letters
    assert "1 <i>" in letters
    assert any(len(text) == 60 and text.endswith("…") for text in letters)
    assert {"classes", "network"} <= set(Reader(classifier._repr_html_()).letters)


def test_long_tables_are_cut_and_say_so():
    rows = [
        {"row": i, "label": "a", "confidence": 0.5, "p": dict.fromkeys(map(str, range(13)), 0.1)} for i in range(60)
    ]
    shown = Reader(Answers(rows, ["x"] * 60)._repr_html_())
    assert shown.tags.count("tr") == 51
    assert "and 10 more" in shown.letters
    assert "p(0)" not in shown.letters  # no room
    assert Answers([], [])._repr_html_() == "<p>no inputs</p>"
    result = {"accuracy": 0.5, "loss": 1.0, "macro_f1": 0.5, "n": 9, "majority": 0.5, "majority_class": "a",
              "verdict": {"name": "learning"}, "confusion": []}  # fmt: skip
    result["classes"] = {str(i): {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1} for i in range(60)}
    shown = Reader(Report(val=result)._repr_html_())
    assert shown.tags.count("tr") == 51
    assert "and 10 more classes" in shown.letters


def test_the_curve_stands_where_the_numbers_say():
    rows = [(1, 0.0, 0.25), (2, 0.5, 0.5), (3, 1.0, 0.5)]
    history = [{"epoch": e, "train_accuracy": t, "val_accuracy": v, "val_majority": 0.5} for e, t, v in rows]
    svg = ElementTree.fromstring(curve(history))
    train_points, val_points = ([tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
                                for line in svg.iter("polyline"))  # fmt: skip
    assert [x for x, _ in train_points] == [30, 170, 310]
    bottom, middle, top = (y for _, y in train_points)
    assert (bottom, top) == (118, 8)
    assert middle == (bottom + top) / 2 == val_points[1][1] == val_points[2][1]
    assert f"M30 {middle}" in next(path for path in svg.iter("path") if path.get("stroke-dasharray")).get("d")
    ElementTree.fromstring(curve(history[:1]))


def test_escapes():
    assert escaped('<a href="x">&\x1b[2J\n') == "&lt;a href=&quot;x&quot;&gt;&amp;\\x1b[2J\n"
    whole = Reader(page("<t>", "<p>body</p>"))
    assert whole.letters.count("<t>") == 2
    cells = re.findall("text-align: (left|right)", table(["n", "name"], [[1, "<b>"], [2, "x"]]))
    assert cells == ["right", "left"] * 3


def test_the_deepest_shade_is_that_of_the_largest():
    assert (shade(2.0, 2.0), shade(-1.0, 2.0)) == ("rgba(0, 114, 178, 0.65)", "rgba(213, 94, 0, 0.33)")
    assert shade(0.0, 0.0).endswith("0.00)")
