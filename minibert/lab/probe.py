"""A look at a network before its first step: its weights, what its layers do to real inputs, how much drift it bears.

Drift. Adam moves every weight by about the learning rate a step, however weak the signal. A network that sees little
of its input first learns what all inputs share, the answer itself: its first steps agree in direction, and on the way
it may go blind to its input for good. The probe walks that way without training: every weight by t times the sign of
minus the gradient of the loss with one class for all inputs. The tolerance is the largest t that leaves what the head
reads `SHARE` of its spread over inputs; docs/log.md says how well that predicts real runs.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from minibert.config import TrainConfig
from minibert.data.batches import Batch
from minibert.engine.optimizer import linear_schedule
from minibert.errors import InputError, Say
from minibert.initialization import in_words
from minibert.inside import choose, look
from minibert.lines import cell, fold, tell
from minibert.model import BertClassifier
from minibert.setup import prepare
from minibert.verdict import mean_cosine

# Read off runs of batch 2 with 12 layers 128 wide, and tried on others (docs/log.md, Probe).
SHARE = 1 / 3  # of the spread over inputs: of runs that kept more at HORIZON, most recovered; of those with less, none
HORIZON = 10  # steps: where the spread was lowest in runs that recovered
AGREEMENT = 0.28  # a weight's mean move in HORIZON steps, as a share of their summed learning rates
WARMUPS = (0, 15)  # steps, for which a rate is given; with 75 the rate came out too high
NO_SPREAD = 1e-5  # relative spread that is float32 rounding alone
FINEST, COARSEST = 1e-5, 1.0  # of t: a start that bears less is given about FINEST, one that bears more None


def probe(config: TrainConfig, inputs: int, say: Say = tell) -> dict[str, Any]:
    """
    Returns:
        `init`, `model`, `data`, `pool`, `inputs`, `manifest`, `parts` (see Part), `read` (cosine and relative spread,
        over inputs, of what the head reads), `logits` (see logit_figures), `drift` (see tolerance).

    Raises:
        InputError: as setup.py's prepare; fewer than 2 inputs, or fewer training examples than that.
    """
    if inputs < 2:
        raise InputError(f"--inputs {inputs}: it must be at least 2, to compare one with another")
    setup = prepare(replace(config, precision="fp32"), say, trains=False)
    if inputs > len(setup.data.train):
        raise InputError(f"--inputs {inputs}: the training split has {len(setup.data.train)}; take fewer")
    model = setup.model.to(setup.machine.device).eval()  # no dropout
    batch = choose(setup.data.train, inputs, model.config.pad_token_id).to(setup.machine.device)
    with torch.no_grad():
        read, logits = forward(model, batch)
    return {
        "init": config.init, "model": setup.source.name, "data": setup.data.summary, "pool": model.config.pool,
        "inputs": inputs, "manifest": setup.manifest,
        "parts": [asdict(part) for part in look(model, batch, setup.manifest)],
        "read": {"cosine": mean_cosine(read), "spread": spread(read)},
        "logits": logit_figures(logits),
        "drift": tolerance(model, batch),
    }  # fmt: skip


def forward(model: BertClassifier, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the head reads (B, D), of all tokens their mean; and its logits (B, C)."""
    x, read = model.bert(*batch[:3])
    return read, model.classify(x, read, None if batch.attention_mask is None else batch.attention_mask[:, None, None])


def spread(vectors: Tensor) -> float:
    """(n, D) -> the rows' root mean square distance from their mean, as a share of their root mean square norm.

    0: all alike. Where it is small, the mean cosine is about 1 - spread^2.
    """
    vectors = vectors.double()
    return ((vectors - vectors.mean(dim=0)).norm() / vectors.norm().clamp(min=1e-300)).item()


def logit_figures(logits: Tensor) -> dict[str, float]:
    """(B, C) -> `spread`: how far an input's logits are from the mean input's, `offset`: how far that one's are apart.

    Root mean squares; less each input's mean over the classes, which softmax does not see.
    """
    logits = logits.double() - logits.double().mean(dim=1, keepdim=True)
    offset = logits.mean(dim=0)
    return {"spread": (logits - offset).pow(2).mean().sqrt().item(), "offset": offset.pow(2).mean().sqrt().item()}


