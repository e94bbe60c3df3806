"""How much memory training takes, told from its sizes before it begins, and how much there is.

For its backward pass a layer of BERT keeps, of T tokens and at e bytes a number (4; 2 in bf16):

    8 e T D          its input, q, k, v, what attention gives, the feed-forward's input, two masks of dropout
    8 T D + 16 T     the sums before both LayerNorms, their means and deviations, always in float32
    2 e T F          inside the feed-forward, before and after the activation
    3 e N (sum n^2)  the attention weights of texts of n tokens, their mask of dropout, and the two multiplied

tests/test_memory.py counts what autograd keeps; `python -m minibert bench --memory` measures whole processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minibert.engine.machine import Machine
from minibert.engine.network import PORTION, ROWS
from minibert.engine.optimizer import WORTH_COMPILING
from minibert.model import BertClassifier

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

Bytes = float
PLAIN = 4  # bytes a number in float32

# What glibc holds of blocks that are free, in holes that the next ones do not fit into, for each byte of activations
# that is in use (measured: docs/scale.md). `allocator.tidy` mends that, in exchange for time.
HOLES = 0.4

COMPILER = 0.2e9  # bytes: torch's, once it is imported, which torch's checkpointing does, too

# What was measured was never below this share of what was foretold (docs/scale.md).
SURE = 0.7


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment that takes most, beyond what the process has before it builds its model.

    Attributes:
        weights: with their bf16 copies, and the whole table of words beside the rows that are trained.
        moments: AdamW's.
        gradients: as far as they are there at that moment.
        activations: what the forward pass keeps for the backward pass, and what both make in passing.
        code: what has to be imported for the run.
    """

    weights: Bytes
    moments: Bytes
    gradients: Bytes
    activations: Bytes
    code: Bytes = 0

    @property
    def total(self) -> Bytes:
        return self.held + self.activations

    @property
    def held(self) -> Bytes:
        """What does not depend on the batches."""
        return self.weights + self.moments + self.gradients + self.code


def foretell(
    model: BertClassifier,
    words: int,
    batch: Sequence[int],
    longest: int,
    machine: Machine,
    accumulate: int = 1,
    checkpointing: bool = False,
    updates: int = 0,
) -> Memory:
    """
    Args:
        model: any device will do, also "meta"; what is frozen asks for no gradient.
        words: rows of the word embedding that occur.
        batch: the tokens of each text of the largest forward pass, with what is padded.
        longest: tokens of the longest text that is evaluated.
        machine: where it runs.
        updates: that the run will take; of many, the update is compiled.
    """
    table = model.bert.embeddings.word.weight
    rows = words * table.shape[1]
    sizes = [(p, rows if p is table else p.numel()) for p in model.parameters()]
    trained = sum(size for p, size in sizes if p.requires_grad)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad}
    matrices = sum(size for p, size in sizes if id(p) in linear) if machine.name != "fp32" else 0
    copies = matrices if machine.name == "bf16" and accumulate == 1 else 0
    casts = matrices - copies  # autocast's, as long as the forward pass of their layer is remembered
    on_cpu = machine.device.type == "cpu"  # the whole table and the compiler always are
    weights = PLAIN * (sum(size for _, size in sizes) + table.numel() * on_cpu) + 2 * copies
    gradients = PLAIN * (trained - copies) + 2 * copies
    if machine.processes.world > 1:
        gradients += PLAIN * copies  # added up over processes in float32
    if not on_cpu:
        gradients *= 2  # joined for the update
    kept, layer = activations(model, batch, machine, checkpointing)
    depth = len(model.bert.layers)
    layer += 2 * casts / depth
    kept += 2 * casts / (depth if checkpointing else 1)
    at_once = [  # gradients and all else, of each moment that can be the largest
        (gradients if accumulate > 1 else 0, kept + layer),  # the backward pass begins
        (gradients, layer),  # it ends
        (gradients, evaluation(model, longest, machine)),
        (gradients, PLAIN * table.numel() * on_cpu),  # the table is made whole, to be saved
    ]
    most, passing = max(at_once, key=sum)
    code = COMPILER * on_cpu * (checkpointing or updates * trained > WORTH_COMPILING)
    return Memory(weights, 2 * PLAIN * trained, most, passing * (1 + HOLES * (on_cpu and not checkpointing)), code)


