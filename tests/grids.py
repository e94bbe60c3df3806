"""Grids of runs as they lie on disk, written without a training: for tests of what is made of them."""

import csv
import json

import numpy as np

CLASSES = ["sitting", "walking"]
SETTINGS = {"data": "motion", "init": "random", "seed": "0", "lr": 1e-5, "warmup": 0.1, "epochs": 3, "batch_size": 2,
            "examples": "all", "model": "auto"}  # fmt: skip


def verdict(name):
    return {"name": name, "prediction_entropy": 0.6, "top_share": 0.5, "class_entropy": 0.69, "cosine": 0.5,
            "spread": 1.0, "offset": 0.1}  # fmt: skip


def write_run(
    folder, settings, accuracy=0.7, val=None, noise=0, name="learning", n=40, groups=4, parts=False, size=300
):
    """A finished run with about this test accuracy; `noise` seeds which examples it gets right."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(noise)
    epochs = settings["epochs"]
    predictions, outcome = [], {}
    for split, start, aim in (("val", 1000, accuracy if val is None else val), ("test", 2000, accuracy)):
        labels = np.arange(n) % 2
        correct = rng.permutation(n) < round(aim * n)
        for i in range(n):
            said = labels[i] if correct[i] else 1 - labels[i]
            row = {"split": split, "row": start + i, "label": CLASSES[labels[i]], "predicted": CLASSES[said]}
            if groups:
                row["group"] = f"person {i % groups}"
            row |= {"confidence": 0.9} | {f"p({c})": 0.9 if c == CLASSES[said] else 0.1 for c in CLASSES}
            predictions.append(row)
        outcome[split] = {"n": n, "accuracy": float(correct.mean()), "majority": 0.5, "majority_class": CLASSES[0],
                          "loss": 0.5, "verdict": verdict(name)}  # fmt: skip
    history = []
    for epoch in range(1, epochs + 1):
        reached = 0.5 + (outcome["val"]["accuracy"] - 0.5) * epoch / epochs
        row = {"epoch": epoch, "train_loss": 0.6, "train_accuracy": reached - 0.02, "val_loss": 0.6,
               "val_accuracy": reached, "lr": 1e-6, "seconds": 2.0, "examples_per_second": size / 2.0,
               "step": epoch * size // 2, "skipped_steps": 0, "val_majority": 0.5,
               "verdict": verdict(name)}  # fmt: skip
        if parts:
            row["parts"] = [{"name": part, "gradient": 10.0 ** -(i + epoch / 3), "cls": 1 - 0.1 * i * epoch}
                            for i, part in enumerate(("embeddings", "layer 1", "layer 2", "pooler"))]  # fmt: skip
            row["parts"].append({"name": "head", "gradient": 1.5, "cls": None})
        history.append(row)
    best = max(history, key=lambda row: row["val_accuracy"])
    config = {
        "settings": settings | {"out": str(folder)},
        "checkpoint": {"name": "tiny", "sha256": "c" * 64, "files": {"config.json": "d" * 64}},
        "dataset": {"summary": "motion: made up", "sha256": "d" * 64, "labels": CLASSES,
                    "sizes": {"train": size, "val": n, "test": n}},
        "device": "CPU", "precision": "fp32", "versions": {"python": "3.11.2", "minibert": "0.1.0"},
        "git_commit": "f" * 40, "started": "2026-01-01T00:00:00+00:00",
        "ended": {"best_epoch": best["epoch"], "val_accuracy": best["val_accuracy"], "val_majority": 0.5,
                  "verdict": name, "collapsed_since": None, "seconds": 2.0 * epochs},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (folder / "outcome.json").write_text(json.dumps(outcome))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(predictions[0]))
        writer.writeheader()
        writer.writerows(predictions)


def write_grid(path, runs, baseline="random"):
    """
    Args:
        runs: (settings that differ from SETTINGS, arguments of write_run; None: no folder; a string: why it failed).
    """
    asked = {}
    for number, (settings, what) in enumerate(runs):
        name, settings = f"run{number:03}", SETTINGS | settings
        asked[name] = settings
        if isinstance(what, dict):
            write_run(path / "runs" / name, settings, **({"noise": number} | what))
        elif what is not None:
            (path / "runs" / name).mkdir(parents=True)
            (path / "runs" / name / "failed.json").write_text(json.dumps({"reason": what}))
    content = {"format": 1, "baseline": baseline, "settled": {"model": "auto"}, "data": {"motion": "d" * 64},
               "commands": ["python -m minibert ablate --init pretrained random --seeds 6"], "runs": asked}  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "grid.json").write_text(json.dumps(content))
    return path


def two_starts(seeds=6, gap=0.25, **more):
    """The runs of a plain grid: pretrained ahead of random by about `gap`."""
    ahead = [0.6 + gap + 0.025 * (i % 3) for i in range(seeds)]
    behind = [0.6 + 0.025 * (i % 2) for i in range(seeds)]
    return [({"init": init, "seed": str(i)}, {"accuracy": accuracy} | more)
            for init, row in (("pretrained", ahead), ("random", behind)) for i, accuracy in enumerate(row)]  # fmt: skip
