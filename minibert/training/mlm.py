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
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minibert import fast
from minibert.data import Examples, cache_folder
from minibert.data.batches import Batch, batches
from minibert.errors import InputError, Say
from minibert.files import write_cache
from minibert.initialization import draw, stream
from minibert.model import ACTIVATIONS, Bert, BertClassifier, BertConfig
from minibert.precision import LossScaler, Precision
from minibert.seeds import derive
from minibert.tokenizer import SPECIAL, Tokenizer
from minibert.training.optimizer import AdamW, clipped_step, linear_schedule, warmup_steps
from minibert.training.progress import Progress, duration
from minibert.training.rows import OccurringRows

MASK = "[MASK]"
SEED = 0  # always: runs that differ in --seed share one result
RECIPE = 1  # to be raised when this module computes something else, so that no cached result of the old one is taken


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
    input_ids: Tensor, special: Tensor, mask_id: int, share: float, generator: torch.Generator
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
    config: BertConfig, texts: Examples, tokenizer: Tokenizer, epochs: int, precision: Precision, say: Say = print
) -> dict[str, Tensor]:
    """The encoder after `epochs` of masked-language-model training on `texts`, from the cache where it has it.

    It starts as `random` does, from SEED. The softmax runs over the words that `texts` hold, not over the vocabulary:
    of all others, special tokens among them, it would only learn that they are never the answer, on the motion data at
    400 times the cost. Stopped in between, it starts over.

    Args:
        config: of the encoder; its dropout rates are used, its pooler is not there.
        texts: the training split.

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
    cached = cache_folder() / f"self-mlm-{fingerprint(config, texts, tokenizer, epochs, recipe, precision)}.safetensors"
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Bert(config).state_dict().items()}
    try:
        state = load_file(cached)
        if {name: tensor.shape for name, tensor in state.items()} == expected:
            say(f"self-mlm: {text} are in the cache, {cached}")
            return state
    except (OSError, SafetensorError):  # not there, or not whole
        pass
    say(f"self-mlm: {text}, {recipe.batch_size} a step, lr {recipe.lr:g}")
    state = learn(config, texts, tokenizer, epochs, recipe, precision, say)
    write_cache(cached, lambda beside: save_file(state, beside))
    return state


def fingerprint(
    config: BertConfig, texts: Examples, tokenizer: Tokenizer, epochs: int, recipe: Recipe, precision: Precision
) -> str:
    """A hash of all that the result depends on; the labels are not among it."""
    settings = [RECIPE, SEED, epochs, vars(recipe), config.to_dict(), precision.name]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    key.update(hashlib.sha256(tokenizer.to_json().encode()).digest())
    for rows, dtype in ((texts.ids, np.int32), (texts.types or [], np.uint8)):
        key.update(np.array([len(row) for row in rows], np.int64).tobytes() + b"|")
        for row in rows:
            key.update(np.asarray(row, dtype).tobytes())
    return key.hexdigest()


def learn(
    config: BertConfig,
    texts: Examples,
    tokenizer: Tokenizer,
    epochs: int,
    recipe: Recipe,
    precision: Precision,
    say: Say,
) -> dict[str, Tensor]:
    """`self_mlm` without the cache."""
    model = BertClassifier(config, head=nn.Identity())
    mask = Examples([np.array([tokenizer.token_id(MASK)])], None, np.zeros(1, np.int64), np.zeros(1, np.int64))
    with torch.no_grad():
        draw(model.bert, config.initializer_range, stream(SEED, "self-mlm encoder"))
    rows = OccurringRows(model, [texts, mask])
    split, mask_id = rows.renumber(texts), int(rows.renumber(mask).ids[0][0])
    special = torch.from_numpy(np.isin(rows.ids, [tokenizer.token_id(token) for token in (*SPECIAL, MASK)]))
    if special.all():
        raise InputError("--init self-mlm: the training texts have no word that the tokenizer knows")
    words = torch.nonzero(~special)[:, 0]
    model.head = MaskedWordHead(config, len(words))
    with torch.no_grad():
        draw(model.head, config.initializer_range, stream(SEED, "self-mlm head"))
    fast.place(model, precision.device).train()
    optimizer = AdamW(model.named_parameters(), weight_decay=recipe.weight_decay)
    scaler = LossScaler(precision.name == "fp16")
    total = epochs * math.ceil(len(split) / recipe.batch_size)
    warmup = warmup_steps(recipe.warmup, total)
    words, place = words.to(precision.device), (~special).cumsum(0) - 1  # (R,): where a word stands among `words`
    blind = math.log(len(words))  # the loss of a guess among all words
    bar = Progress(epochs * len(split))
    for epoch in range(1, epochs + 1):
        start, loss_sum, count = time.monotonic(), torch.zeros((), device=precision.device), 0
        with torch.random.fork_rng(devices=[precision.device] if precision.device.type == "cuda" else []):
            torch.manual_seed(derive(SEED, "self-mlm dropout", epoch))
            generator = torch.Generator().manual_seed(derive(SEED, "self-mlm", epoch))
            order = torch.randperm(len(split), generator=generator).tolist()
            for batch in batches(split, recipe.batch_size, order, rows.pad_id):
                ids, chosen = mask_words(batch.input_ids, special, mask_id, recipe.chosen, generator)
                if chosen.any():
                    target = place[batch.input_ids[chosen]]
                    masked = batch._replace(input_ids=ids)
                    optimizer.zero_grad()
                    loss = masked_loss(model, masked, chosen, words, target, precision)
                    (loss * scaler.scale).backward()
                    rate = recipe.lr * linear_schedule(optimizer.steps, total, warmup)
                    if not clipped_step(optimizer, rate, recipe.clip, scaler) and scaler.spent:
                        bar.clear()
                        raise InputError(f"--init self-mlm: the gradient is not finite at step {optimizer.steps + 1}")
                    loss_sum = loss_sum + loss.detach() * len(target)
                    count += len(target)
                bar.advance(len(ids), lambda: f"self-mlm {epoch}/{epochs}  loss {loss_sum / max(1, count):.3f}")  # noqa: B023
        bar.clear()
        say(
            f"self-mlm: epoch {epoch} of {epochs}, loss {loss_sum / max(1, count):.3f} (a blind guess: {blind:.3f}),"
            f" {duration(time.monotonic() - start)}"
        )
    model.cpu()
    with rows.whole(optimizer.shrinkage) as whole:
        return {name: tensor.detach().contiguous() for name, tensor in whole.bert.state_dict().items()}


def masked_loss(
    model: BertClassifier, batch: Batch, chosen: Tensor, words: Tensor, target: Tensor, precision: Precision
) -> Tensor:
    """The mean cross-entropy over the chosen tokens, on the device.

    Args:
        batch: with masked ids; chosen: (B, S) bool.
        words: (W,) the rows of the word embedding that can be the answer, on the device.
        target: (M,) which of `words` stood at each chosen place.
    """
    batch = batch.to(precision.device)
    with precision.autocast():
        hidden = model.bert(*batch[:3])[0][chosen.to(precision.device)]  # (M, D)
        logits = model.head(hidden, model.bert.embeddings.word.weight[words])
    return F.cross_entropy(logits.float(), target.to(precision.device))
