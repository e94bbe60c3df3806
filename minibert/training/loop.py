"""The training loop: steps over a cursor of epoch and step, and what is kept after each epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from minibert import checkpoint
from minibert.config import TrainConfig
from minibert.data.table import Table
from minibert.engine import Engine, assemble
from minibert.engine.epochs import Batches, Cursor, Plan, Watch, own_random_numbers, steps
from minibert.engine.network import twin
from minibert.engine.optimizer import Schedule, warmup_steps
from minibert.engine.processes import Processes, here, joined
from minibert.engine.step import Loss, balanced, classification
from minibert.errors import InputError, LostProcessError, Say, Stopped
from minibert.evaluation import predict, report
from minibert.files import locked, write_json
from minibert.inside import INPUTS, choose, look
from minibert.launch import launch
from minibert.lines import tell
from minibert.progress import Progress
from minibert.setup import Head, Setup, prepare
from minibert.training import folder
from minibert.training.board import Board
from minibert.training.keeper import Keeper, how_to_go_on
from minibert.training.screen import HEADER, closing, opening, row_lines
from minibert.verdict import in_words, streak


def train(config: TrainConfig, say: Say = tell, head: Head | None = None, table: Table | None = None) -> Path:
    """A new run, to its end.

    Args:
        head, table: a head of one's own, data in memory; a run with either can only be gone on with by who has them.

    Returns:
        The run's folder.

    Raises:
        InputError: as prepare; an --out that is not empty; a gradient that is not finite.
    """
    with joined() as processes:
        once, say = processes.once, processes.voice(say)
        if once(goes_on, config, *processes.most(launch().restarts)):
            return resume(Path(config.out), say)
        if config.out is not None:
            once(folder.check_free, config.out)  # before anything long begins
        setup = prepare(config, say, head, table)
        plan_of(setup)  # what it refuses leaves no folder
        path = once(folder.new_folder, config.out, config.init)
        once(folder.begin, path, setup)
        with holding(path, processes):
            can_go_on = config.save and head is None and table is None
            with stoppable(path) if can_go_on else nullcontext():
                return fit(setup, path, None, say, obeys=can_go_on)


def goes_on(config: TrainConfig, restarts: int) -> bool:
    """Whether torchrun has started this command anew, and an earlier try has left a run to go on with.

    Args:
        restarts: how often it has; each machine counts those that began there.

    Raises:
        InputError: it is to be started anew where needed, and could not know with which run to go on.
    """
    if launch().max_restarts and config.out is None:
        raise InputError("--max-restarts needs --out: a process that is started anew goes on with the run there")
    if not restarts or not (Path(config.out) / "config.json").is_file():
        return False
    left, _ = folder.read_run(Path(config.out))
    pairs = zip(astuple(config), astuple(left))  # of the run left, with auto and relative paths resolved
    return all(value in ("auto", was) or str(Path(str(value)).resolve()) == was for value, was in pairs)


def resume(path: Path, say: Say = tell) -> Path:
    """Go on with a run that was stopped, where its last state stands, with its own settings.

    Raises:
        InputError: not a run, one that has ended, or its data or checkpoint are not what they were.
    """
    with joined() as processes:
        processes.once(folder.read_run, path)  # before a lock is made in what is no run
        with holding(path, processes):
            return go_on(path, processes.voice(say))


def go_on(path: Path, say: Say) -> Path:
    """`resume`, where nobody else is at the run."""
    config, content = here().once(folder.read_run, path)
    if not config.save:
        raise InputError(f"{path} was trained with --no-save, so there is nothing to go on from; start it anew")
    if "ended" in content:
        raise InputError(f"{path} has ended: python eval.py {path} reports on it")
    if content.get("head"):
        raise InputError(f"{path} has a head of your own, {content['head']}; train it anew in Python")
    state = here().once(folder.load_state, path)
    setup = prepare(config, say)
    for name, was, now in (
        ("the data", content["dataset"]["sha256"], setup.data.sha256),
        ("the checkpoint", content["checkpoint"]["sha256"], setup.source.sha256),
    ):
        if was != now:
            raise InputError(f"{name} of {path} changed since it started (SHA-256 {was[:12]}, now {now[:12]})")
    was = f"{content.get('device')}, torch {content.get('versions', {}).get('torch')}"
    now = f"{setup.machine.describe()}, torch {folder.installed('torch')}"
    if was != now:
        say(f"it began on {was}; now {now}: the last bits may differ from a run that never was stopped")
    with stoppable(path):
        return fit(setup, path, state, say, obeys=True)


@contextmanager
def holding(path: Path, processes: Processes) -> Iterator[None]:
    """Keep others from the run; the first of its processes holds it for all.

    Raises:
        InputError: one is at it already.
    """
    with ExitStack() as stack:
        processes.once(stack.enter_context, held(path))
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    with locked(path / "lock") as free:
        if not free:
            raise InputError(f"another process is training {path}; wait for it, or stop it first")
        yield
        (path / "lock").unlink(missing_ok=True)  # the run has ended


@contextmanager
def stoppable(path: Path) -> Iterator[None]:
    """What stops a run, while open, says how to go on.

    Raises:
        Stopped: in place of KeyboardInterrupt.
        LostProcessError: another process has gone.
    """
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped(f"{how_to_go_on(path)} goes on from its last snapshot") from None
    except LostProcessError as error:
        raise LostProcessError(f"{error}; {how_to_go_on(path)} goes on from its last snapshot") from None


def plan_of(setup: Setup) -> Plan:
    """
    Raises:
        InputError: batches of one example, and BatchNorm in the head, which has no variance of one to divide by; or
            several processes, of which it would see one's examples alone.
    """
    config, examples, seeds = setup.config, len(setup.data.train), setup.config.seeds
    least = 2 if any(isinstance(part, _BatchNorm) for part in setup.model.head.modules()) else 1
    if least > 1 and setup.machine.processes.world > 1:
        raise InputError("BatchNorm, which is in this head, needs all of a batch in one process; take LayerNorm")
    if min(examples, config.batch_size) < least:
        raise InputError(f"--batch-size {config.batch_size}, {examples:,} examples: BatchNorm, which is in this head,"
                         " needs at least 2 in a batch")  # fmt: skip
    return Plan(examples, config.epochs, config.batch_size, config.accumulate, seeds.order, seeds.dropout, least=least)


def engine_of(setup: Setup, plan: Plan, say: Say) -> Engine:
    config, total = setup.config, plan.epochs * plan.steps
    return assemble(
        setup.model, [setup.data.train, setup.data.val], setup.machine,
        Schedule(config.lr, total, warmup_steps(config.warmup, total)), accumulate=config.accumulate,
        weight_decay=config.weight_decay, bias_correction=config.bias_correction, clip=config.clip,
        loss=loss_of(setup), say=say,
    )  # fmt: skip


def loss_of(setup: Setup) -> Loss:
    """What training makes small; validation and reports have the plain cross-entropy whatever the settings."""
    config, data = setup.config, setup.data
    weight = None
    if config.class_weights == "balanced":
        weight = balanced(torch.from_numpy(data.train.labels), len(data.labels)).to(setup.machine.device)
    return partial(classification, weight=weight, label_smoothing=config.label_smoothing)


def batches_of(engine: Engine, plan: Plan) -> Batches:
    """The batches of a step, from the training split; of several processes, this one's share of its examples."""

    def batches(chosen: Sequence[int]) -> tuple[Sequence[Any], int]:
        parts = plan.batches(engine.machine.processes.share(chosen))
        return [engine.network.batch(engine.splits[0], part) for part in parts], len(chosen)

    return batches


