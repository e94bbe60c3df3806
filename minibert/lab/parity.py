"""Is this BERT? Every component beside a reference, on real sentences: `python -m minibert parity`.

The reference is transformers where it is installed, else the formulas of the paper written out below, in plain
operations on the tensors of the checkpoint's file, without a line of model.py or checkpoint.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from minibert.checkpoint import load_weights, published_names, read_config
from minibert.engine.optimizer import AdamW, linear_schedule, warmup_steps
from minibert.errors import InputError
from minibert.model import BertClassifier, BertConfig, attend
from minibert.tokenizer import Tokenizer

SENTENCES = [
    "Call me Ishmael.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must want a wife.",
    "To be, or not to be, that is the question.",
    "In the beginning God created the heaven and the earth.",
    "All human beings are born free and equal in dignity and rights; 7 of 10 know it, 3.5 % say so!",
    "El Niño's café: naïve coöperation, ЖИЗНЬ, 日本語 and 🙂.",
]
SECOND = [
    "Some years ago.",
    "Mr. Bennet made no answer.",
    "",
    "And darkness was upon it.",
    "Simplify, simplify.",
    "Why?",
]
LABELS = [0, 1, 2, 0, 1, 2]

# Of the largest number in the reference's tensor. Float32 keeps 7 digits; a sum over hundreds of them keeps 5 to 6.
FORWARD, BACKWARD, EXACT = 1e-5, 1e-4, 0.0


@dataclass(frozen=True)
class Row:
    """One component: the largest difference, and that as a share of the reference's largest number."""

    component: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.relative <= self.tolerance  # False for NaN


class Output(NamedTuple):
    hidden: Sequence[Tensor]  # the embeddings and each layer, (B, S, D)
    pooled: Tensor  # (B, D)
    logits: Tensor  # (B, C)


class Reference(Protocol):
    """A BERT that is not ours, with the weights of a checkpoint and the head that it is given."""

    name: str

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Output: ...

    def gradients(self) -> dict[str, Tensor]:
        """After a backward pass: the gradient of every parameter, by its published name without prefix."""
        ...


