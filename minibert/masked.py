"""Masked-language-model training on the task's own training texts: the start of `--init self-mlm:E`.

Krishna et al. 2022 (arXiv:2209.14389) found that pretraining on nothing but the texts of the task itself often gives as
much as a large corpus. The objective is BERT's (Devlin et al. 2018, section 3.1, task 1); there is no next-sentence
task, so the pooler learns nothing here. Validation and test texts are never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minibert.data import Examples, cache_folder
from minibert.data.batches import collate
from minibert.engine import assemble
from minibert.engine.dropout import dropout_for
from minibert.engine.epochs import Cursor, Plan, Watch, own_random_numbers, steps
from minibert.engine.machine import Machine
from minibert.engine.network import Padded
from minibert.engine.optimizer import Schedule, warmup_steps
from minibert.errors import InputError, Say
from minibert.files import alone, write_cache
from minibert.initialization import draw, stream
from minibert.model import ACTIVATIONS, Bert, BertClassifier, BertConfig
from minibert.progress import Progress, duration
from minibert.tokenizer import SPECIAL, Tokenizer

MASK = "[MASK]"
SEED = 0  # always: runs that differ in --seed share one result
RECIPE = 3  # to be raised when this module computes something else, so that no cached result of the old one is taken


@dataclass(frozen=True)
class Recipe:
    """How it is trained: few texts and epochs ask for a higher rate and more steps than BERT's 1e-4 at batch 256."""

    lr: float = 5e-4  # as ELECTRA-Small, a BERT of this size (Clark et al. 2020, arXiv:2003.10555, table 6)
    batch_size: int = 32  # 15 % of the words of 32 short texts: some 200 labels a step
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    chosen: float = 0.15  # of a text's tokens; of these 80 % become [MASK], 10 % another word, 10 % stay


