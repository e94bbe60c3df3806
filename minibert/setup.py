"""From settings to all that a run starts from: checkpoint, data, and a model with its starting weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert import checkpoint, sources
from minibert.config import TrainConfig, field_of
from minibert.data import BUNDLED, IN_MEMORY, Dataset, check_vocabulary, load_dataset, read_table
from minibert.data.table import Table
from minibert.engine.dropout import dropout_for
from minibert.engine.machine import Machine, choose_device, choose_machine
from minibert.engine.processes import ALONE, here
from minibert.errors import InputError, Say
from minibert.freezing import freeze, frozen_by
from minibert.heads import HEADS, name_of
from minibert.initialization import Init, Manifest, initialize, layer_config, summary
from minibert.masked import self_mlm
from minibert.model import BertClassifier, BertConfig, called_wrongly, reads_of
from minibert.room import check_room
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


def settle(config: TrainConfig, say: Say = print, table: Table | None = None, own_head: bool = False) -> Ground:
    """Settings -> checkpoint and data: whatever can be refused before a model is built. Writes nothing but the cache.

    Args:
        table: data in memory, in place of what `config.data` names.
        own_head: there will be a head of one's own, so that what it reads is not known yet.

    Raises:
        InputError: something that the settings name cannot be used.
    """
    init = Init.parse(config.init)
    if config.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs a package: pip install -e '.[tensorboard]'")
    named = config.data if table is None else IN_MEMORY
    table = read_table(config) if table is None else table  # first: a wrong column must not wait for a download
    machine = choose_machine(config.precision, choose_device())
    say(f"minibert on {machine.describe()}, {machine.name}: {machine.why}")
    source = sources.resolve(config.model, init.scheme.needs_weights, say)
    bert_config = layer_config(init, checkpoint.read_config(source.path))
    tokenizer = Tokenizer.load(source.path)
    check_vocabulary(tokenizer, bert_config.vocab_size, source.name)
    if init.scheme.needs_weights:
        checkpoint.check_room(bert_config, source.path)
    frozen_by(config.freeze, bert_config.num_hidden_layers)  # refuses layers that are not there
    pool = config.pool if own_head else pool_for(config.pool, HEADS[config.head], bert_config)
    data = load_dataset(config, tokenizer, bert_config.max_position_embeddings, table)
    if data.pairs and bert_config.type_vocab_size < 2:
        raise InputError(f"{source.name} has one token type; second texts (text_b) need a --model with two")
    say(f"data: {data.summary}")
    # Resolved, so that a run that goes on elsewhere goes on with the same: also in its number format.
    resolved = {"pool": pool, "precision": machine.name}
    resolved["model"] = str(source.path.resolve()) if Path(config.model).is_dir() else source.name
    if named not in (*BUNDLED, IN_MEMORY) and Path(named).exists():
        named = str(Path(named).resolve())
    resolved["data"] = named
    return Ground(replace(config, **resolved), init, machine, source, bert_config, tokenizer, data)


def pool_for(wanted: str, head: object, config: BertConfig) -> str:
    """What --pool comes to for a head: "cls", "mean", or "tokens", where the head reads them all.

    Raises:
        InputError: `wanted` is not what the head reads.
    """
    if reads_of(head) == "tokens":
        if wanted not in ("auto", "tokens"):
            raise InputError(f"--pool {wanted}: this head reads all tokens, and nothing pools them; leave --pool out")
        return "tokens"
    if wanted == "tokens":
        raise InputError("--pool tokens: this head reads one vector; give --head attention, or leave --pool out")
    if wanted == "auto":  # a checkpoint that was saved with a head over tokens has no pooler
        return "mean" if config.pool == "tokens" else config.pool
    return wanted


def make_head(head: Head, hidden_size: int, num_labels: int, seed: int = 0) -> nn.Module:
    """A head of one's own, made under a seed: what its constructor draws is the same every time.

    Raises:
        InputError: `head` cannot be called with the two sizes, gives no module, or one that reads what there is not.
    """
    if isinstance(head, nn.Module):
        return checked(head, hidden_size, num_labels)
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
    return checked(made, hidden_size, num_labels)


def checked(head: nn.Module, hidden_size: int, num_labels: int) -> nn.Module:
    """`head`, which gives logits for two rows of zeros."""
    name = type(head).__name__
    try:
        tokens = reads_of(head) == "tokens"
    except ValueError as error:
        raise InputError(f"head={name}: {error}") from None
    wrongly = called_wrongly(head, tokens)
    if wrongly:
        raise InputError(f"head={name}: {wrongly}")
    given = (torch.zeros(2, 3, hidden_size), torch.ones(2, 3, dtype=torch.bool))
    training = head.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = head.eval()(*(given if tokens else (given[0][:, 0],)))
        found = f"gives {list(logits.shape)}" if isinstance(logits, Tensor) else f"gives a {type(logits).__name__}"
    except Exception as error:  # a head may raise anything
        logits, found = None, f"raises {type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''})"
    head.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_labels):
        shape = [2, 3, hidden_size] if tokens else [2, hidden_size]
        raise InputError(
            f"head={name} {found} for {shape}; it must give {[2, num_labels]}:"
            f" minibert.testing.check_head({name}, {hidden_size}, {num_labels}) looks for what is wrong"
        )
    return head


def prepare(
    config: TrainConfig, say: Say = print, head: Head | None = None, table: Table | None = None, trains: bool = True
) -> Setup:
    """Settings -> checkpoint, data and initialized model, on the CPU. Writes nothing but the cache.

    Args:
        head: in place of `config.head`, a module from what it reads (see `reads_of`) to (B, C) or what makes one.
        table: data in memory, in place of what `config.data` names.
        trains: whether there has to be room for training.

    Raises:
        InputError: as settle and check_room.
    """
    if head is not None and config.head != field_of("head").default:
        raise InputError(f"head twice: one of your own, and TrainConfig(head={config.head!r}); leave one out")
    processes = here()
    ground = processes.each(settle, config, say, table, head is not None)
    config, init, machine, source, bert_config, tokenizer, data = ground
    same = (replace(config, data="", model=""), data.sha256, source.sha256)  # paths may differ between machines
    processes.alike(same, "settings, data or checkpoints")
    hidden, attention, in_front = config.rates
    if head is not None:
        head = make_head(head, bert_config.hidden_size, len(data.labels), config.seeds.head)
        config = replace(config, pool=pool_for(config.pool, head, bert_config))
    plain, bert_config = bert_config, replace(
        bert_config, num_labels=len(data.labels), pool=config.pool, hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=attention, classifier_dropout=in_front,
    )  # fmt: skip
    if trains:
        processes.each(check_room, config, bert_config, head, data, machine, say)
    learned = None
    if init.scheme.learns:
        (epochs,) = init.numbers(plain)
        by_itself, saves_memory = replace(machine, processes=ALONE), config.gradient_checkpointing
        learned = processes.once(self_mlm, plain, data.train, tokenizer, int(epochs), by_itself, say, saves_memory)
    dropout = dropout_for(machine.device)
    model = BertClassifier(
        bert_config, HEADS[config.head](bert_config, dropout) if head is None else head, None, dropout
    )
    manifest = initialize(model, init, source.path, config.seeds, learned)
    if name_of(model.head) != field_of("head").default:
        what = {"cls": "[CLS] through the pooler", "mean": "the mean of the tokens", "tokens": "all tokens, no pooler"}
        say(f"head: {name_of(model.head)}; it reads {what[config.pool]}")
    say(f"start: {config.init} ({source.name} {source.sha256[:12]}): {summary(manifest)}")
    for line in freeze(model, config):
        say(line)
    return Setup(config, machine, source, tokenizer, data, model, manifest)
