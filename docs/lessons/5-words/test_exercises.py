"""Tests of lesson 5: your encodings and counts beside minibert's, its tokenizer's and scikit-learn's."""

from functools import cache

import numpy as np
import pytest
from checks import need, same
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from minibert import Tokenizer
from minibert.data.windows import Encoding, read_motion
from minibert.pytest_plugin import WORDS


def by_minibert(kind, windows, steps, bins=10):
    """Texts of windows (n, T, 3) by minibert's own encoding, over the range -2 to 2."""
    ranges = np.array([(-2.0, 2.0)] * 3)
    return Encoding(kind, steps, [0, 1, 2], ["x", "y", "z"], ranges, bins, ["x", "y", "z"]).texts(windows)


def draw(n=20):
    return np.random.default_rng(0).normal(scale=1.2, size=(n, 16, 3))


def same_text(got, want, what, mistakes):
    __tracebackhide__ = True
    if got == want:
        return
    for sentence, wrong in mistakes.items():
        need(got != wrong, f"{what}: {sentence}")
    need(False, f"{what} is\n  {got}\nit must be\n  {want}")


def test_levels(mine):
    for window in draw():
        want = by_minibert("levels", window[None], 4)[0]
        numbers = np.array(want.split(), dtype=int).reshape(3, 4)
        every = by_minibert("levels", window[None, ::4], 4)[0]
        same_text(mine.levels(window, 4, -2.0, 2.0), want, "levels", {
            "steps go first here; all of a channel, then the next": " ".join(map(str, numbers.T.ravel())),
            "each fourth value was taken; a stretch is represented by its mean": every,
        })  # fmt: skip


@pytest.mark.parametrize("bins", [2, 10])
def test_grid(mine, bins):
    for window in draw():
        want = by_minibert("grid", window[None], 4, bins)[0]
        backwards = by_minibert("grid", window[None, :, ::-1], 4, bins)[0]
        same_text(mine.grid(window, 4, -2.0, 2.0, bins), want, "grid", {
            "the last channel counts fastest here; the first must": backwards,
        })  # fmt: skip


@pytest.mark.parametrize("word", ["5", "52", "a5", "moves3", "é", "x-1", "", "aé"])
def test_word_pieces(mine, word, tiny_checkpoint):
    backend = Tokenizer.load(tiny_checkpoint).backend
    want = backend.model.tokenize(word)
    got = mine.word_pieces(word, set(WORDS))
    need(
        got == [token.value for token in want], f"word_pieces({word!r}) is {got}; it must be {[t.value for t in want]}"
    )


def test_word_pieces_are_the_longest(mine):
    got = mine.word_pieces("numbers", {"n", "num", "number", "##s", "##b", "##ber", "##bers", "##er"})
    need(got == ["number", "##s"], f"word_pieces('numbers') is {got}; 'number' is the longest beginning there is")


def test_word_counts(mine):
    texts, words = ["5 5 7", "", "8 5 52", "5a 7 7 7"], ["7", "5", "52"]
    counter = CountVectorizer(token_pattern=r"\S+", vocabulary=words)
    same(mine.word_counts(texts, words), counter.transform(texts).toarray(), "word_counts", {
        "words are looked for inside of others; split at spaces first": [[t.count(w) for w in words] for t in texts],
        "a word that occurs twice counts twice": [[int(w in t.split()) for w in words] for t in texts],
    })  # fmt: skip


def test_on_both_sides(mine):
    groups = ["ann", "bob", "ann", "cy", "bob", "dee", "cy"]
    splits = ["train", "train", "train", "val", "test", "test", "train"]
    got = mine.on_both_sides(groups, splits)
    need(
        got == {"bob", "cy"},
        f"on_both_sides is {got}; bob is in train and test, cy in val and train, the others in one",
    )
    table = read_motion()
    got = mine.on_both_sides(table.groups, table.splits)
    need(got == set(), f"no person of the bundled data is in two splits; on_both_sides says {got}")


@cache
def motion():
    """Windows (n, 128, 3) and labels: four lots of 60 for training, and 376 of the validation people."""
    table, labels = read_motion(), np.array(read_motion().labels)
    train, val = (np.flatnonzero(np.array(table.splits) == name) for name in ("train", "val"))
    train, val = np.random.default_rng(0).permutation(train)[:240], np.random.default_rng(0).permutation(val)[:376]
    return [(table.windows[rows][:, :, :3], labels[rows]) for rows in (*np.split(train, 4), val)]


def by_counts(texts):
    """Mean validation accuracy of logistic regression on word counts, of four trainings; texts as in motion()."""
    *lots, (_, val_labels) = motion()
    scores = []
    for (_, labels), train in zip(lots, texts):
        model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
        scores.append(model.fit(train, labels).score(texts[-1], val_labels))
    return np.mean(scores)


def test_own_encoding(mine):
    texts = [[mine.own_encoding(window) for window in windows] for windows, _ in motion()]
    need(
        all(isinstance(t, str) and t.split() for t in texts[0]),
        f"own_encoding gives {texts[0][0]!r}; it must be a text",
    )
    longest = max(len(text.split()) for lot in texts for text in lot)
    need(longest <= 60, f"own_encoding gives up to {longest} words; at most 60")
    plain = by_counts([by_minibert("levels", windows, 8) for windows, _ in motion()])
    got = by_counts(texts)
    print(f"word counts of own_encoding: {got:.3f}, of levels: {plain:.3f}")
    need(
        got > plain,
        f"word counts of own_encoding reach {got:.3f} on people not trained on; those of levels {plain:.3f}",
    )
