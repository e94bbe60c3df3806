"""A training loop, right or with one of several mistakes in it. Lesson 2 looks at what each does to the curve."""

import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from minibert import BertClassifier, BertConfig, TrainConfig
from minibert.engine.optimizer import linear_schedule
from minibert.setup import prepare

BUGS = (
    "none",
    "gradients never cleared",
    "optimizer.step() missing",
    "scheduler.step() missing",
    "scheduler.step() once an epoch",
    "loss divided by the batch size twice",
    "softmax in front of the cross-entropy",
    "learning rate a hundred times too high",
)
EPOCHS, BATCH, LR = 3, 8, 1e-3
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
         "num_labels": 6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def examples():
    """480 windows of a phone's accelerometer as texts of 26 tokens: ids (480, 26), and labels (480,) of 6 classes.

    The words that occur are counted anew from 0, so that the word table is small and a step takes milliseconds.
    """
    config = TrainConfig(model="minilm-l6", init="random", examples="480", steps=8)
    train = prepare(config, say=lambda line: None).data.train
    ids = torch.unique(torch.tensor(np.array(train.ids)), return_inverse=True)[1]
    return ids, torch.tensor(train.labels).long()


def train(ids, labels, bug="none"):
    """A BERT of 2 layers, 64 wide, from random weights.

    Returns:
        The loss of each step as the loop reports it, and the learning rate of each step: two lists of floats.
    """
    torch.manual_seed(0)
    model = BertClassifier(BertConfig(**SIZES, vocab_size=int(ids.max()) + 1))
    steps_an_epoch = len(ids) // BATCH
    total = EPOCHS * steps_an_epoch
    lr = LR * (100 if bug == "learning rate a hundred times too high" else 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, total, total // 10))
    losses, rates = [], []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(ids)).split(BATCH):
            logits = model(ids[rows])
            if bug == "softmax in front of the cross-entropy":
                logits = logits.softmax(dim=-1)
            loss = F.cross_entropy(logits, labels[rows])
            if bug != "gradients never cleared":
                optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item() / (BATCH if bug == "loss divided by the batch size twice" else 1))
            rates.append(optimizer.param_groups[0]["lr"])
            if bug != "optimizer.step() missing":
                optimizer.step()
            if bug not in ("scheduler.step() missing", "scheduler.step() once an epoch"):
                scheduler.step()
        if bug == "scheduler.step() once an epoch":
            scheduler.step()
    return losses, rates


def smooth(losses, over=15):
    """The mean of each step's and the last steps' losses, `over` in all."""
    return [sum(losses[max(0, i + 1 - over) : i + 1]) / min(over, i + 1) for i in range(len(losses))]


def draw_mystery(bugs):
    """Write mystery.csv and mystery.svg, whose bugs are {letter: bug}. It takes half a minute."""
    here, data = Path(__file__).parent, examples()
    curves = {letter: train(*data, bug) for letter, bug in bugs.items()}
    with open(here / "mystery.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", *(f"{letter} {what}" for letter in curves for what in ("loss", "rate"))])
        for step, row in enumerate(zip(*(column for curve in curves.values() for column in curve))):
            table.writerow([step, *(f"{number:.4g}" for number in row)])
    figure, panels = plt.subplots(2, 6, figsize=(10, 4), sharex=True, layout="constrained", height_ratios=[2, 1])
    for column, (letter, (losses, rates)) in enumerate(curves.items()):
        loss, rate = panels[:, column]
        loss.plot(smooth(losses))
        loss.axhline(math.log(6), color="gray", linestyle=":")
        loss.set(title=letter, ylim=(0, 3.2), yticks=range(4))
        rate.plot(rates, color="C1")
        highest = 0.1 if max(rates) > 2e-3 else 1e-3
        rate.set(xlabel="step", ylim=(0, 1.1 * highest), yticks=[0, highest], yticklabels=["0", f"{highest:g}"])
    panels[0, 0].set_ylabel("loss (dotted: ln 6)")
    panels[1, 0].set_ylabel("learning rate")
    figure.savefig(here / "mystery.svg")


if __name__ == "__main__":
    from solutions import find_the_bugs

    draw_mystery(find_the_bugs())