class MaskedWordHead(nn.Module):
    """Dense, activation, LayerNorm, then the word embedding itself as decoder, with a bias (BERT's run_pretraining.py).

    Args:
        words: how many words W it tells apart.
    """

    def __init__(self, config: BertConfig, words: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x (M, D) the hidden states of M tokens, table (W, D) the words' embeddings -> (M, W)."""
        return F.linear(self.norm(self.activation(self.dense(x))), table, self.bias)


def mask_words(
    input_ids: Tensor, special: Tensor, mask_id: int, share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose tokens to be predicted, and hide most of them.

    Args:
        input_ids: (B, S) below R; special: (R,) bool, what is never chosen nor put in a word's place.

    Returns:
        The ids with 80 % of the chosen ones [MASK], 10 % another word, 10 % as they were; and which were chosen,
        (B, S) bool: `share` of the words of each text, at least one where it has a word.
    """
    words = ~special[input_ids]
    score = torch.rand(input_ids.shape, generator=generator).masked_fill(~words, 2.0)
    count = (words.sum(dim=1, keepdim=True) * share).round().clamp(min=1)
    chosen = (score.argsort(dim=1).argsort(dim=1) < count) & words
    fate = torch.rand(input_ids.shape, generator=generator)
    known = torch.nonzero(~special)[:, 0]
    other = known[torch.randint(len(known), input_ids.shape, generator=generator)]
    hidden = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, other, input_ids))
    return torch.where(chosen, hidden, input_ids), chosen


def self_mlm(
    config: BertConfig,
    texts: Examples,
    tokenizer: Tokenizer,
    epochs: int,
    machine: Machine,
    say: Say = print,
    checkpointing: bool = False,
) -> dict[str, Tensor]:
    """The encoder after `epochs` of masked-language-model training on `texts`, from the cache where it has it.

    It starts as `random` does, from SEED. The softmax runs over the words that `texts` hold, not over the vocabulary:
    of all others, special tokens among them, it would only learn that they are never the answer, on the motion data at
    400 times the cost. Stopped in between, it starts over.

    Args:
        config: of the encoder; its dropout rates are used, its pooler is not there.
        texts: the training split.
        checkpointing: see assemble; the result is the same.

    Returns:
        The tensors of a `Bert` without pooler, float32, on the CPU.

    Raises:
        InputError: the tokenizer has no [MASK], the texts no words, or a gradient is not finite.
    """
    if tokenizer.token_id(MASK) is None:
        raise InputError("--init self-mlm: the tokenizer has no [MASK]; take a --model whose vocabulary has it")
    recipe = Recipe()
    config = replace(config, pool="mean")
    text = f"{epochs} epoch{'s' * (epochs > 1)} of masked-language-model training on the {len(texts):,} training texts"
    cached = cache_folder() / f"self-mlm-{fingerprint(config, texts, tokenizer, epochs, recipe, machine)}.safetensors"
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Bert(config).state_dict().items()}
    with alone(cached.with_suffix(".lock")):  # runs side by side train it once
        try:
            state = load_file(cached)
            if {name: tensor.shape for name, tensor in state.items()} == expected:
                say(f"self-mlm: {text} are in the cache, {cached}")
                return state
        except (OSError, SafetensorError):  # not there, or not whole
            pass
        say(f"self-mlm: {text}, {recipe.batch_size} a step, lr {recipe.lr:g}")
        state = learn(config, texts, tokenizer, epochs, recipe, machine, say, checkpointing)
        write_cache(cached, lambda beside: save_file(state, beside))
        return state


def fingerprint(
    config: BertConfig, texts: Examples, tokenizer: Tokenizer, epochs: int, recipe: Recipe, machine: Machine
) -> str:
    """A hash of all that the result depends on; the labels are not among it."""
    settings = [RECIPE, SEED, epochs, vars(recipe), config.to_dict(), machine.name]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    key.update(hashlib.sha256(tokenizer.to_json().encode()).digest())
    for rows, dtype in ((texts.ids, np.int32), (texts.types, np.uint8)):
        key.update((np.zeros(0) if rows is None else rows.lengths).astype(np.int64).tobytes() + b"|")
        for piece in () if rows is None else rows.pieces():
            key.update(piece.astype(dtype).tobytes())
    return key.hexdigest()


def learn(
    config: BertConfig,
    texts: Examples,
    tokenizer: Tokenizer,
    epochs: int,
    recipe: Recipe,
    machine: Machine,
    say: Say,
    checkpointing: bool = False,
) -> dict[str, Tensor]:
    """`self_mlm` without the cache."""
    model = BertClassifier(config, head=nn.Identity(), dropout=dropout_for(machine.device))
    mask = Examples([np.array([tokenizer.token_id(MASK)])], None, np.zeros(1, np.int64), np.zeros(1, np.int64))
    special = np.array([tokenizer.token_id(token) for token in (*SPECIAL, MASK)])
    known = np.setdiff1d(texts.ids.occurring(), special)
    if not len(known):
        raise InputError("--init self-mlm: the training texts have no word that the tokenizer knows")
    model.head = MaskedWordHead(config, len(known))
    with torch.no_grad():
        draw(model.bert, config.initializer_range, stream(SEED, "self-mlm encoder"))
        draw(model.head, config.initializer_range, stream(SEED, "self-mlm head"))
    plan = Plan(len(texts), epochs, recipe.batch_size, order=SEED, dropout=SEED, purpose="self-mlm ")
    total = epochs * plan.steps
    engine = assemble(
        model, [texts, mask], machine, Schedule(recipe.lr, total, warmup_steps(recipe.warmup, total)),
        weight_decay=recipe.weight_decay, clip=recipe.clip, network=MaskedWords,
        checkpointing=checkpointing, say=say,
    )  # fmt: skip
    network, (split, renumbered_mask) = engine.network, engine.splits
    network.prepare(np.isin(engine.words.ids, special), int(renumbered_mask.ids[0][0]), recipe.chosen)

    def batches(chosen: Sequence[int]) -> tuple[Sequence[Any], int]:
        batch = network.batch(split, chosen)
        return [batch], max(1, len(batch.labels))  # a text of special tokens alone has no words

    def unusable(_: int) -> InputError:
        step = int(engine.state.optimizer.steps) + 1
        return InputError(f"--init self-mlm: the gradient is not finite at step {step}")

    bar = Progress(epochs * plan.examples)
    for epoch in range(1, epochs + 1):
        start, done = time.monotonic(), (epoch - 1) * plan.examples
        engine.state.sums.clear()
        watch = Watch(engine, unusable)
        try:
            with own_random_numbers(machine.device):
                for now in steps(engine, plan, Cursor(epoch), batches):
                    watch.look()
                    bar.reach(
                        done + min(plan.examples, now.step * plan.size),
                        lambda: f"self-mlm {epoch}/{epochs}  loss {watch.read().loss:.3f}",  # noqa: B023
                    )
            seen = watch.read()
        finally:
            bar.clear()
        say(
            f"self-mlm: epoch {epoch} of {epochs}, loss {seen.loss:.3f} (a blind guess: {math.log(len(known)):.3f}),"
            f" {duration(time.monotonic() - start)}"
        )
    state = engine.model().bert.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


class MaskedBatch(NamedTuple):
    """A padded batch in which words are hidden, and what they were."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor | None  # (B, S) bool
    token_type_ids: Tensor | None  # (B, S)
    places: Tensor  # (M,), which of the B S tokens are to be told
    labels: Tensor  # (M,), which of the words that can be the answer they are


class MaskedWords(Padded):
    """The network of this training: all tokens of the last layer are computed, and a head tells the hidden ones."""

    def prepare(self, special: np.ndarray, mask_id: int, share: float) -> None:
        """special: (W,) bool, what is never chosen; mask_id: [MASK]'s place among the words; share: that is chosen."""
        self.special, self.mask_id, self.share = torch.from_numpy(special), mask_id, share
        self.place = (~self.special).cumsum(0) - 1  # where a word stands among those that can be the answer
        self.answers = torch.nonzero(~self.special)[:, 0].to(self.machine.device)

    def batch(self, examples: Examples, rows: Sequence[int]) -> MaskedBatch:
        """With words hidden by torch's random numbers."""
        whole = collate(examples, rows, self.pad_id)
        ids, chosen = mask_words(whole.input_ids, self.special, self.mask_id, self.share)
        places = torch.nonzero(chosen.flatten())[:, 0]
        labels = self.place[whole.input_ids[chosen]]
        tensors = (ids, whole.attention_mask, whole.token_type_ids, places, labels)
        return MaskedBatch(*(t if t is None else t.to(self.machine.device) for t in tensors))

    def __call__(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Logits (M, W) of the hidden words, and the vectors (M, D) that they are told by."""
        hidden = self.hidden(batch)[0].flatten(0, 1)[batch.places]
        return self.model.head(hidden, self.model.bert.embeddings.word.weight[self.answers]), hidden
