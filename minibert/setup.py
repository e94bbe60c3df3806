"""From settings to all that a run starts from: checkpoint, data, and a model with its starting weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from minibert import checkpoint, sources
from minibert.config import TrainConfig
from minibert.data import BUNDLED, IN_MEMORY, Dataset, check_vocabulary, load_dataset
from minibert.data.table import Table
from minibert.engine.dropout import dropout_for
from minibert.engine.machine import Machine, choose_device, choose_machine
from minibert.engine.processes import ALONE, here
from minibert.errors import InputError, Say
from minibert.initialization import Init, Manifest, initialize, layer_config, summary
from minibert.masked import self_mlm
from minibert.model import BertClassifier, BertConfig
from minibert.seeds import derive
from minibert.tokenizer import Tokenizer

Head = nn.Module | Callable[[int, int], nn.Module]  # a head, or what makes one: called with (hidden_size, num_labels)


class Ground(NamedTuple):
    """What a run stands on: checkpoint and data. `config` has auto and relative paths resolved.

    Attributes:
        bert_config: the checkpoint's, with the layers that the start needs.
    """

    config: TrainConfig
    init: Init
    machine: Machine
    source: sources.Source
    bert_config: BertConfig
    tokenizer: Tokenizer
    data: Dataset


@dataclass(frozen=True)
class Setup:
    """All that a run starts from. `config` has auto and relative paths resolved."""

    config: TrainConfig
    machine: Machine
    source: sources.Source
    tokenizer: Tokenizer
    data: Dataset
    model: BertClassifier
    manifest: Manifest


def settle(config: TrainConfig, say: Say = print, table: Table | None = None) -> Ground:
    """Settings -> checkpoint and data: whatever can be refused before a model is built. Writes nothing but the cache.

    Args:
        table: data in memory, in place of what `config.data` names.

    Raises:
        InputError: something that the settings name cannot be used.
    """
    init = Init.parse(config.init)
    machine = choose_machine(config.precision, choose_device())
    say(f"minibert on {machine.describe()}, {machine.name}: {machine.why}")
    source = sources.resolve(config.model, init.scheme.needs_weights, say)
    bert_config = layer_config(init, checkpoint.read_config(source.path))
    tokenizer = Tokenizer.load(source.path)
    check_vocabulary(tokenizer, bert_config.vocab_size, source.name)
    data = load_dataset(config, tokenizer, bert_config.max_position_embeddings, table)
    say(f"data: {data.summary}")
    # Resolved, so that a run that goes on elsewhere goes on with the same: also in its number format.
    resolved = {"pool": bert_config.pool if config.pool == "auto" else config.pool, "precision": machine.name}
    resolved["model"] = str(source.path.resolve()) if Path(config.model).is_dir() else source.name
    if table is not None:
        resolved["data"] = IN_MEMORY
    elif config.data not in BUNDLED and Path(config.data).exists():
        resolved["data"] = str(Path(config.data).resolve())
    return Ground(replace(config, **resolved), init, machine, source, bert_config, tokenizer, data)


def make_head(head: Head, hidden_size: int, num_labels: int, seed: int = 0) -> nn.Module:
    """A head of one's own, made under a seed: what its constructor draws is the same every time.

    Raises:
        InputError: `head` cannot be called with the two sizes, or gives no module.
    """
    if isinstance(head, nn.Module):
        return head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "head's constructor"))
        try:
            inspect.signature(head).bind(hidden_size, num_labels)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"head={head!r}: it is called as head(hidden_size, num_labels), here ({hidden_size}, {num_labels}):"
                f" {error}"
            ) from None
        made = head(hidden_size, num_labels)
    if not isinstance(made, nn.Module):
        raise InputError(f"head={head!r} gave {type(made).__name__}; it must give a torch.nn.Module")
    return made


def prepare(config: TrainConfig, say: Say = print, head: Head | None = None, table: Table | None = None) -> Setup:
    """Settings -> checkpoint, data and initialized model, on the CPU. Writes nothing but the cache.

    Args:
        head: in place of the default one, a module from (B, D) to (B, C) or what makes one.
        table: data in memory, in place of what `config.data` names.

    Raises:
        InputError: as settle.
    """
    processes = here()
    config, init, machine, source, bert_config, tokenizer, data = processes.each(settle, config, say, table)
    same = (replace(config, data="", model=""), data.sha256, source.sha256)  # paths may differ between machines
    processes.alike(same, "settings, data or checkpoints")
    learned = None
    if init.scheme.learns:
        (epochs,) = init.numbers(bert_config)
        by_itself = replace(machine, processes=ALONE)
        learned = processes.once(self_mlm, bert_config, data.train, tokenizer, int(epochs), by_itself, say)
    hidden, attention, in_front = config.rates
    bert_config = replace(
        bert_config, num_labels=len(data.labels), pool=config.pool, hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=attention, classifier_dropout=in_front,
    )  # fmt: skip
    if head is not None:
        head = make_head(head, bert_config.hidden_size, bert_config.num_labels, config.seeds.head)
    if processes.world > 1 and any(isinstance(part, _BatchNorm) for part in (head or nn.Identity()).modules()):
        raise InputError("BatchNorm sees the examples of one process alone; take LayerNorm, or train in one process")
    model = BertClassifier(bert_config, head, dropout=dropout_for(machine.device))
    manifest = initialize(model, init, source.path, config.seeds, learned)
    say(f"start: {config.init} ({source.name} {source.sha256[:12]}): {summary(manifest)}")
    return Setup(config, machine, source, tokenizer, data, model, manifest)