def tolerance(model: BertClassifier, batch: Batch) -> dict[str, Any]:
    """How far all weights of the encoder can go towards one answer before what the head reads has lost its spread.

    Returns:
        `tolerance`: the largest t that leaves `SHARE` of the spread, to 9 %; 0 where there is none at the start, None
        where t = `COARSEST` still does. `curve`: the pairs of t and share that were tried, by t. `rates`: for warmups
        of so many steps, the learning rate from which a run is expected to give one answer for all.
    """
    weights = dict(model.bert.named_parameters())
    read, logits = forward(model, batch)
    start = spread(read.detach())
    if start <= NO_SPREAD:
        return {"tolerance": 0.0, "curve": [], "rates": {}}
    one_class = F.cross_entropy(logits, torch.zeros_like(batch.labels))
    gradients = torch.autograd.grad(one_class, list(weights.values()))
    curve: dict[float, float] = {}

    @torch.no_grad()
    def share(t: float) -> float:
        moved = {name: torch.sub(w, g.sign(), alpha=t) for (name, w), g in zip(weights.items(), gradients)}
        curve[t] = spread(functional_call(model.bert, moved, tuple(batch[:3]))[1]) / start
        return curve[t]

    t = 2.0**-10
    if share(t) > SHARE:
        while t < COARSEST and share(2 * t) > SHARE:
            t *= 2
    else:
        while t > FINEST and share(t / 2) <= SHARE:
            t /= 2
        t /= 2
    found = None
    if t < COARSEST:
        for step in (2**0.5, 2**0.25, 2**0.125):  # t is enough, 2 t too much
            if share(t * step) > SHARE:
                t *= step
        found = t
    rates = {} if found is None else {str(warmup): highest_rate(found, warmup) for warmup in WARMUPS}
    return {"tolerance": found, "curve": sorted(curve.items()), "rates": rates}


def highest_rate(tolerance: float, warmup: int) -> float:
    """The rate behind `warmup` steps whose first `HORIZON` steps move the weights by `tolerance`."""
    total = 10**6  # steps; the decay is not felt in the first few of a run
    return tolerance / AGREEMENT / sum(linear_schedule(step, total, warmup) for step in range(HORIZON))


def format_probe(result: dict[str, Any]) -> str:
    """The screen that `python -m minibert probe` shows."""
    lines = ["weights     start                  matrices mean     std  hash   gradient norm"]
    lines += [
        f"{part['name']:<10}  {cell(in_words(part['source']), 22)}  {figure(part['mean'], 12, '.0e')}"
        f"  {figure(part['std'], 6, '.4f')}  {part['sha256'][:5]}  {figure(part['gradient'], 13, '.1e')}"
        for part in result["parts"]
    ]
    lines += [
        "",
        "activation  mean cosine between     norm of    branch / skip",
        "            tokens  [CLS]s  means   a token    attention  feed-forward",
    ]
    lines += [
        f"{part['name']:<10}  {figure(part['tokens'], 6, '.3f')}  {figure(part['cls'], 6, '.3f')}"
        f"  {figure(part['means'], 5, '.3f')}  {figure(part['activation'], 8, '.2f')}"
        f"    {figure(part['attention'], 9, '.3f')}  {figure(part['feed_forward'], 12, '.3f')}"
        for part in result["parts"] if part["tokens"] is not None
    ]  # fmt: skip
    lines.append("")
    read, logits, drift = result["read"], result["logits"], result["drift"]
    what = {"cls": "[CLS]", "mean": "the mean", "tokens": "all tokens; of their mean"}[result["pool"]]
    lines.append(f"the head reads {what}: cosine between inputs {read['cosine']:.5f}, spread {read['spread']:.2g}")
    lines.append(f"logits: {logits['spread']:.2g} apart over inputs, {logits['offset']:.2g} off together")
    return "\n".join(map(fold, lines + drift_lines(drift)))


def figure(value: float | None, width: int, form: str) -> str:
    """A cell of the table; None: there is no such figure."""
    return f"{'-' if value is None else format(value, form):>{width}}"


def drift_lines(drift: dict[str, Any]) -> list[str]:
    if drift["tolerance"] == 0:
        return ["drift: blind at the start, all inputs look alike to the head; there is no spread to lose"]
    if drift["tolerance"] is None:
        return [f"drift: all weights can go {COARSEST:g} towards one answer, and the head still sees its input"]
    rates = ", ".join(f"{rate:.1e} (warmup {warmup})" for warmup, rate in drift["rates"].items())
    return [
        f"drift: {drift['tolerance']:.1e} a weight towards one answer leaves {SHARE:.0%} of the spread",
        f"at batch 2 expect one answer for all, with [CLS] often earlier, from lr {rates}",
    ]
