"""The other side of bench.py: transformers' BERT, in its Trainer and in a plain loop, with the best settings it has."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from minibert.config import TrainConfig
from minibert.data import Examples, load_dataset
from minibert.lab.workloads import (
    CASES,
    LR,
    PLANNED,
    WARMUP,
    Case,
    Step,
    Timing,
    bert_config,
    order,
    small_model,
    synchronize,
    timed,
)
from minibert.tokenizer import Tokenizer

transformers.logging.set_verbosity_error()


def model_of(case: Case, attention: str) -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    if case.model == "base":
        config = transformers.BertConfig(num_labels=6, attn_implementation=attention)
        return transformers.BertForSequenceClassification(config)
    return transformers.BertForSequenceClassification.from_pretrained(
        small_model(), num_labels=bert_config(case).num_labels, attn_implementation=attention
    )


class Rows(torch.utils.data.Dataset):
    def __init__(self, examples: Examples, rows: list[int]) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        i = self.rows[place]
        return {"input_ids": torch.from_numpy(self.examples.ids[i]).long(), "labels": int(self.examples.labels[i])}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded to the longest text of the batch."""
    ids = [item["input_ids"] for item in items]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    if len({len(row) for row in ids}) > 1:
        batch["attention_mask"] = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return batch


def on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(transformers.TrainerCallback):
    """When the first step began, when the counted ones did, when the last ended."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.first = time.time()
        if state.global_step == WARMUP:
            synchronize(args.device)
            self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            synchronize(args.device)
        self.end = time.perf_counter()


def settings(
    folder: str, precision: str, batch: int, device: str = "cpu", **more: Any
) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch, learning_rate=LR, weight_decay=0.01, max_grad_norm=1.0,
        lr_scheduler_type="linear", optim="adamw_torch_fused", bf16=precision == "bf16",
        fp16=precision == "fp16", use_cpu=device == "cpu",
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=0, **more,
    )  # fmt: skip


def reference_step(case: Case, examples: Examples, precision: str, side: str, device: str = "cpu") -> Step:
    """`side` is one of bench.RIVALS."""
    kind, attention = side.split(", ")
    model, where = model_of(case, attention).to(device), torch.device(device)
    batches = order(case, examples)
    data = Rows(examples, [i for batch in batches for i in batch])
    if case.what == "eval":
        model.eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)

        @torch.no_grad()
        def evaluate(rows: list[int]) -> None:
            batch = on(where, collate([Rows(examples, rows)[i] for i in range(len(rows))]))
            model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))

        return lambda started: timed(evaluate, batches, started, where)
    if kind == "loop":
        optimizer = torch.optim.AdamW(decay_groups(model), lr=LR, fused=True)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, PLANNED // 10, PLANNED)
        model.train()

        def train(rows: list[int]) -> None:
            batch = on(where, collate([Rows(examples, rows)[i] for i in range(len(rows))]))
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

        return lambda started: timed(train, batches, started, where)

    def run(started: float) -> Timing:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            InOrder(
                model, settings(folder, precision, case.batch, device, max_steps=len(batches)),
                train_dataset=data, data_collator=collate, callbacks=[clock],
            ).train()  # fmt: skip
        return Timing(clock.first - started, clock.end - clock.begin)

    return run


def decay_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip


def job(side: str, precision: str) -> None:
    """The README's main job: five epochs of the motion data at batch 2, validated after each."""
    case, config = CASES["job"], TrainConfig()
    data = load_dataset(config, Tokenizer.load(small_model()))
    splits = [Rows(split, list(range(len(split)))) for split in (data.train, data.val)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(
            folder, precision, case.batch, num_train_epochs=config.epochs, warmup_steps=963,
            eval_strategy="epoch", per_device_eval_batch_size=64,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model_of(case, side.split(", ")[1]), arguments, train_dataset=splits[0], eval_dataset=splits[1],
            data_collator=collate,
        )  # fmt: skip
        trainer.train()
        trainer.save_model(os.path.join(folder, "model"))


if __name__ == "__main__":
    job(*sys.argv[1:])
