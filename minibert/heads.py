"""The heads of --head. Like one of your own, a head says by `reads` what it is given: nothing, or "pooled", for one
vector a text (B, D); "tokens" for all tokens (B, S, D) and their mask (B, S) bool, True where a token is real.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minibert.model import ACTIVATIONS, BertConfig, ClassificationHead, Dropout, init_weights


class MlpHead(nn.Module):
    """Dropout, dense, the encoder's activation, dropout, linear: (B, D) -> (B, C)."""

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = dropout(config.head_dropout)
        self.linear = nn.Linear(config.hidden_size, config.num_labels)
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.activation(self.dense(self.dropout(x)))))


class AttentionHead(nn.Module):
    """The mean of the tokens, weighted by a softmax of their products with one learned query (as in Yang et al. 2016,
    hierarchical attention networks, section 2.2, without their dense layer); dropout, linear.
    """

    reads = "tokens"

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, 1, bias=False)
        self.dropout = dropout(config.head_dropout)
        self.linear = nn.Linear(config.hidden_size, config.num_labels)
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, S, D), mask (B, S) bool, at least one True a row -> (B, C)."""
        scores = self.query(tokens)[..., 0]  # (B, S)
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1)
        return self.linear(self.dropout((weights[:, None].to(tokens.dtype) @ tokens)[:, 0]))


HEADS = {"linear": ClassificationHead, "mlp": MlpHead, "attention": AttentionHead}


def name_of(head: nn.Module) -> str:
    """As --head takes it; of a head of one's own, its class's name."""
    return next((name for name, kind in HEADS.items() if type(head) is kind), type(head).__name__)