class Formulas:
    """Devlin et al. 2018 and Vaswani et al. 2017, written out."""

    name = "the formulas written out in plain torch"

    def __init__(self, path: Path, config: BertConfig, head: dict[str, Tensor]) -> None:
        renamed = {"gamma": "weight", "beta": "bias"}
        self.config, self.w = config, {f"classifier.{leaf}": t.clone() for leaf, t in head.items()}
        for name, tensor in load_file(path / "model.safetensors").items():
            stem, _, leaf = name.removeprefix("bert.").rpartition(".")
            if stem.startswith(("embeddings.", "encoder.", "pooler.")):
                self.w[f"{stem}.{renamed.get(leaf, leaf)}"] = tensor.float()
        for tensor in self.w.values():
            tensor.requires_grad_()

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_eps).sqrt()
        return centred / deviation * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    def activation(self, x: Tensor) -> Tensor:
        if self.config.hidden_act == "gelu":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        if self.config.hidden_act == "relu":
            return x.clamp(min=0)
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Output:
        part = "embeddings.{}_embeddings.weight".format
        x = self.w[part("word")][ids] + self.w[part("token_type")][types] + self.w[part("position")][: ids.shape[1]]
        x = self.norm(x, "embeddings.LayerNorm")
        hidden = [x]
        for i in range(self.config.num_hidden_layers):
            layer = f"encoder.layer.{i}"
            q, k, v = (self.heads(self.linear(x, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value"))
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = scores.masked_fill(~mask.bool()[:, None, None, :], -math.inf).softmax(-1)
            context = self.linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
            x = self.norm(x + context, f"{layer}.attention.output.LayerNorm")
            wide = self.activation(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
            hidden.append(x)
        pooled = torch.tanh(self.linear(x[:, 0], "pooler.dense"))
        return Output(hidden, pooled, self.linear(pooled, "classifier"))

    def gradients(self) -> dict[str, Tensor]:
        return {name: tensor.grad for name, tensor in self.w.items()}


class Transformers:
    """BertForSequenceClassification, with its attention written out (eager)."""

    def __init__(self, path: Path, config: BertConfig, head: dict[str, Tensor]) -> None:
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.name = f"transformers {transformers.__version__}"
        kind = transformers.BertForSequenceClassification
        self.model = kind.from_pretrained(
            path, num_labels=config.num_labels, attn_implementation="eager", dtype=torch.float32
        )
        self.model.eval().classifier.load_state_dict(head)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Output:
        out = self.model.bert(
            input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True, return_dict=True
        )
        return Output(out.hidden_states, out.pooler_output, self.model.classifier(out.pooler_output))

    def gradients(self) -> dict[str, Tensor]:
        return {name.removeprefix("bert."): p.grad for name, p in self.model.named_parameters()}


REFERENCES: dict[str, Callable[[Path, BertConfig, dict[str, Tensor]], Reference]] = {
    "transformers": Transformers,
    "formulas": Formulas,
}


def choose_reference(wanted: str | None) -> str:
    """
    Raises:
        InputError: an unknown reference, or one that is not installed.
    """
    there = find_spec("transformers") is not None
    if wanted is None:
        return "transformers" if there else "formulas"
    if wanted not in REFERENCES:
        raise InputError(f"--against {wanted}: known are {', '.join(REFERENCES)}")
    if wanted == "transformers" and not there:
        raise InputError(
            "--against transformers: it is not installed; pip install -e '.[parity]', or --against formulas"
        )
    return wanted


def parity(path: Path, against: str | None = None) -> tuple[str, list[Row]]:
    """Compare a checkpoint's encoder, with a drawn head of three classes, to a reference.

    Args:
        path: the checkpoint's folder.
        against: "transformers" or "formulas"; None: the first that is there.

    Returns:
        The reference's name, and a row a component.

    Raises:
        InputError: the checkpoint cannot be loaded, or there is no such reference.
    """
    make = REFERENCES[choose_reference(against)]
    config = replace(read_config(path), num_labels=3, pool="cls")
    if not config.is_bert:
        raise InputError(f"{path}: its layers are not BERT's, so there is nothing to compare it with")
    torch.manual_seed(0)
    ours = BertClassifier(config).eval()
    load_weights(ours.bert, path)
    reference = make(path, config, {k: v.clone() for k, v in ours.head.linear.state_dict().items()})

    encoded, kinds, _ = Tokenizer.load(path).encode(SENTENCES, SECOND, config.max_position_embeddings)
    lengths = torch.tensor([len(row) for row in encoded])
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(row) for row in encoded], batch_first=True, padding_value=config.pad_token_id)
    types = pad([torch.tensor(row) for row in kinds], batch_first=True)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    real = mask[..., None]

    theirs = reference.forward(ids, mask, types)
    masked = partial(attend, mask=mask[:, None, None, :])
    rows = [compare("embeddings", ours.bert.embeddings(ids, types) * real, theirs.hidden[0] * real, FORWARD)]
    for i, layer in enumerate(ours.bert.layers):
        # Each layer by itself, from the reference's input, so that no error adds up.
        out = layer(theirs.hidden[i].detach(), masked)
        rows.append(compare(f"layer {i + 1}", out * real, theirs.hidden[i + 1] * real, FORWARD))
    sequence, pooled = ours.bert(ids, mask, types)
    rows.append(compare("encoder, end to end", sequence * real, theirs.hidden[-1] * real, FORWARD))
    mean = [(h * real).sum(1) / real.sum(1) for h in (sequence, theirs.hidden[-1])]
    rows.append(compare("mean over the tokens", *mean, FORWARD))
    rows.append(compare("pooler", pooled, theirs.pooled, FORWARD))
    logits = ours(ids, mask, types)
    rows.append(compare("classifier", logits, theirs.logits, FORWARD))
    target = torch.tensor(LABELS)
    losses = F.cross_entropy(logits, target), F.cross_entropy(theirs.logits, target)
    rows.append(compare("loss", *losses, FORWARD))
    for loss in losses:
        loss.backward()
    rows += gradient_rows(ours, reference.gradients())
    rows.append(adamw_row(ours))
    rows.append(schedule_row())
    return reference.name, rows


def compare(component: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Row:
    difference = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    largest = theirs.detach().abs().max().item()
    return Row(component, difference, difference / largest if largest else difference, tolerance)


def gradient_rows(ours: BertClassifier, theirs: dict[str, Tensor]) -> list[Row]:
    """All gradients of a kind together: some should be zero (softmax does not see a key's bias), so no tensor by itself
    has a scale to compare with. A parameter that one side lacks fails.
    """
    kinds = {
        "embeddings": "embeddings.", "attention": ".attention.", "feed-forward": ".feed_forward.", "LayerNorm": "norm",
        "pooler": "pooler.", "head": "head.",
    }  # fmt: skip
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in kinds}
    lacking: list[Row] = []
    seen: set[str] = set()
    published = published_names(ours)
    for name, p in ours.named_parameters():
        parts = [theirs.get(n) for n in published[name]]
        seen.update(published[name])
        if p.grad is None or any(part is None for part in parts):
            lacking.append(Row(f"gradients, {name} is missing", math.inf, math.inf, BACKWARD))
        else:
            kind = next(kind for kind, mark in reversed(kinds.items()) if mark in name)
            pairs[kind].append((p.grad.flatten(), torch.cat([part.flatten() for part in parts])))
    rows = [
        compare(f"gradients, {kind}", *(torch.cat(side) for side in zip(*both)), BACKWARD)
        for kind, both in pairs.items()
        if both
    ]
    left = sorted(theirs.keys() - seen)
    return rows + lacking + [Row(f"gradients, {n} is theirs alone", math.inf, math.inf, BACKWARD) for n in left]


def adamw_row(model: BertClassifier) -> Row:
    """Ten steps on the head's weights and the last layer's, beside torch.optim.AdamW."""
    chosen = {n: p for n, p in model.named_parameters() if p.grad is not None and ("head." in n or ".output." in n)}
    ours = {name: torch.nn.Parameter(p.detach().clone()) for name, p in chosen.items()}
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in chosen.items()}
    optimizer = AdamW(ours.items(), weight_decay=0.1)
    groups = [
        {"params": [p for p in theirs.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-3)
    for step in range(10):
        for name, p in chosen.items():
            ours[name].grad = p.grad * (step % 3 - 0.8)
            theirs[name].grad = ours[name].grad.clone()
        optimizer.step(1e-3)
        reference.step()
    flat = [torch.cat([p.flatten() for p in side.values()]) for side in (ours, theirs)]
    return compare("AdamW, 10 steps (torch.optim)", *flat, FORWARD)


def schedule_row() -> Row:
    """Every step of three schedules, beside the formula of torch's LambdaLR users: up by 1/warmup, down to 0."""
    ours, theirs = [], []
    for total, warmup in ((100, 0.1), (57, 0.0), (40, 13)):
        up = warmup_steps(warmup, total)
        ours += [linear_schedule(step, total, up) for step in range(total + 1)]
        theirs += [min(step / up if up else 1.0, (total - step) / (total - up)) for step in range(total + 1)]
    return compare("linear warmup and decay", torch.tensor(ours).double(), torch.tensor(theirs).double(), 1e-12)


def format_rows(rows: list[Row]) -> str:
    """The table a teacher would show."""
    width = max(len(row.component) for row in rows)
    lines = [f"{'component':<{width}}  largest difference  of the largest number  tolerance  ok"]
    for row in rows:
        lines.append(
            f"{row.component:<{width}}  {row.absolute:>18.1e}  {row.relative:>21.1e}  {row.tolerance:>9.0e}"
            f"  {'ok' if row.ok else 'NO'}"
        )
    return "\n".join(lines)