def fit(setup: Setup, path: Path, state: folder.SavedState | None, say: Say, obeys: bool = False) -> Path:
    """Train from `state` (None: from the start) to the last epoch; keep the best epoch in PATH/model.

    Args:
        obeys: whether a signal ends the run in order, saved behind a step.
    """
    config, data, processes = setup.config, setup.data, setup.machine.processes
    plan, once = plan_of(setup), processes.once
    history: list[dict[str, Any]] = []
    cursor, seconds = Cursor(), 0.0
    if state is not None:
        tensors, history, cursor, seconds = state
        once(folder.write_history, path, history)  # a kill may have come between the state and the row
        where = f"in epoch {cursor.epoch}, after step {cursor.step:,} of {plan.steps:,}"
        say(f"resuming {where if cursor.step else f'after epoch {cursor.epoch - 1} of {config.epochs}'}")
    board = Board(path, history) if config.tensorboard and not processes.rank else None
    keeper = Keeper(path, config.save_every if config.save else 0, obeys)
    if cursor.epoch <= config.epochs:
        engine = engine_of(setup, plan, say)
        if state is not None:
            try:
                engine.load_state_dict(tensors)
            except KeyError as error:
                raise InputError(f"{path}: its state lacks {error}; start the run anew") from None
        elif config.layers:
            once(lambda: write_json(path / "start.json", parts_now(engine, setup)))
        for line in opening(config, plan.steps, plan.size, engine.schedule.warmup, path):
            say(line)
        for line in HEADER:
            say(line)
    while cursor.epoch <= config.epochs:
        if 0 < config.stop_on_collapse <= len(streak(history)):  # before an epoch: a resumed run asks, too
            say(f"stopping: --stop-on-collapse {config.stop_on_collapse}, {in_words(history)}")
            break
        best = folder.best_of(history, config.select)["epoch"] if history else 0
        if 0 < config.early_stopping <= len(history) - best:
            say(f"stopping: --early-stopping {config.early_stopping}, no better {config.select} since epoch {best}")
            break
        row = once(dict, one_epoch(engine, setup, plan, cursor, path, history, keeper, seconds))
        history, cursor, seconds = [*history, row], Cursor(cursor.epoch + 1), 0.0
        # In this order a kill at any moment loses the epoch at most, and the next try comes to the same result.
        if config.save:
            if folder.best_of(history, config.select) is row:
                once(lambda: checkpoint.save_pretrained(engine.model(), path / "model", data.labels))
            tensors = engine.state_dict() if cursor.epoch <= config.epochs else {}  # behind the last, nobody needs them
            once(folder.save_state, path, folder.SavedState(tensors, history, cursor))
        once(folder.append_row, path, row)
        if board is not None:
            board.add(row)
        for line in row_lines(history):
            say(line)
    if board is not None:
        board.close()
    once(folder.end, path, history)
    for line in closing(history, config, path):
        say(line)
    return path


