"""Lesson 5: numbers as text, and word counts beside BERT.

One way to solve it.
"""

import math

import numpy as np

# Exercise 5.1


def levels(window, steps, low, high):
    """A window (T, channels) -> a text of `steps` whole numbers from 0 to 99 a channel, one channel after the other.

    First each channel becomes the means of `steps` stretches of equal length (T is a multiple of steps). Then low
    becomes 0, high 100, what lies between is rounded down, and what lies outside is 0 or 99.
    """
    T, channels = window.shape
    means = window.reshape(steps, T // steps, channels).mean(axis=1)  # (steps, channels)
    whole = np.clip(np.floor((means - low) / (high - low) * 100), 0, 99).astype(int)
    return " ".join(str(number) for number in whole.T.ravel())


# Exercise 5.2


def grid(window, steps, low, high, bins):
    """A window (T, channels) -> a text of `steps` whole numbers, each the cell that all channels together are in.

    As `levels`, but with `bins` parts a channel, not 100. A cell's number is p0 + p1 bins + p2 bins^2 + ..., where pj
    is the part that channel j is in.
    """
    T, channels = window.shape
    means = window.reshape(steps, T // steps, channels).mean(axis=1)
    part = np.clip(np.floor((means - low) / (high - low) * bins), 0, bins - 1).astype(int)  # (steps, channels)
    return " ".join(str(cell) for cell in part @ bins ** np.arange(channels))


# Exercise 5.3


def word_pieces(word, vocabulary):
    """A word -> the list of its pieces: the longest beginning that is in the vocabulary, then the same with the rest.

    Pieces behind the first are written "##piece", also in the vocabulary (a set). No piece fits: ["[UNK]"].
    """
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


# Exercise 5.4


def word_counts(texts, words):
    """n texts, V words -> an array (n, V) of whole numbers: how often each word occurs in each text.

    Words are what stands between spaces. What is not among `words` is left out.
    """
    place = {word: i for i, word in enumerate(words)}
    counts = np.zeros((len(texts), len(words)), dtype=int)
    for row, text in enumerate(texts):
        for word in text.split():
            if word in place:
                counts[row, place[word]] += 1
    return counts


# Exercise 5.5


def on_both_sides(groups, splits):
    """n groups, n splits ("train", "val", "test") -> the set of the groups that are in more than one split."""
    found = {}
    for group, split in zip(groups, splits):
        found.setdefault(group, set()).add(split)
    return {group for group, seen in found.items() if len(seen) > 1}


# Exercise 5.6


def own_encoding(window):
    """A window (128, 3), acceleration in g by axis, 50 values a second -> a text of your own, at most 60 words.

    The test trains logistic regression on its word counts, from 60 labelled windows. Counts know no order: each word
    must say by itself what it means.
    """
    words = []
    for axis, values in zip("xyz", window.T):
        mean = int(np.clip((values.mean() + 1) * 5, 0, 9))  # where it points: tenths of -1 to 1 g
        moves = int(min(6, math.log2(np.abs(np.diff(values)).mean() / 0.005 + 1)))  # how much it shakes: doublings
        words += [f"{axis}{mean}", f"{axis}moves{moves}"]
    return " ".join(words)
