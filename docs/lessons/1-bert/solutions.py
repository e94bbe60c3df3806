"""Lesson 1: a whole BERT, as functions of a dictionary of tensors. One way to solve it.

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
    mean = x.mean(dim=-1, keepdim=True)  # (..., 1)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)  # divided by D, not D - 1
    return (x - mean) / (variance + eps).sqrt() * weight + bias


# Exercise 1.2


def embed(w, input_ids, token_type_ids, eps):
    """input_ids and token_type_ids (B, S) -> (B, S, D): the sum of three rows for each token, then LayerNorm.

    w has "word.weight" (V, D), "position.weight" (512, D), "token_type.weight" (2, D), and the norm "embeddings_norm".
    """
    S = input_ids.shape[1]
    x = w["word.weight"][input_ids] + w["token_type.weight"][token_type_ids] + w["position.weight"][:S]
    return layer_norm(x, w["embeddings_norm.weight"], w["embeddings_norm.bias"], eps)


# Exercise 1.3


def split_heads(x, heads):
    """(B, S, D) -> (B, N, S, H): head n gets the channels n H to (n + 1) H."""
    B, S, D = x.shape
    return x.view(B, S, heads, D // heads).transpose(1, 2)


def merge_heads(x):
    """(B, N, S, H) -> (B, S, D), the way back."""
    B, N, S, H = x.shape
    return x.transpose(1, 2).reshape(B, S, N * H)


# Exercise 1.4


def attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(H)) v, in every head.

    q, k, v: (B, N, S, H); mask: (B, S) bool, True where a token is real, None: all are -> (B, N, S, H).
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, N, S asking, S asked)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return scores.softmax(dim=-1) @ v


# Exercise 1.5


def gelu(x):
    """x times the probability that a standard normal number is below x: the exact one, by torch.erf."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


# Exercise 1.6


def layer(w, i, x, heads, mask, eps):
    """Layer i: x (B, S, D), mask (B, S) bool or None -> (B, S, D). Attention, then feed-forward.

    After each: add what went in, then LayerNorm. w has the maps "{i}.query", "{i}.key", "{i}.value",
    "{i}.attention_output", "{i}.up" (D to F), "{i}.down" (F to D), and the norms "{i}.attention_norm" and
    "{i}.feed_forward_norm".
    """
    q, k, v = (split_heads(linear(w, f"{i}.{name}", x), heads) for name in ("query", "key", "value"))
    branch = linear(w, f"{i}.attention_output", merge_heads(attention(q, k, v, mask)))
    x = layer_norm(x + branch, w[f"{i}.attention_norm.weight"], w[f"{i}.attention_norm.bias"], eps)
    branch = linear(w, f"{i}.down", gelu(linear(w, f"{i}.up", x)))
    return layer_norm(x + branch, w[f"{i}.feed_forward_norm.weight"], w[f"{i}.feed_forward_norm.bias"], eps)


# Exercise 1.7


def bert(w, config, input_ids, token_type_ids, mask=None):
    """(B, S), (B, S), (B, S) bool or None -> the last layer's (B, S, D), and pooled (B, D).

    pooled: tanh of the map "pooler" of the first token's vector. config is config.json as a dictionary.
    """
    eps = config["layer_norm_eps"]
    x = embed(w, input_ids, token_type_ids, eps)
    for i in range(config["num_hidden_layers"]):
        x = layer(w, i, x, config["num_attention_heads"], mask, eps)
    return x, torch.tanh(linear(w, "pooler", x[:, 0]))


# Exercise 1.8


def our_name(published):
    """ "bert.encoder.layer.3.output.LayerNorm.gamma" -> "3.feed_forward_norm.weight"; None: not a tensor of ours.

    Published files may say "bert." in front, and "gamma", "beta" for a LayerNorm's "weight", "bias".
    """
    stem, _, leaf = published.removeprefix("bert.").rpartition(".")
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    numbers = [part for part in stem.split(".") if part.isdigit()]
    i = numbers[0] if numbers else ""
    for ours, name in NAMES.items():
        if name.replace("{i}", i) == stem:
            return f"{ours.replace('{i}', i)}.{leaf}"
    return None


def load(folder):
    """A checkpoint's folder -> (w, config): its model.safetensors under our names, in float32, and its config.json.

    What is not ours is left out. A tensor that the network needs and the file lacks: KeyError with our name of it.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    w = {our_name(name): tensor.float() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    w.pop(None, None)
    for ours in NAMES:
        for i in range(config["num_hidden_layers"] if "{i}" in ours else 1):
            table = ours in ("word", "position", "token_type")
            for leaf in ["weight"] if table else ["weight", "bias"]:
                name = f"{ours.replace('{i}', str(i))}.{leaf}"
                if name not in w:
                    raise KeyError(name)
    return w, config


# Exercise 1.9


def count(config):
    """How many numbers a BERT of these sizes learns, by arithmetic alone; config is config.json as a dictionary."""
    V, D, F = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    embeddings = (V + config["max_position_embeddings"] + config["type_vocab_size"]) * D + 2 * D
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * (2 * D)
    return embeddings + config["num_hidden_layers"] * layer + D * D + D