def one_epoch(
    engine: Engine, setup: Setup, plan: Plan, cursor: Cursor, path: Path, history: list[dict[str, Any]],
    keeper: Keeper, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Train from `cursor` to the end of its epoch and validate.

    Args:
        history: the rows of the epochs before; seconds: what this one has taken already.

    Returns:
        The epoch's row in metrics.jsonl.

    Raises:
        InputError: gradients that are not finite.
        Stopped: a signal came; the run is saved behind a step.
    """
    data, val_split, processes = setup.data, engine.splits[1], engine.machine.processes

    def unusable(step: int) -> InputError:
        lr = engine.schedule.rate(step - 1)
        return InputError(
            f"the gradient is not finite at step {step} (lr {lr:.2g}); lower --lr or lengthen --warmup. {path} keeps"
            " the epochs before"
        )

    def save(now: Cursor) -> None:
        spent = seconds + time.monotonic() - start
        processes.once(folder.save_state, path, folder.SavedState(engine.state_dict(), history, now, spent))

    done = (cursor.epoch - 1) * plan.examples
    bar = Progress(plan.epochs * plan.examples, done + cursor.step * plan.size)
    watch, start = Watch(engine, unusable), time.monotonic()
    if not cursor.step:
        engine.state.sums.clear()
    try:
        with own_random_numbers(engine.machine.device), keeper.listening():
            for now in steps(engine, plan, cursor, batches_of(engine, plan)):
                watch.look()
                bar.reach(done + min(plan.examples, now.step * plan.size), lambda: progress_text(cursor, plan, watch))
                keeper.look(now, save)
        seen = watch.read(engine.sums())
    finally:
        bar.clear()
    seconds += time.monotonic() - start
    val = report(predict(engine.network, val_split, processes=processes), val_split.labels, data.labels)
    taken = int(engine.state.optimizer.steps)
    return {
        "epoch": cursor.epoch, "train_loss": seen.loss, "train_accuracy": seen.accuracy, "val_loss": val["loss"],
        "val_accuracy": val["accuracy"], "val_macro_f1": val["macro_f1"],
        "lr": engine.schedule.rate(max(0, taken - 1)),
        "seconds": seconds, "examples_per_second": plan.examples / seconds, "step": taken,
        "skipped_steps": seen.skipped, "val_majority": val["majority"], "verdict": val["verdict"],
    } | ({"parts": parts_now(engine, setup)} if setup.config.layers else {})  # fmt: skip


def parts_now(engine: Engine, setup: Setup) -> list[dict[str, Any]]:
    """Of each part of the network as it is now: the norm of its gradient, the mean cosine between inputs' [CLS].

    In float32 and without dropout, whatever trains. `cls` is None where there is no [CLS]: in pooler and head.
    """
    train_split, model = engine.splits[0], twin(engine.trained, {})  # its own modules: no mode or hook is left behind
    batch = choose(train_split, INPUTS, engine.words.pad_id).to(engine.machine.device)
    parts = look(model.eval(), batch, setup.manifest)
    return [{"name": part.name, "gradient": part.gradient, "cls": part.cls} for part in parts]


def progress_text(cursor: Cursor, plan: Plan, watch: Watch) -> str:
    seen = watch.read()
    return f"epoch {cursor.epoch}/{plan.epochs}  loss {seen.loss:.3f}  acc {seen.accuracy:.3f}"
