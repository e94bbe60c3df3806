"""What a model's answer rests on: attributions of tokens, and attention weights. Nothing of a model is changed.

An attribution compares a text with a baseline, its words' vectors replaced by those of other tokens: each token is
given its share of what the score gains from one to the other. The score is the class's logit less the mean of all
logits, since softmax does not see what all logits have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.model import Bert, BertClassifier

STEPS = 50  # gradients along the way from the baseline to the text


class Attribution(NamedTuple):
    """Of B texts."""

    tokens: Tensor  # (B, S)
    difference: Tensor  # (B,), the score of the text less that of its baseline
    gap: Tensor  # (B,), the sum of the tokens less the difference: 0 where the attribution is complete


def attribute(
    model: BertClassifier,
    input_ids: Tensor,
    baseline_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    steps: int = STEPS,
) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, equation 1): (x - x') times the mean gradient
    between x' and x, summed over a token's channels. x are the words' vectors of the text, x' those of its baseline;
    positions and token types stay. The mean is taken at the middles of equal parts of the way.

    Args:
        input_ids, baseline_ids: (B, S).
        labels: (B,), the classes that are asked about.
        attention_mask, token_type_ids: (B, S), as `Bert`.
        steps: gradients for each text; 0: gradient x input, (x - x') times the gradient at x alone.
    """
    word = model.bert.embeddings.word
    x, start = word(input_ids).detach(), word(baseline_ids).detach()

    def score(words: Tensor) -> Tensor:
        with words_replaced(model, words):
            logits = model(input_ids, attention_mask, token_type_ids)
        return logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)

    places = [(step + 0.5) / steps for step in range(steps)] or [1.0]
    was_training = model.training
    model.eval()
    gradient = torch.zeros_like(x)
    for place in places:
        words = torch.lerp(start, x, place).requires_grad_()
        gradient += torch.autograd.grad(score(words).sum(), words)[0] / len(places)  # no text sees another
    with torch.no_grad():
        difference = score(x) - score(start)
    model.train(was_training)
    tokens = ((x - start) * gradient).sum(dim=-1)
    return Attribution(tokens, difference, tokens.sum(dim=1) - difference)


@contextmanager
def words_replaced(model: BertClassifier, words: Tensor) -> Iterator[None]:
    """While open, the model reads `words` (B, S, D) in place of what its word embedding looks up."""
    hook = model.bert.embeddings.word.register_forward_hook(lambda *_: words)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def attention_weights(
    bert: Bert, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
) -> list[Tensor]:
    """Of each layer (B, N, S, S): how much of a token (third) what each token (last) gives. Lines sum to 1."""
    weights: list[Tensor] = []
    mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    bert.encode(bert.embeddings(input_ids, token_type_ids), partial(keeping(weights), mask=mask))
    return weights


def keeping(weights: list[Tensor]) -> Callable[..., Tensor]:
    """As model.attend, which keeps no weights; this one appends them to `weights`, a layer at a time."""

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None) -> Tensor:
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # (B, N, Q, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights.append(scores.softmax(dim=-1))
        return weights[-1] @ v

    return attend
