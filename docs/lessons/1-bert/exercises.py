"""Lesson 1: a whole BERT, as functions of a dictionary of tensors. Write what is missing; the tests say what is wrong.

B texts    S tokens    D hidden size    N heads    H = D / N    F feed-forward size    V words    C classes
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

# Our name of a matrix or vector -> the published one; {i} is the layer, counted from 0.
NAMES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "embeddings_norm": "embeddings.LayerNorm",
    "{i}.query": "encoder.layer.{i}.attention.self.query",
    "{i}.key": "encoder.layer.{i}.attention.self.key",
    "{i}.value": "encoder.layer.{i}.attention.self.value",
    "{i}.attention_output": "encoder.layer.{i}.attention.output.dense",
    "{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "{i}.up": "encoder.layer.{i}.intermediate.dense",
    "{i}.down": "encoder.layer.{i}.output.dense",
    "{i}.feed_forward_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler": "pooler.dense",
}


def linear(w, name, x):
    """The map `name` of w: (..., in) -> (..., out). Weights are kept as (out, in). Nothing to do here."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


# Exercise 1.1


def layer_norm(x, weight, bias, eps):
    """(..., D), weight (D,), bias (D,) -> (..., D): each token by itself, to mean 0 and variance 1, then * and +."""
    raise NotImplementedError("exercise 1.1")


# Exercise 1.2


def embed(w, input_ids, token_type_ids, eps):
    """input_ids and token_type_ids (B, S) -> (B, S, D): the sum of three rows for each token, then LayerNorm.

    w has "word.weight" (V, D), "position.weight" (512, D), "token_type.weight" (2, D), and the norm "embeddings_norm".
    """
    raise NotImplementedError("exercise 1.2")


# Exercise 1.3


def split_heads(x, heads):
    """(B, S, D) -> (B, N, S, H): head n gets the channels n H to (n + 1) H."""
    raise NotImplementedError("exercise 1.3")


def merge_heads(x):
    """(B, N, S, H) -> (B, S, D), the way back."""
    raise NotImplementedError("exercise 1.3")


# Exercise 1.4


def attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(H)) v, in every head.

    q, k, v: (B, N, S, H); mask: (B, S) bool, True where a token is real, None: all are -> (B, N, S, H).
    """
    raise NotImplementedError("exercise 1.4")


# Exercise 1.5


def gelu(x):
    """x times the probability that a standard normal number is below x: the exact one, by torch.erf."""
    raise NotImplementedError("exercise 1.5")


# Exercise 1.6


def layer(w, i, x, heads, mask, eps):
    """Layer i: x (B, S, D), mask (B, S) bool or None -> (B, S, D). Attention, then feed-forward.

    After each: add what went in, then LayerNorm. w has the maps "{i}.query", "{i}.key", "{i}.value",
    "{i}.attention_output", "{i}.up" (D to F), "{i}.down" (F to D), and the norms "{i}.attention_norm" and
    "{i}.feed_forward_norm".
    """
    raise NotImplementedError("exercise 1.6")


# Exercise 1.7


def bert(w, config, input_ids, token_type_ids, mask=None):
    """(B, S), (B, S), (B, S) bool or None -> the last layer's (B, S, D), and pooled (B, D).

    pooled: tanh of the map "pooler" of the first token's vector. config is config.json as a dictionary.
    """
    raise NotImplementedError("exercise 1.7")


# Exercise 1.8


def our_name(published):
    """ "bert.encoder.layer.3.output.LayerNorm.gamma" -> "3.feed_forward_norm.weight"; None: not a tensor of ours.

    Published files may say "bert." in front, and "gamma", "beta" for a LayerNorm's "weight", "bias".
    """
    raise NotImplementedError("exercise 1.8")


def load(folder):
    """A checkpoint's folder -> (w, config): its model.safetensors under our names, in float32, and its config.json.

    What is not ours is left out. A tensor that the network needs and the file lacks: KeyError with our name of it.
    """
    raise NotImplementedError("exercise 1.8")


# Exercise 1.9


def count(config):
    """How many numbers a BERT of these sizes learns, by arithmetic alone; config is config.json as a dictionary."""
    raise NotImplementedError("exercise 1.9")
