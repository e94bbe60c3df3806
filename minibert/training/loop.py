"""The training loop: steps over a cursor of epoch and step, and what is kept after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from minibert import checkpoint
from minibert.engine import Engine, assemble
from minibert.engine.culprit import NORM, first_not_finite
from minibert.engine.epochs import Batches, Cursor, Plan, Watch, own_random_numbers, steps
from minibert.engine.network import twin
from minibert.engine.optimizer import Schedule, warmup_steps
from minibert.engine.step import Loss, balanced, classification
from minibert.errors import InputError, Say
from minibert.evaluation import predict, report
from minibert.files import write_json
from minibert.inside import INPUTS, choose, look
from minibert.progress import Progress
from minibert.setup import Setup
from minibert.training import folder
from minibert.training.board import Board
from minibert.training.keeper import Keeper
from minibert.training.screen import HEADER, closing, opening, row_lines
from minibert.verdict import in_words, streak

MOST_STEPS = 10_000_000  # of a run: each has 80 bytes in a table (AdamW.numbers), and half a second or so to go


def plan_of(setup: Setup) -> Plan:
    """
    Raises:
        InputError: batches of one example, and BatchNorm in the head, which has no variance of one to divide by; or
            several processes, of which it would see one's examples alone; more steps than a table has room for.
    """
    config, examples, seeds = setup.config, len(setup.data.train), setup.config.seeds
    least = 2 if any(isinstance(part, _BatchNorm) for part in setup.model.head.modules()) else 1
    if least > 1 and setup.machine.processes.world > 1:
        raise InputError("BatchNorm, which is in this head, needs all of a batch in one process; take LayerNorm")
    if min(examples, config.batch_size) < least:
        raise InputError(f"--batch-size {config.batch_size}, {examples:,} examples: BatchNorm, which is in this head,"
                         " needs at least 2 in a batch")  # fmt: skip
    plan = Plan(examples, config.epochs, config.batch_size, config.accumulate, seeds.order, seeds.dropout, least=least)
    if plan.epochs * plan.steps > MOST_STEPS:
        raise InputError(f"--epochs {plan.epochs:,} of {plan.steps:,} steps; {MOST_STEPS:,} steps in all are the most")
    return plan


def engine_of(setup: Setup, plan: Plan, say: Say) -> Engine:
    config, total = setup.config, plan.epochs * plan.steps
    encoder = {name for name, p in setup.model.named_parameters() if name.startswith("bert.") and p.requires_grad}
    return assemble(
        setup.model, [setup.data.train, setup.data.val], setup.machine,
        Schedule(config.lr, total, warmup_steps(config.warmup, total)), accumulate=config.accumulate,
        weight_decay=config.weight_decay, bias_correction=config.bias_correction, clip=config.clip,
        loss=loss_of(setup), say=say, late=encoder if config.freeze_encoder_epochs else (),
        checkpointing=config.gradient_checkpointing,
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
    keeper = Keeper(path, setup.config.save_every if setup.config.save else 0, obeys)
    with keeper.listening():
        return fit_heeding(keeper, setup, path, state, say)


def fit_heeding(keeper: Keeper, setup: Setup, path: Path, state: folder.SavedState | None, say: Say) -> Path:
    """`fit`, saved when `keeper` says so."""
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
    if cursor.epoch <= config.epochs:
        engine = engine_of(setup, plan, say)
        if state is not None:
            try:
                engine.load_state_dict(tensors)
            except KeyError as error:
                raise InputError(f"{path}: its state lacks {error}; start the run anew") from None
            except RuntimeError as error:
                raise InputError(f"{path}: its state is of another version ({error}); start the run anew") from None
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
        if config.freeze_encoder_epochs:
            engine.hold(cursor.epoch <= config.freeze_encoder_epochs)
        row = once(dict, one_epoch(engine, setup, plan, cursor, path, history, keeper, seconds))
        history, cursor, seconds = [*history, row], Cursor(cursor.epoch + 1), 0.0
        once(folder.check_there, path)
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
    for line in closing(history, config, path, folder.own_head(setup)):
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
        InputError: gradients or a validation loss that are not finite.
        Stopped: a signal came; the run is saved behind a step.
    """
    data, val_split, now, processes = setup.data, engine.splits[1], cursor, engine.machine.processes
    kept = f"{path} keeps {'its last snapshot' if setup.config.save else 'the rows before'}"

    def unusable(back: int) -> InputError:
        return InputError(f"{bad_step(engine, plan, now, back)}. {kept}")

    def save(now: Cursor) -> None:
        spent = took or seconds + time.monotonic() - start
        processes.once(folder.check_there, path)
        processes.once(folder.save_state, path, folder.SavedState(engine.state_dict(), history, now, spent))

    done = (cursor.epoch - 1) * plan.examples
    bar = Progress(plan.epochs * plan.examples, done + cursor.step * plan.size)
    if not cursor.step:
        engine.state.sums.clear()
    watch, start, took = Watch(engine, unusable, setup.config.patience), time.monotonic(), 0.0
    try:
        with own_random_numbers(engine.machine.device):
            for now in steps(engine, plan, cursor, batches_of(engine, plan)):
                reached = min(plan.examples, now.step * plan.size)
                watch.look(reached)
                bar.reach(done + reached, lambda: progress_text(cursor, plan, watch))
                keeper.look(now, save)
        seen = watch.read()
        if watch.in_a_row and seen.skipped == plan.steps:
            raise unusable(1)  # not one step of the epoch could be taken
    finally:
        bar.clear()
    took = seconds + time.monotonic() - start
    outputs = predict(engine.network, val_split, processes=processes, behind=lambda: keeper.heed(now, save))
    val = report(outputs, val_split.labels, data.labels)
    if not math.isfinite(val["loss"]):
        raise InputError(
            f"the validation loss of epoch {cursor.epoch} is not finite; lower --lr or lengthen --warmup. {kept}"
        )
    taken = int(engine.state.optimizer.steps)
    return {
        "epoch": cursor.epoch, "train_loss": seen.loss, "train_accuracy": seen.accuracy, "val_loss": val["loss"],
        "val_accuracy": val["accuracy"], "val_macro_f1": val["macro_f1"],
        "lr": engine.schedule.rate(max(0, taken - 1)),
        "seconds": took, "examples_per_second": plan.examples / took, "step": taken,
        "skipped_steps": seen.skipped, "val_majority": val["majority"], "verdict": val["verdict"],
    } | ({"parts": parts_now(engine, setup)} if setup.config.layers else {})  # fmt: skip


