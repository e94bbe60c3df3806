"""The training loop."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from minibert import checkpoint, fast, sources
from minibert.config import TrainConfig
from minibert.data import BUNDLED, Dataset, Examples, check_vocabulary, load_dataset
from minibert.data.batches import Batch, PackedBatch, collate, pack
from minibert.errors import InputError, Say
from minibert.evaluation import predict, report
from minibert.files import write_json
from minibert.initialization import Init, Manifest, initialize, layer_config, summary
from minibert.model import BertClassifier
from minibert.precision import LossScaler, Precision, choose_device, choose_precision
from minibert.seeds import derive
from minibert.tokenizer import Tokenizer
from minibert.training import run
from minibert.training.mlm import self_mlm
from minibert.training.optimizer import WORTH_COMPILING, AdamW, clipped_step, linear_schedule, warmup_steps
from minibert.training.progress import Progress, duration
from minibert.training.rows import OccurringRows
from minibert.verdict import advice, in_words, streak


@dataclass(frozen=True)
class Setup:
    """All that a run starts from. `config` has auto and relative paths resolved."""

    config: TrainConfig
    precision: Precision
    source: sources.Source
    tokenizer: Tokenizer
    data: Dataset
    model: BertClassifier
    manifest: Manifest


def prepare(config: TrainConfig, say: Say = print) -> Setup:
    """Settings -> checkpoint, data and initialized model, on the CPU. Writes nothing but the cache.

    Raises:
        InputError: something that the settings name cannot be used.
    """
    init = Init.parse(config.init)
    precision = choose_precision(config.precision, choose_device())
    say(f"minibert on {run.device_name(precision.device)}, {precision.name}: {precision.why}")
    source = sources.resolve(config.model, init.scheme.needs_weights, say)
    bert_config = layer_config(init, checkpoint.read_config(source.path))
    tokenizer = Tokenizer.load(source.path)
    check_vocabulary(tokenizer, bert_config.vocab_size, source.name)
    data = load_dataset(config, tokenizer, bert_config.max_position_embeddings)
    say(f"data: {data.summary}")
    learned = None
    if init.scheme.learns:
        (epochs,) = init.numbers(bert_config)
        learned = self_mlm(bert_config, data.train, tokenizer, int(epochs), precision, say)
    hidden, attention, head = config.rates
    pool = bert_config.pool if config.pool == "auto" else config.pool
    bert_config = replace(
        bert_config, num_labels=len(data.labels), pool=pool, hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=attention, classifier_dropout=head,
    )  # fmt: skip
    model = BertClassifier(bert_config)
    manifest = initialize(model, init, source.path, config.seeds, learned)
    say(f"start: {config.init} ({source.name} {source.sha256[:12]}): {summary(manifest)}")
    resolved = {"pool": pool, "model": str(source.path.resolve()) if Path(config.model).is_dir() else source.name}
    if config.data not in BUNDLED and Path(config.data).exists():
        resolved["data"] = str(Path(config.data).resolve())
    return Setup(replace(config, **resolved), precision, source, tokenizer, data, model, manifest)


def train(config: TrainConfig, say: Say = print) -> Path:
    """A new run, to its end.

    Returns:
        The run's folder.

    Raises:
        InputError: as prepare; an --out that is not empty; a gradient that is not finite.
    """
    if config.out is not None:
        run.check_free(config.out)  # before anything long begins
    setup = prepare(config, say)
    path = run.new_folder(config.out, config.init)
    facts = {
        "checkpoint": {"name": setup.source.name, "sha256": setup.source.sha256},
        "dataset": {"summary": setup.data.summary, "sha256": setup.data.sha256, "labels": setup.data.labels},
        "device": run.device_name(setup.precision.device),
        "precision": setup.precision.name,
    }
    (path / "model").mkdir()
    setup.tokenizer.save(path / "model")
    write_json(path / "manifest.json", setup.manifest)
    run.write_config(path, setup.config, facts)
    return fit(setup, path, None, say)


def resume(path: Path, say: Say = print) -> Path:
    """Go on with a run that was stopped, at the epoch after its last whole one, with its own settings.

    Raises:
        InputError: not a run, one that has ended, or its data or checkpoint are not what they were.
    """
    config, content = run.read_config(path)
    if "ended" in content:
        raise InputError(f"{path} has ended: python eval.py {path} reports on it")
    state = run.load_state(path)
    setup = prepare(config, say)
    for name, was, now in (
        ("the data", content["dataset"]["sha256"], setup.data.sha256),
        ("the checkpoint", content["checkpoint"]["sha256"], setup.source.sha256),
    ):
        if was != now:
            raise InputError(f"{name} of {path} changed since it started (SHA-256 {was[:12]}, now {now[:12]})")
    return fit(setup, path, state, say)


def fit(setup: Setup, path: Path, state: tuple[dict, dict] | None, say: Say) -> Path:
    """Train from `state` (None: from the start) to the last epoch; keep the best epoch in PATH/model."""
    config, data, device = setup.config, setup.data, setup.precision.device
    per_epoch = math.ceil(math.ceil(len(data.train) / config.batch_size) / config.accumulate)
    total = config.epochs * per_epoch
    warmup = warmup_steps(config.warmup, total)
    machine = assemble(setup.model, [data.train, data.val], config, setup.precision, total, state and state[0], say)
    model, optimizer, rows, (train_split, val_split), make_batch = machine
    scaler = LossScaler(setup.precision.name == "fp16")
    progress = {"epoch": 0, "step": 0, "rows": [], "scale": scaler.scale, "good_steps": 0}
    if state is not None:
        progress = state[1]
        scaler.scale, scaler.good_steps = progress["scale"], progress["good_steps"]
        run.write_rows(path, progress["rows"])  # a kill may have come between the state and the row
        say(f"resuming after epoch {progress['epoch']} of {config.epochs}")
    size = config.batch_size * config.accumulate
    say(
        f"{config.epochs} epoch{'s' * (config.epochs > 1)} of {per_epoch:,} steps, {size} examples a step,"
        f" warmup {warmup:,} steps, lr {config.lr:g}; the run's folder is {path}"
    )
    say("epoch  train loss  train acc  val loss  val acc        lr    ex/s   time    verdict")
    bar = Progress(config.epochs * len(train_split), progress["epoch"] * len(train_split))
    for epoch in range(progress["epoch"] + 1, config.epochs + 1):
        if 0 < config.stop_on_collapse <= len(streak(progress["rows"])):  # before an epoch: a resumed run asks, too
            say(f"stopping: --stop-on-collapse {config.stop_on_collapse}, {in_words(progress['rows'])}")
            break
        start = time.monotonic()
        tally, skipped = Tally(), 0
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Streams that depend on the epoch alone: a resumed run draws what the whole one would have drawn.
            torch.manual_seed(derive(config.seeds.dropout, "dropout", epoch))
            generator = torch.Generator().manual_seed(derive(config.seeds.order, "order", epoch))
            order = torch.randperm(len(train_split), generator=generator).tolist()
            for first in range(0, len(order), size):
                chosen = order[first : first + size]
                parts = [chosen[i : i + config.batch_size] for i in range(0, len(chosen), config.batch_size)]
                micro = [make_batch(train_split, part) for part in parts]
                lr = config.lr * linear_schedule(progress["step"], total, warmup)
                result = training_step(model, optimizer, micro, lr, config.clip, setup.precision, scaler)
                if not result.stepped:
                    skipped += 1
                    if scaler.spent:
                        bar.clear()
                        raise InputError(
                            f"the gradient is not finite at step {progress['step'] + 1} (lr {lr:.2g});"
                            f" lower --lr or lengthen --warmup. {path} keeps the epochs before"
                        )
                progress["step"] += result.stepped
                tally.add(result)
                bar.advance(len(chosen), lambda: f"epoch {epoch}/{config.epochs}  {tally}")  # noqa: B023
        seconds = time.monotonic() - start
        val = report(predict(model, val_split, setup.precision, rows.pad_id), val_split.labels, data.labels)
        row = {
            "epoch": epoch, "train_loss": tally.loss, "train_accuracy": tally.accuracy, "val_loss": val["loss"],
            "val_accuracy": val["accuracy"], "lr": lr, "seconds": seconds,
            "examples_per_second": len(order) / seconds, "step": progress["step"], "skipped_steps": skipped,
            "val_majority": val["majority"], "verdict": val["verdict"],
        }  # fmt: skip
        best = all(row["val_accuracy"] > earlier["val_accuracy"] for earlier in progress["rows"])  # ties: the earlier
        progress |= {"epoch": epoch, "rows": [*progress["rows"], row], "scale": scaler.scale,
                     "good_steps": scaler.good_steps}  # fmt: skip
        # In this order a kill at any moment loses the epoch at most, and the next try comes to the same result.
        if best:
            with rows.whole(optimizer.shrinkage) as whole:
                checkpoint.save_pretrained(whole, path / "model", data.labels)
        if epoch < config.epochs:
            tensors = {f"model.{name}": t.cpu() for name, t in model.state_dict().items()}
            tensors |= {f"adamw.{name}": t.cpu() for name, t in optimizer.state_dict().items()}
            run.save_state(path, tensors, progress)
        run.append_row(path, row)
        bar.clear()
        say(
            f"{epoch:>5}  {row['train_loss']:>10.3f}  {row['train_accuracy']:>9.3f}  {row['val_loss']:>8.3f}"
            f"  {row['val_accuracy']:>7.3f}  {lr:>8.1e}  {row['examples_per_second']:>6.0f}   {duration(seconds):<6}"
            f"  {in_words(progress['rows'])}" + (f"   {skipped} steps skipped (fp16 overflow)" if skipped else "")
        )
    end_run(path, progress["rows"], config.bias_correction, say)
    return path


class Machine(NamedTuple):
    """What trains: model and optimizer, the splits renumbered for the rows that occur, and how batches are made."""

    model: BertClassifier
    optimizer: AdamW
    rows: OccurringRows
    splits: list[Examples]
    make_batch: Callable[[Examples, Sequence[int]], Batch | PackedBatch]


def assemble(
    model: BertClassifier,
    splits: list[Examples],
    config: TrainConfig,
    precision: Precision,
    total: int,
    state: dict[str, torch.Tensor] | None = None,
    say: Say = print,
) -> Machine:
    """The model on its device with all that makes `total` steps fast there, and where `state` left it."""
    rows = OccurringRows(model, splits)
    small = [rows.renumber(split) for split in splits]
    fast.place(model, precision.device)
    if state is not None:
        model.load_state_dict(part(state, "model."))
    quick = fast.takes_packed(model)
    # bf16 is too coarse to add the gradients of several batches up in
    half = fast.half_weights(model, precision) if quick and config.accumulate == 1 else {}
    optimizer = AdamW(
        model.named_parameters(), weight_decay=config.weight_decay, bias_correction=config.bias_correction, half=half
    )
    if state is not None:
        optimizer.load_state_dict(part(state, "adamw."))
    if quick:
        if total * sum(p.numel() for p in model.parameters()) > WORTH_COMPILING and (why_not := optimizer.compile()):
            say(f"the optimizer stays uncompiled, up to a third slower a step: {why_not}")
        multiple = fast.length_multiple(small)
        return Machine(model, optimizer, rows, small, lambda split, part: pack(split, part, rows.pad_id, multiple))
    padded = lambda split, part: collate(split, part, rows.pad_id).to(precision.device)  # noqa: E731
    return Machine(model, optimizer, rows, small, padded)


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def end_run(path: Path, rows: list[dict[str, Any]], bias_correction: bool, say: Say) -> None:
    """Mark the run as ended, drop the state, which is as large as the model three times, and say what came out."""
    _, content = run.read_config(path)
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["epoch"]))
    last = rows[-1]
    ended = {"best_epoch": best["epoch"], "val_accuracy": best["val_accuracy"], "val_majority": last["val_majority"],
             "verdict": last["verdict"]["name"], "collapsed_since": (streak(rows) or [None])[0],
             "seconds": sum(row["seconds"] for row in rows)}  # fmt: skip
    write_json(path / "config.json", content | {"ended": ended})
    shutil.rmtree(path / "state", ignore_errors=True)
    say(
        f"best: epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.3f}"
        f" (always the commonest class: {last['val_majority']:.3f})"
    )
    for line in advice(rows, bias_correction):
        say(line)
    say(f"next: python eval.py {path}")


class StepResult(NamedTuple):
    """What one step saw: the sum of the losses, right answers and examples, on the device; whether weights moved."""

    loss_sum: torch.Tensor
    correct: torch.Tensor
    count: int
    stepped: bool


def training_step(
    model: BertClassifier,
    optimizer: AdamW,
    micro_batches: Sequence[Batch | PackedBatch],
    lr: float,
    clip: float,
    precision: Precision,
    scaler: LossScaler,
) -> StepResult:
    """One optimizer step: the mean cross-entropy over all examples of `micro_batches`, its gradient clipped to the
    global norm `clip` (0: not), one AdamW update with `lr`. Gradients that are not finite leave the weights alone.
    """
    model.train()
    optimizer.zero_grad()
    count = sum(len(batch.labels) for batch in micro_batches)
    losses, correct = [], []
    for batch in micro_batches:
        with precision.autocast():
            if isinstance(batch, PackedBatch):
                logits, _ = fast.classify(model, batch, optimizer.half)
            else:
                logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        # A sum divided by the count of the whole step: the same gradient however the step is cut into batches.
        (loss * (scaler.scale / count)).backward()
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(dim=1) == batch.labels).sum())
    stepped = clipped_step(optimizer, lr, clip, scaler)
    return StepResult(torch.stack(losses).sum(), torch.stack(correct).sum(), count, stepped)


class Tally:
    """Running sums of an epoch; reading them is what waits for the device."""

    def __init__(self) -> None:
        self.loss_sum: Any = 0.0
        self.correct: Any = 0
        self.count = 0

    def add(self, result: StepResult) -> None:
        self.loss_sum = self.loss_sum + result.loss_sum.double()
        self.correct = self.correct + result.correct
        self.count += result.count

    @property
    def loss(self) -> float:
        return float(self.loss_sum) / max(1, self.count)

    @property
    def accuracy(self) -> float:
        return float(self.correct) / max(1, self.count)

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}  acc {self.accuracy:.3f}"
