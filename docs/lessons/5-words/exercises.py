"""Lesson 5: numbers as text, and word counts beside BERT.

Write what is missing; the tests say what is wrong.
"""

import math

import numpy as np

# Exercise 5.1


def levels(window, steps, low, high):
    """A window (T, channels) -> a text of `steps` whole numbers from 0 to 99 a channel, one channel after the other.

    First each channel becomes the means of `steps` stretches of equal length (T is a multiple of steps). Then low
    becomes 0, high 100, what lies between is rounded down, and what lies outside is 0 or 99.
    """
    raise NotImplementedError("exercise 5.1")


# Exercise 5.2


def grid(window, steps, low, high, bins):
    """A window (T, channels) -> a text of `steps` whole numbers, each the cell that all channels together are in.

    As `levels`, but with `bins` parts a channel, not 100. A cell's number is p0 + p1 bins + p2 bins^2 + ..., where pj
    is the part that channel j is in.
    """
    raise NotImplementedError("exercise 5.2")


# Exercise 5.3


def word_pieces(word, vocabulary):
    """A word -> the list of its pieces: the longest beginning that is in the vocabulary, then the same with the rest.

    Pieces behind the first are written "##piece", also in the vocabulary (a set). No piece fits: ["[UNK]"].
    """
    raise NotImplementedError("exercise 5.3")


# Exercise 5.4


def word_counts(texts, words):
    """n texts, V words -> an array (n, V) of whole numbers: how often each word occurs in each text.

    Words are what stands between spaces. What is not among `words` is left out.
    """
    raise NotImplementedError("exercise 5.4")


# Exercise 5.5


def on_both_sides(groups, splits):
    """n groups, n splits ("train", "val", "test") -> the set of the groups that are in more than one split."""
    raise NotImplementedError("exercise 5.5")


# Exercise 5.6


def own_encoding(window):
    """A window (128, 3), acceleration in g by axis, 50 values a second -> a text of your own, at most 60 words.

    The test trains logistic regression on its word counts, from 60 labelled windows. Counts know no order: each word
    must say by itself what it means.
    """
    raise NotImplementedError("exercise 5.6")