def activations(
    model: BertClassifier, batch: Sequence[int], machine: Machine, checkpointing: bool
) -> tuple[Bytes, Bytes]:
    """What a forward pass keeps; and what the passes through one layer make beside it, which with checkpointing is
    what that layer keeps, too.
    """
    c, e = model.config, bytes_of(machine)
    lengths = np.asarray(batch, np.float64)
    T, pairs, D, F = lengths.sum(), (lengths**2).sum(), c.hidden_size, c.intermediate_size
    scores = e * c.num_attention_heads * pairs if machine.device.type == "cpu" else 0.0  # elsewhere fused, none is kept
    masks = 2 * bool(c.hidden_dropout_prob)
    one = ((6 + masks) * e + 8) * T * D + 16 * T + 2 * e * T * F + 3 * scores * bool(c.attention_probs_dropout_prob)
    last = 3 * e * T * D if c.pool == "cls" else one  # [CLS] alone asks: its input, k and v of all tokens
    deep = remembered(model)
    embeddings = (PLAIN + PLAIN * (masks > 0)) * T * D * (deep == len(model.bert.layers))
    passing = max(2 * e * T * F, 3 * scores)
    lower = max(0, deep - 1)
    if checkpointing:
        return embeddings + PLAIN * T * D * lower + last, (one if lower else 0) + passing
    return embeddings + one * lower + last, passing


def remembered(model: BertClassifier) -> int:
    """How many layers, from the last down, the backward pass goes through: to the lowest thing that is trained."""
    is_trained = [
        any(p.requires_grad for p in part.parameters()) for part in (model.bert.embeddings, *model.bert.layers)
    ]
    depth = len(model.bert.layers)
    return depth + 1 - max(1, is_trained.index(True)) if any(is_trained) else 0


def evaluation(model: BertClassifier, longest: int, machine: Machine) -> Bytes:
    """What one layer makes of a portion."""
    c, e = model.config, bytes_of(machine)
    T = PORTION + longest if machine.device.type == "cpu" else ROWS * longest
    return T * (max(2 * e * c.intermediate_size, 6 * e * c.hidden_size) + 3 * PLAIN * c.hidden_size)


def bytes_of(machine: Machine) -> int:
    """Of a number that matrix products give."""
    return PLAIN if machine.name == "fp32" else 2


def free(machine: Machine, root: Path = Path("/")) -> Bytes | None:
    """What this process can have beyond what it has; None where nothing says so.

    Args:
        root: where proc and sys are.
    """
    if machine.device.type == "cuda":
        return torch.cuda.mem_get_info(machine.device)[0]
    return min((*in_the_system(root), *in_groups(root), *in_address_space(root)), default=None)


def in_the_system(root: Path) -> Iterator[Bytes]:
    """What Linux would give, with what it could swap."""
    lines = (line.split() for line in read(root / "proc/meminfo").splitlines())
    sizes = {words[0]: 1024 * int(words[1]) for words in lines if len(words) > 1}
    if "MemAvailable:" in sizes:
        yield sizes["MemAvailable:"] + sizes.get("SwapFree:", 0)


def in_groups(root: Path) -> Iterator[Bytes]:
    """What is left of the limit of each control group that this process is in, and of those around it: the limits of
    containers and of a cluster's jobs. What a group uses of files' caches is given up when memory is short.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not kinds:  # version 2
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        else:
            continue
        place = Path(path.lstrip("/"))
        for folder in (top / place, *(top / parent for parent in place.parents)):
            limit, used = (read(folder / name).strip() for name in names)
            stat = dict(pair.split() for pair in read(folder / "memory.stat").splitlines())
            cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
            if limit.isdecimal() and used.isdecimal():
                yield int(limit) - int(used) + int(cached)


def in_address_space(root: Path) -> Iterator[Bytes]:
    """What is left of `ulimit -v`."""
    pages = read(root / "proc/self/statm").split()
    if resource is not None and pages:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - int(pages[0]) * resource.getpagesize()


def read(path: Path) -> str:
    """A file of the system's; where there is none, or it may not be read, nothing."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
