"""BERT (Devlin et al. 2018, arXiv:1810.04805), written to be read. Imports torch and nothing else.

Shapes, here and in the comments:

    B batch        S sequence length     D hidden size        F feed-forward (intermediate) size
    N heads        H head size = D / N   V vocabulary         C classes

Read from top to bottom: the numbers (`BertConfig`), the embeddings, attention, feed-forward, one
layer, the poolers, the encoder (`Bert`), the default head and the classifier (`BertClassifier`).
heads.py has other heads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The published names of activations. BERT's own is the exact (erf) GELU; the tanh form is what some
# later checkpoints were trained with, and the two differ by up to 5e-4: never swap them in silence.
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

Dropout = Callable[[float], nn.Module]  # a rate -> the module: nn.Dropout, or another way to draw the same
Attend = Callable[[Tensor, Tensor, Tensor, nn.Module], Tensor]  # as `attend` below
Call = Callable[..., Tensor]  # as `call` below

# Published fields that would make another network, with the only value this one implements.
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


@dataclass(frozen=True)
class BertConfig:
    """The numbers of a BERT, under their published names. The defaults are `bert-base-uncased`.

    Raises:
        ValueError: a size below 1, a dropout rate outside [0, 1), heads that do not divide the hidden
            size, a padding word beyond the vocabulary, an unknown activation or pool.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1  # after the embeddings, the attention and the feed-forward
    attention_probs_dropout_prob: float = 0.1  # on the attention weights
    classifier_dropout: float | None = None  # in front of the head; None: as hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    num_labels: int = 2
    # Ours, not published fields. The defaults are BERT.
    pool: str = "cls"  # what the head reads: "cls" (BERT's pooler), "mean", or "tokens" (all of them, no pooler)
    residual_scale: float = 1.0  # a in LayerNorm(a x + F(x)): DeepNorm, Admin
    branch_gate: str = "none"  # a learned g in x + g F(x): "scalar" (ReZero) or "channel" (LayerScale)
    norm_first: bool = False  # x + F(LayerNorm(x)), and one LayerNorm at the end: pre-LN

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "max_position_embeddings", "type_vocab_size", "num_labels")  # fmt: skip
        for name in sizes:
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:  # True is none
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number of at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            rate = getattr(self, name)
            if not (is_number(rate) and 0 <= rate < 1) and (rate is not None or name != "classifier_dropout"):
                raise ValueError(f"{name} is {rate!r}; it must be a number of at least 0 and below 1")
        for name in ("layer_norm_eps", "initializer_range", "residual_scale"):
            if not is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id is {self.pad_token_id!r}; it must be a word, 0 to {self.vocab_size - 1}")
        if type(self.norm_first) is not bool:
            raise ValueError(f"norm_first is {self.norm_first!r}; it must be true or false")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        for name, known in (("hidden_act", ACTIVATIONS), ("pool", POOLERS), ("branch_gate", GATES)):
            if getattr(self, name) not in list(known):
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}")

    @property
    def num_weights(self) -> int:
        """Of embeddings and layers, without biases and norms: not more than a file of weights has."""
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return rows * self.hidden_size + self.num_hidden_layers * layer

    @property
    def is_bert(self) -> bool:
        """Whether the layers are BERT's own, so that other implementations can run the weights."""
        return self.residual_scale == 1.0 and self.branch_gate == "none" and not self.norm_first

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @classmethod
    def from_dict(cls, published: dict[str, Any]) -> BertConfig:
        """A published config.json's content -> BertConfig. Fields that do not touch the network are left aside.

        Raises:
            ValueError: a field asks for a network that is not this one (a decoder, relative positions, ...).
        """
        if published.get("model_type", "bert") not in ("bert", "minibert"):
            raise ValueError(f"config.json has model_type = {published['model_type']!r}; this is BERT alone")
        for name, value in FIXED.items():
            if published.get(name, value) != value:
                raise ValueError(f"config.json has {name} = {published[name]!r}; this BERT implements {value!r} only")
        known = {name: published[name] for name in cls.__dataclass_fields__ if name in published}
        if known.get("pad_token_id", 0) is None:  # as in some published files: what is padded is masked, whatever it is
            del known["pad_token_id"]
        if "id2label" in published:
            known["num_labels"] = len(published["id2label"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it. Layers that are not BERT's get a type of their own: no one else must run them."""
        return {"model_type": "bert" if self.is_bert else "minibert"} | FIXED | asdict(self)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class Embeddings(nn.Module):
    """Word + token type + position, LayerNorm, dropout (Devlin et al. 2018, section 3 and figure 2)."""

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Whole numbers (B, S) -> (B, S, D). token_type_ids None: all 0; position_ids None: 0 .. S - 1."""
        length = input_ids.shape[1] if position_ids is None else 0
        if length > self.position.num_embeddings:
            raise ValueError(f"{length} tokens, but this BERT has {self.position.num_embeddings} positions: truncate")
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        positions = self.position.weight[:length] if position_ids is None else self.position(position_ids)
        return self.dropout(self.norm(self.word(input_ids) + types + positions))


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(H)) v, with dropout on the weights (Vaswani et al. 2017, equation 1).

    q (B, N, Q, H), k and v (B, N, S, H), mask (B, 1, 1, S) bool, True where a token may be attended to -> (B, N, Q, H).
    """
    if not (dropout.training and dropout.p):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # the same, and keeps no (S, S) matrix
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # (B, N, Q, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(dim=-1)) @ v


class SelfAttention(nn.Module):
    """Bidirectional multi-head self-attention (Vaswani et al. 2017, section 3.2).

    `qkv` holds BERT's query, key and value matrices, concatenated in that order on load: one matrix
    product instead of three.
    """

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dropout = dropout(config.attention_probs_dropout_prob)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attend: Attend = attend, queries: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, S, D), the tokens that are attended to.
            attend: (B, N, Q, H), (B, N, S, H), (B, N, S, H) and the dropout on the weights -> (B, N, Q, H). It knows
                which token may see which; a mask, where there is one, is bound to it.
            queries: (B, Q, D), the tokens that attend; None: all of x.

        Returns:
            (B, Q, D), before the residual add and LayerNorm.
        """
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            D = x.shape[-1]
            (Wq, Wkv), (bq, bkv) = self.qkv.weight.split([D, 2 * D]), self.qkv.bias.split([D, 2 * D])
            q, (k, v) = F.linear(queries, Wq, bq), F.linear(x, Wkv, bkv).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (q, k, v))  # (B, N, S, H)
        return self.output(attend(q, k, v, self.dropout).transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """Each token by itself through D -> F -> D."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D), before the residual add and LayerNorm."""
        return self.output(self.activation(self.input(x)))


class Gate(nn.Module):
    """x -> g x, with g learned: one number, or one a channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


GATES = {"none": lambda width: nn.Identity(), "scalar": lambda width: Gate(), "channel": lambda width: Gate(width)}


class Layer(nn.Module):
    """One encoder layer, post-LN: LayerNorm(x + F(x)) around attention, then around the feed-forward.

    The config's last three fields make other layers of it, for starts that need them (initialization.py).
    """

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.attention = SelfAttention(config, dropout)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = dropout(config.hidden_dropout_prob)
        self.attention_gate = GATES[config.branch_gate](config.hidden_size)
        self.feed_forward_gate = GATES[config.branch_gate](config.hidden_size)
        self.norm_first, self.residual_scale = config.norm_first, config.residual_scale

    def forward(self, x: Tensor, attend: Attend = attend, queries: Tensor | None = None) -> Tensor:
        """x (B, S, D), attend and queries (B, Q, D) as in SelfAttention -> as queries, or as x where there are none."""
        skip = x if queries is None else queries
        if self.norm_first:
            asking = None if queries is None else self.attention_norm(queries)
            x = self.add(skip, self.attention_gate(self.attention(self.attention_norm(x), attend, asking)))
            return self.add(x, self.feed_forward_gate(self.feed_forward(self.feed_forward_norm(x))))
        x = self.attention_norm(self.add(skip, self.attention_gate(self.attention(x, attend, queries))))
        return self.feed_forward_norm(self.add(x, self.feed_forward_gate(self.feed_forward(x))))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The residual: a x + dropout(F(x)), where BERT's a is 1."""
        return torch.add(self.dropout(branch), x, alpha=self.residual_scale)


class ClsPooler(nn.Module):
    """BERT's pooler: tanh(W x + b) of the first token, [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, D) -> (B, D)."""
        return torch.tanh(self.dense(x[:, 0]))


class MeanPooler(nn.Module):
    """The mean over the real tokens. It has no weights."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, D), mask (B, 1, 1, S) bool or None -> (B, D)."""
        if mask is None:
            return x.mean(dim=1)
        real = mask[:, 0, 0, :, None].to(x.dtype)  # (B, S, 1)
        return (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


# A head over tokens needs no pooler; `pooled_output` is then their mean, which verdict and probe look at.
POOLERS = {"cls": ClsPooler, "mean": MeanPooler, "tokens": MeanPooler}


def call(layer: nn.Module, *inputs: Any) -> Tensor:
    """A layer's output, and all that its backward pass needs stays in memory (engine/network.py has another way)."""
    return layer(*inputs)


class Bert(nn.Module):
    """The encoder. It starts from BERT's own random weights; see checkpoint.py to load published ones."""

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, dropout)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm_first else nn.Identity()
        self.pooler = POOLERS[config.pool](config)
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            input_ids: (B, S) whole numbers below V.
            attention_mask: (B, S), 1 or True for a token, 0 or False for padding; None: no padding.
            token_type_ids: (B, S), 0 for the first text, 1 for the second; None: all 0.

        Returns:
            sequence_output (B, S, D), the last layer's hidden states, and pooled_output (B, D).

        Raises:
            ValueError: more tokens than the config has positions.
        """
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        x = self.encode(
            self.embeddings(input_ids, token_type_ids), attend if mask is None else partial(attend, mask=mask)
        )
        return x, self.pooler(x, mask)

    def encode(
        self, x: Tensor, attend: Attend = attend, read: Callable[[Tensor], Tensor] | None = None, call: Call = call
    ) -> Tensor:
        """Embedded tokens (B, S, D) through all layers -> hidden states.

        Args:
            read: picks from x the tokens wanted of the last layer, which is computed for them alone; None: all.
            call: how a layer below the last one is called. The backward pass starts with the last, whose activations
                are needed at once.
        """
        *lower, last = self.layers
        for layer in lower:
            x = call(layer, x, attend)
        return self.norm(last(x, attend, None if read is None else read(x)))


class ClassificationHead(nn.Module):
    """Dropout, then one linear map: (B, D) -> (B, C)."""

    def __init__(self, config: BertConfig, dropout: Dropout = nn.Dropout) -> None:
        super().__init__()
        self.dropout = dropout(config.head_dropout)
        self.linear = nn.Linear(config.hidden_size, config.num_labels)
        self.apply(lambda module: init_weights(module, config.initializer_range))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))


def reads_of(head: object) -> str:
    """What a head reads: "pooled", called as head(pooled (B, D)), or, where its attribute `reads` says "tokens",
    called as head(tokens (B, S, D), mask (B, S) bool), the mask True where a token is real.

    Raises:
        ValueError: its `reads` says something else.
    """
    reads = getattr(head, "reads", "pooled")
    if reads not in ("pooled", "tokens"):
        raise ValueError(f"the head's reads is {reads!r}; it must be 'pooled' or 'tokens'")
    return reads


def called_wrongly(head: nn.Module, tokens: bool) -> str:
    """A sentence where `head` cannot be called with what it is given, all tokens or one vector; else empty."""
    given = ("tokens", "mask") if tokens else ("pooled",)
    try:
        inspect.signature(head.forward).bind(*given)
    except TypeError as error:
        wrong = f"it is called as head({', '.join(given)}): {error}"
        return f'{wrong}; one that reads all tokens says so in its class, reads = "tokens"'
    except ValueError:  # a forward that is not Python's has no signature to look at
        pass
    return ""


class BertClassifier(nn.Module):
    """Encoder and head.

    Args:
        config: its `num_labels` is the number of classes C.
        head: any module from what it reads (see `reads_of`) to (B, C); None: a `ClassificationHead`.
        pool: in place of the config's. A head over tokens makes it "tokens".
        dropout: makes the dropout modules of the encoder and of the default head (engine/dropout.py has others).

    Raises:
        ValueError: `pool` gives the head what it does not read.
    """

    def __init__(
        self,
        config: BertConfig,
        head: nn.Module | None = None,
        pool: str | None = None,
        dropout: Dropout = nn.Dropout,
    ) -> None:
        super().__init__()
        if reads_of(head) == "tokens":
            if pool not in (None, "tokens"):
                raise ValueError(f"pool is {pool!r}, but the head reads all tokens")
            pool = "tokens"
        elif "tokens" in (pool, config.pool if pool is None else None):
            raise ValueError("pool is 'tokens', but the head reads one vector; pool must be 'cls' or 'mean'")
        self.config = config if pool is None else replace(config, pool=pool)
        self.bert = Bert(self.config, dropout)
        self.head = ClassificationHead(self.config, dropout) if head is None else head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """As `Bert`, but returns the logits (B, C)."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        x, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classify(x, pooled, mask)

    def classify(self, x: Tensor, pooled: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `Bert` gives, x (B, S, D) and pooled (B, D), with mask (B, 1, 1, S) bool or None -> logits (B, C)."""
        if self.config.pool != "tokens":
            return self.head(pooled)
        return self.head(x, x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask[:, 0, 0])


def init_weights(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """BERT's random start for one module: N(0, std) matrices, zero biases, LayerNorm 1 and 0, zero [PAD] row."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