def bad_step(engine: Engine, plan: Plan, behind: Cursor, back: int) -> str:
    """What is to be said of a step whose gradient was not finite, and of what it was given.

    Args:
        behind: where the run stands; back: how many steps before that the first bad one may lie.
    """
    last, bad = (behind.epoch - 1) * plan.steps + behind.step, Cursor(behind.epoch, behind.step - 1)
    chosen = plan.rows(bad.epoch)[bad.step]
    with own_random_numbers(engine.machine.device):
        torch.manual_seed(plan.seed(bad, engine.machine.processes.rank))
        batches, count = batches_of(engine, plan)(chosen)
        culprits = engine.machine.processes.gather(first_not_finite(engine, batches, engine.count(count)))
    culprit = next((found for found in culprits if found != NORM), NORM)
    lr = engine.schedule.rate(int(engine.state.optimizer.steps))
    rows = checkpoint.brief([str(row) for row in engine.splits[0].rows[chosen]], 8)
    return (
        f"the gradient is not finite at {f'step {last}' if back == 1 else f'one of steps {last - back + 1} to {last}'}"
        f" (lr {lr:.2g}): {culprit} was so first; row{'s' * (len(chosen) > 1)} {rows} of the data, counted from 0."
        " Lower --lr, lengthen --warmup, or --on-nonfinite skip"
    )


def parts_now(engine: Engine, setup: Setup) -> list[dict[str, Any]]:
    """Of each part of the network as it is now: the norm of its gradient, the mean cosine between inputs' [CLS].

    In float32 and without dropout, whatever trains. `cls` is None where there is no [CLS]: in pooler and head.
    """
    train_split, model = engine.splits[0], twin(engine.trained, {})  # its own modules: no mode or hook is left behind
    batch = choose(train_split, INPUTS, engine.words.pad_id).to(engine.machine.device)
    parts = look(model.eval(), batch, setup.manifest)
    finite = lambda number: number if number is None or math.isfinite(number) else None  # noqa: E731  JSON has no NaN
    return [{"name": part.name, "gradient": finite(part.gradient), "cls": finite(part.cls)} for part in parts]


def progress_text(cursor: Cursor, plan: Plan, watch: Watch) -> str:
    seen = watch.seen
    return f"epoch {cursor.epoch}/{plan.epochs}  loss {seen.loss:.3f}  acc {seen.accuracy:.3f}"
