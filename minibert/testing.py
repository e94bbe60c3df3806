"""Unit tests for a classifier head: fifteen checks that need no weights, no data and no accelerator.

    check_head(MyHead, hidden_size=768, num_labels=3)

A "pooled" head maps (B, D) to logits (B, C). A "tokens" head is called as head(tokens, mask) with tokens
(B, S, D) and mask (B, S) bool, True where a token is real; it says so by an attribute, reads = "tokens".
docs/head.md lists the checks.
"""

from __future__ import annotations

import inspect
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from minibert.checkpoint import load_classifier, save_pretrained
from minibert.model import BertClassifier, BertConfig, called_wrongly, reads_of

ROWS, TOKENS = 8, 6
START_LOSS = 0.5  # above ln C, at most
FIT_LOSS, FIT_STEPS, FIT_SECONDS = 0.05, 300, 20.0
LARGE = 1e4


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Args:
        status: "passed", "failed", "allowed" (it failed, and was named in `allowed`), or "skipped" (it does not apply,
            or another failure keeps it from deciding).
    """

    name: str
    status: str
    message: str = ""


class HeadError(AssertionError):
    """Some checks failed. `outcomes` holds what all of them found."""

    def __init__(self, message: str, outcomes: Iterable[Outcome] = ()) -> None:
        super().__init__(message)
        self.outcomes = list(outcomes)


@dataclass(frozen=True)
class HeadCase:
    """One head to check.

    Args:
        id: its name in the names of tests.
        factory: makes a new head. Called as factory(hidden_size, num_labels), as minibert.train calls it, where its
            signature asks for two arguments or names these; else without.
        hidden_size: D, the width of what the head reads.
        num_labels: C, how many logits it returns.
        reads: "pooled" or "tokens"; None: what the head's own attribute `reads` says, else "pooled".
        allowed: checks that may fail, each with the reason.

    Raises:
        ValueError: sizes that leave nothing to check, an unknown kind of head or check.
    """

    id: str
    factory: Callable[..., nn.Module]
    hidden_size: int
    num_labels: int
    reads: str | None = None
    allowed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reads not in (None, "pooled", "tokens"):
            raise ValueError(f"reads is {self.reads!r}; known: pooled, tokens")
        if isinstance(self.factory, nn.Module):
            made = type(self.factory).__name__
            raise ValueError(
                f"a head that is made already, {made}; give what makes a new one each time: lambda: {made}(...)"
            )
        for name, least in (("hidden_size", 1), ("num_labels", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be at least {least}")
        unknown = [name for name in self.allowed if name not in CHECKS]
        if unknown:
            raise ValueError(f"allowed names no such check: {', '.join(unknown)}; known: {', '.join(CHECKS)}")

    def build(self, seed: int = 0) -> nn.Module:
        # The CPU's generator alone: torch.manual_seed would also reseed the caller's accelerators.
        torch.default_generator.manual_seed(seed)
        head = self.factory(*self.sizes)
        if not isinstance(head, nn.Module):
            raise TypeError(f"the factory must return a new nn.Module, not {type(head).__name__}")
        return head

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """What the factory is called with."""
        sizes = (self.hidden_size, self.num_labels)
        try:
            signature = inspect.signature(self.factory)
            signature.bind(*sizes)
        except (TypeError, ValueError):
            return ()
        try:
            signature.bind()
        except TypeError:
            return sizes
        # Both would do. Defaults in the place of the sizes may be anything; by name they are the sizes.
        parameters = list(signature.parameters.values())
        named = [parameter.name for parameter in parameters[:2]] == ["hidden_size", "num_labels"]
        return sizes if named or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else ()

    @cached_property
    def over_tokens(self) -> bool:
        if self.reads is not None:
            return self.reads == "tokens"
        try:
            with own_world():
                return reads_of(self.build()) == "tokens"
        except Exception:  # a factory may raise anything; output_shape says so
            return False

    @torch.no_grad()
    def moved(self, seed: int = 0) -> nn.Module:
        """A head off its start, as training would move it: zeros at the start hide what a weight does."""
        head = self.build(seed)
        for parameter in head.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                std = 0.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                parameter.add_(std * torch.randn_like(parameter))
        return head

    def inputs(self, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, ...]:
        """What an encoder of random weights gives: tanh's range if pooled, LayerNorm's variance if tokens."""
        # Far from build's seeds: the same numbers as weights and as inputs would not be independent.
        generator = torch.Generator().manual_seed(1000 + seed)
        if not self.over_tokens:
            return (torch.tanh(torch.randn(rows, self.hidden_size, generator=generator)),)
        lengths = torch.tensor([TOKENS - (2 * row) % TOKENS for row in range(rows)])  # the first row has no padding
        tokens = torch.randn(rows, TOKENS, self.hidden_size, generator=generator)
        return tokens, torch.arange(TOKENS) < lengths[:, None]


class Undecided(Exception):  # noqa: N818  (no error)
    """A check that does not apply, or cannot tell."""


def check_head(
    factory: Callable[..., nn.Module],
    hidden_size: int,
    num_labels: int,
    *,
    reads: str | None = None,
    allowed: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run every check on new heads of `factory`, on the CPU. The caller's random state stays as it was.

    Args: as HeadCase's.

    Returns:
        One outcome a check, in the order of CHECKS.

    Raises:
        HeadError: checks failed that `allowed` does not name; the message lists them all.
        ValueError: as HeadCase.
    """
    case = HeadCase("head", factory, hidden_size, num_labels, reads, allowed or {})
    found = {name: attempt(name, case) for name in CHECKS}
    outcomes = [outcome(name, case, found) for name in CHECKS]
    failed = [entry for entry in outcomes if entry.status == "failed"]
    if failed:
        lines = [f"{len(failed)} of {len(outcomes)} checks failed"]
        lines += [f"{entry.name}: {entry.message}" for entry in failed]
        unclear = [entry.name for entry in outcomes if entry.status == "skipped" and raw_failure(found[entry.name])]
        if unclear:
            lines.append(f"not decided until these are mended: {', '.join(unclear)}")
        raise HeadError("\n  ".join(lines), outcomes)
    return outcomes


def parametrize_with_head_checks(cases: Iterable[HeadCase | tuple[Any, ...]], argument: str = "run_check") -> Any:
    """A decorator that gives one test function a test a head and check, as scikit-learn's parametrize_with_checks.

        @parametrize_with_head_checks([HeadCase("mine", MyHead, 768, 3)])
        def test_head(run_check):
            run_check()

    Args:
        cases: HeadCases, or tuples of their fields in order. A check that a case allows to fail is marked xfail.
        argument: the test function's argument: a callable without arguments that raises HeadError.
    """
    import pytest

    def runner(case: HeadCase, name: str) -> Callable[[], None]:
        def run_check() -> None:
            __tracebackhide__ = True  # the message says it all
            found = {each: attempt(each, case) for each in {name, "output_shape", *NEEDS.get(name, ())}}
            result = outcome(name, case, found)
            if result.status == "skipped":
                pytest.skip(result.message)
            if result.status in ("failed", "allowed"):
                raise HeadError(f"{name}: {result.message}", [result])

        return run_check

    params = []
    for case in cases:
        case = case if isinstance(case, HeadCase) else HeadCase(*case)
        for name in CHECKS:
            if name == "padding" and not case.over_tokens:
                continue
            reason = case.allowed.get(name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, raises=HeadError, strict=False)]
            params.append(pytest.param(runner(case, name), id=f"{case.id}-{name}", marks=marks))
    return pytest.mark.parametrize(argument, params)


# --- How one check is run ---------------------------------------------------------------------------------------------


@contextmanager
def own_world() -> Iterator[None]:
    """The caller's random states as they were, on leaving; gradients on and the CPU the default device, inside.

    inference_mode(False) also ends a caller's no_grad.
    """
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device("cpu"):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(drawn)


def attempt(name: str, case: HeadCase) -> str | Exception | None:
    """None where the check passes, a sentence where it fails, or what was raised."""
    try:
        with own_world():
            return _CHECKS[name](case)
    except Exception as error:  # a head may raise anything
        return error


def raw_failure(found: str | Exception | None) -> bool:
    return found is not None and not isinstance(found, Undecided)


def outcome(name: str, case: HeadCase, found: Mapping[str, str | Exception | None]) -> Outcome:
    """A failure counts only where nothing that the check relies on has failed: one defect, one name."""
    message = found[name]
    if not raw_failure(message):
        if message is not None:
            return Outcome(name, "skipped", str(message))
        reason = case.allowed.get(name)
        return Outcome(name, "passed", "" if reason is None else f"allowed to fail ({reason}), but passes")
    needs = NEEDS.get(name, ())
    if isinstance(message, Exception):
        message = f"the head raises {said(message)}, as one does that was made for another input, size or dtype"
        needs = tuple(dict.fromkeys(("output_shape", *needs))) if name != "output_shape" else ()
    broken = [need for need in needs if raw_failure(found[need])]
    if broken:
        return Outcome(name, "skipped", f"not decided, since {' and '.join(broken)} failed")
    if name in case.allowed:
        return Outcome(name, "allowed", f"{message} (allowed: {case.allowed[name]})")
    return Outcome(name, "failed", str(message))


def said(error: Exception) -> str:
    """The error as part of a sentence: its type and its first line."""
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".").replace(". ", "; ")
    return f"{type(error).__name__} ({line[:157] + '...' if len(line) > 160 else line})"


def call(head: nn.Module, inputs: tuple[Tensor, ...], seed: int | None = None) -> Tensor:
    """head(*inputs) on copies, so that a head that writes into its input spoils its own check alone.

    seed: the same noise in each call, where two calls are compared.
    """
    if seed is not None:
        torch.default_generator.manual_seed(seed)
    return head(*(tensor.clone() for tensor in inputs))


@torch.no_grad()
def predict(head: nn.Module, inputs: tuple[Tensor, ...], seed: int | None = 0) -> Tensor:
    return call(head, inputs, seed)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; 0 where it is rounding, and where both have the same infinity or both NaN."""
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = torch.where(same, 0.0, (ours - theirs).abs()).nan_to_num(float("inf"), float("inf")).max().item()
    scale = ours.abs().nan_to_num(0.0, 0.0).max().item()
    return largest if largest > 1e-4 * max(1.0, scale) else 0.0


def largest(ours: Tensor, theirs: Tensor) -> float:
    """As distance, but rounding counts."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return 0.0 if same.all() else (ours - theirs).abs().nan_to_num(float("inf")).max().item()


def mode(training: bool) -> str:
    return "training mode" if training else "eval mode"


def brief(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def trained(head: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in head.named_parameters() if parameter.requires_grad}


def keeps_statistics(module: nn.Module) -> bool:
    """BatchNorm and its like: training mode updates numbers that eval mode uses."""
    name = type(module).__name__.lower()
    return isinstance(module, _BatchNorm) or "batchnorm" in name or "spectralnorm" in name


def without_dropout(head: nn.Module) -> nn.Module:
    """Training mode, dropout off; what dropout by function does is left to NoDropout."""
    head.train()
    for module in head.modules():
        leaf = module is not head and not any(True for _ in module.children())
        if leaf and "drop" in type(module).__name__.lower():
            module.eval()
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
    return head


class NoDropout(TorchFunctionMode):
    """F.dropout and its kin return their input: dropout by function is dropout too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


class OtherDevice(TorchFunctionMode):
    """Follows which tensors would stay on the CPU while the head's weights and inputs are elsewhere.

    Those are a module's plain attributes, what is made without device=, and what is computed from these alone, until
    `.to(device)`. The meta device would tell too, but its first matrix product imports sympy, which takes a second.
    """

    MADE = frozenset(("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"))
    MEETS = frozenset(("__getitem__", "__setitem__", "copy_"))  # these take tensors of two devices

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.left = {id(tensor): tensor for tensor in plain_tensors(head).values()}  # keeps them: ids are not reused
        self.mixed: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name, given = getattr(func, "__name__", ""), list(tensors_in((args, kwargs)))
        left = [tensor for tensor in given if id(tensor) in self.left]
        there = [tensor for tensor in given if id(tensor) not in self.left and tensor.dim()]
        by_hand = name in ("to", "type_as") and any(
            isinstance(value, (str, torch.device, Tensor)) for value in (*args[1:], *kwargs.values())
        )
        if by_hand:
            self.left.pop(id(result), None)
        elif left and there:
            if name not in self.MEETS and any(tensor.dim() for tensor in left):  # a number may come from anywhere
                self.mixed.append(name)
        elif left or (name in self.MADE and kwargs.get("device") is None):
            self.left.update((id(tensor), tensor) for tensor in tensors_in(result))
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def plain_tensors(head: nn.Module) -> dict[str, Tensor]:
    """Tensors that hang on a module as plain attributes, alone or in a list, tuple or dict."""
    registered = {id(tensor) for tensor in (*head.parameters(), *head.buffers())}
    return {
        f"{path}.{name}".lstrip("."): tensor
        for path, module in head.named_modules()
        for name, value in vars(module).items()
        for tensor in tensors_in(value)
        if id(tensor) not in registered
    }


# --- The checks: None, or one sentence that says what is wrong and what usually makes it so ---------------------------


def output_shape(case: HeadCase) -> str | None:
    C = case.num_labels
    try:
        head = case.build()
    except Exception as error:
        return f"making a head raises {said(error)}: look at its constructor, which calls super().__init__() first"
    wrongly = called_wrongly(head, case.over_tokens)
    if wrongly:
        return wrongly
    several = 5 if C != 5 else 7  # a transposed output must not look right
    for rows, training in ((1, False), (several, False), (several, True)):
        out = predict(head.train(training), case.inputs(rows))
        if not isinstance(out, Tensor):
            return f"the head returns a {type(out).__name__}, not the logits alone: return one tensor ({rows}, {C})"
        if tuple(out.shape) != (rows, C):
            usual = (
                "squeeze(), which drops the batch"
                if rows == 1
                else "the last layer's width or the dimension pooled over"
            )
            return f"{rows} rows give the shape {tuple(out.shape)}, not ({rows}, {C}): look at {usual}"
        if not out.is_floating_point():
            return f"the output has dtype {out.dtype}, not a floating one: return logits, not the class (argmax)"
    return None


def parameter_gradients(case: HeadCase) -> str | None:
    head = case.moved().train()
    left = trained(head)
    # Several draws: a bias that a softmax cancels has a gradient of rounding alone, which can be zero once.
    for seed in range(3):
        head.zero_grad()
        out = call(head, case.inputs(seed=seed), seed)
        if out.requires_grad:
            (out * torch.randn_like(out)).sum().backward()
        left = {name: p for name, p in left.items() if p.grad is None or not (p.grad != 0).any()}
    if left:
        return (
            f"no gradient reaches {brief(left)}: forward does not use it, cuts it off (no_grad, detach, item, argmax), "
            "or multiplies it by zero"
        )
    return None


def input_gradient(case: HeadCase) -> str | None:
    head = case.moved().train()
    for seed in range(3):
        x, *rest = case.inputs(seed=seed)
        x.requires_grad_()
        out = call(head, (x, *rest), seed)
        if out.requires_grad:
            (out * torch.randn_like(out)).sum().backward()
        if x.grad is not None and (x.grad != 0).any():
            return None
    kind = "absent" if x.grad is None else "zero everywhere"
    return (
        f"the gradient to the input is {kind}, so the encoder below would never learn: a detach, no_grad or rounding "
        "step stands between"
    )


def row_independence(case: HeadCase) -> str | None:
    head = case.moved()
    inputs, other = case.inputs(), case.inputs(seed=1)
    # Row 0 among rows of other values. The mask stays, since it may decide how much noise dropout draws for whom.
    swapped = (torch.cat([inputs[0][:1], 3 * other[0][1:]]), *inputs[1:])
    modes = [False] if any(keeps_statistics(module) for module in head.modules()) else [False, True]
    for training in modes:
        head.train(training)
        apart = distance(predict(deepcopy(head), inputs)[0], predict(head, swapped)[0])  # a call may move its state
        if apart:
            return (
                f"a row's output moves by {apart:.2g} when other rows change, in {mode(training)}: a mean, softmax or "
                "norm over the batch (dimension 0), or a reshape that mixes rows"
            )
    alone = distance(predict(head.eval(), inputs)[0], predict(head, tuple(t[:1] for t in inputs))[0])
    if alone:
        return f"a row's output moves by {alone:.2g} when it is alone: something is scaled by the size of the batch"
    return None


def row_order(case: HeadCase) -> str | None:
    head, inputs = case.moved().eval(), case.inputs()
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    apart = distance(predict(head, inputs)[order], predict(head, tuple(t[order] for t in inputs)))
    if apart:
        return (
            f"with the rows in another order the outputs are not the same ones reordered, but {apart:.2g} off: a row's "
            "place in the batch is read (a sort, a cumulative sum, positions along the wrong dimension)"
        )
    return None


def padding(case: HeadCase) -> str | None:
    if not case.over_tokens:
        raise Undecided("a pooled head sees no padding")
    head = case.moved().eval()
    tokens, mask = case.inputs()
    base = predict(head, (tokens, mask))
    other = 10 * case.inputs(seed=1)[0]
    apart = distance(base, predict(head, (torch.where(mask[..., None], tokens, other), mask)))
    if apart:
        return (
            f"the output moves by {apart:.2g} when padded tokens hold other numbers: pool, score and normalize under "
            "the mask"
        )
    longer = torch.cat([tokens, other[:, :3]], dim=1)
    apart = distance(base, predict(head, (longer, F.pad(mask, (0, 3)))))
    if apart:
        return (
            f"the output moves by {apart:.2g} when three padded tokens are added: divide by the number of real tokens, "
            "not by S, and index no token from the end"
        )
    return None


def determinism(case: HeadCase) -> str | None:
    head, inputs = case.moved().eval(), case.inputs()
    torch.default_generator.manual_seed(0)
    first = predict(head, inputs, seed=None)
    if apart := largest(first, predict(head, inputs, seed=None)):
        return (
            f"two calls in eval mode differ by {apart:.2g}: dropout without training=self.training, noise, or a state "
            "that forward changes"
        )
    head.train()
    if apart := largest(first, predict(head.eval(), inputs, seed=None)):
        return f"eval mode differs by {apart:.2g} after train() and eval(): an override of train() changes the head"
    return None


def dropout_only(case: HeadCase) -> str | None:
    head, inputs = case.moved(), case.inputs()
    evaluated = predict(head.eval(), inputs)
    for module in without_dropout(head).modules():
        if keeps_statistics(module):
            module.eval()
    with NoDropout():
        apart = distance(evaluated, predict(head, inputs))
    if apart:
        return (
            f"with dropout off, training mode still differs from eval mode by {apart:.2g}: noise or a branch on "
            "self.training that is not dropout, or dropout by hand"
        )
    return None


def finite(case: HeadCase) -> str | None:
    for amount in (1.0, 0.0, LARGE):
        for low in (False, True):
            head = case.moved().train()
            x, *rest = case.inputs()
            x = (amount * x).requires_grad_()
            where = f"inputs times {amount:g}{' under bfloat16 autocast' if low else ''}"
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                try:
                    out = call(head, (x, *rest), 0)
                except Exception as error:
                    if not low:
                        raise
                    return f"{where}: raises {said(error)}, as does a float32 constant or buffer met by bfloat16 values"
            if not out.isfinite().all():
                return f"the output is not finite for {where}: exp without its maximum, a division, log or root at 0"
            if not out.requires_grad:
                continue
            (out.float() * torch.randn(out.shape)).sum().backward()
            grads = {"the input": x.grad} | {name: p.grad for name, p in trained(head).items()}
            bad = [name for name, grad in grads.items() if grad is not None and not grad.isfinite().all()]
            if bad:
                return (
                    f"the gradient to {brief(bad)} is not finite for {where}: a root, norm, std or division at 0, or "
                    "exp without its maximum"
                )
    return None


def seeding(case: HeadCase) -> str | None:
    first, again, other = case.build(1), case.build(1), case.build(2)
    if first is again:
        return "the factory returns the same module each time: it must make a new one (lambda: MyHead(...))"
    values, repeated = first.state_dict(keep_vars=True), again.state_dict(keep_vars=True)
    loose = [name for name, t in values.items() if isinstance(t, Tensor) and not torch.equal(t, repeated[name])]
    if loose:
        return (
            f"the same torch.manual_seed gives other values of {brief(loose)}: drawn from another source, such as "
            "numpy, random, a clock or a generator of its own"
        )
    theirs = dict(other.named_parameters())
    if theirs and all(torch.equal(p, theirs[name]) for name, p in first.named_parameters()):
        return (
            f"another torch.manual_seed gives the same weights ({brief(theirs)}): they are constants, or the head sets "
            "the seed itself"
        )
    return None


def start_loss(case: HeadCase) -> str | None:
    losses = []
    for seed in range(4):
        out = predict(case.build(seed).eval(), case.inputs(seed=seed)).float()
        # The mean over all labels, not one draw of them: by Jensen's inequality this is never below ln C, so that only
        # the upper bound says something.
        losses.append((out.logsumexp(dim=1) - out.mean(dim=1)).mean().item())
    loss, chance = sum(losses) / len(losses), log(case.num_labels)
    if not loss <= chance + START_LOSS:
        return (
            f"the loss of a new head is {loss:.2f} on random labels, where ln {case.num_labels} = {chance:.2f} is "
            "chance: the first weights or biases of the last layer are too large, or its input is not normalized"
        )
    return None


def overfitting(case: HeadCase) -> str | None:
    if not trained(case.build()):
        return "no parameter requires a gradient, so nothing can be learned: a requires_grad_(False) too many"
    # No more rows than D, so that a plain linear map can part them whatever their labels.
    rows = max(2, min(ROWS, case.hidden_size))
    inputs, labels = case.inputs(rows), torch.arange(rows) % case.num_labels
    began, best = time.perf_counter(), float("inf")
    # A step moves a logit by about the rate times D. Scales and units of length 1 want more, deep heads less.
    usual = min(0.03, 1 / case.hidden_size)
    for rate in (usual, 0.1, 0.1 * usual):
        head = case.build()
        parameters = list(trained(head).values())
        moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        for step in range(1, FIT_STEPS + 1):
            with NoDropout():  # whether it can learn, not how dropout slows it
                out = call(without_dropout(head), inputs)
            if out.requires_grad:
                loss = F.cross_entropy(out, labels)
                adam_step(parameters, moments, torch.autograd.grad(loss, parameters, allow_unused=True), rate, step)
            if step % 10 == 0:
                # Either mode will do: BatchNorm's numbers lag behind in eval mode.
                outs = out.detach(), predict(head.eval(), inputs, seed=None)
                best = min(best, *(F.cross_entropy(each, labels).item() for each in outs))
                if best <= FIT_LOSS:
                    return None
                if time.perf_counter() - began > FIT_SECONDS:
                    raise Undecided(f"{FIT_SECONDS:.0f} seconds were not enough to learn {rows} rows")
    return (
        f"after {FIT_STEPS} steps the loss on {rows} rows is still {best:.2f}, not {FIT_LOSS}: the output is bounded "
        "(softmax, sigmoid or tanh at its end), too little is trained, or zeros at the start keep units alike"
    )


@torch.no_grad()
def adam_step(
    parameters: list[nn.Parameter],
    moments: list[tuple[Tensor, Tensor]],
    grads: tuple[Tensor | None, ...],
    rate: float,
    step: int,
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1). torch.optim imports the compiler first, which takes seconds."""
    for parameter, (mean, square), grad in zip(parameters, moments, grads):
        if grad is not None:
            mean.lerp_(grad, 0.1)
            square.mul_(0.999).addcmul_(grad, grad, value=0.001)
            root = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            parameter.addcdiv_(mean, root, value=-rate / (1 - 0.9**step))


def saving(case: HeadCase) -> str | None:
    head, inputs = case.moved(), case.inputs()
    predict(head.train(), inputs)  # running statistics and counters leave their start
    state = head.eval().state_dict()
    homes: dict[int, str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            first = homes.setdefault(tensor.untyped_storage().data_ptr(), name)
            if first != name:
                return f"{first} and {name} share one tensor, which safetensors refuses: register it under one name"
    D = case.hidden_size
    config = BertConfig(vocab_size=4, hidden_size=D, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1,
                        max_position_embeddings=4, num_labels=case.num_labels)  # fmt: skip
    new = case.build(1)
    before = {name: t.clone() if isinstance(t, Tensor) else t for name, t in state.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(BertClassifier(config, head=head), folder)
            back = load_classifier(folder, head=new).head.state_dict()
    except Exception as error:
        return (
            f"saved and loaded with its encoder it raises {said(error)}: a state that is not a tensor, or names and "
            "shapes that change from head to head"
        )
    lost = [name for name, t in before.items() if name not in back or back[name].dtype != t.dtype]
    lost += [name for name, t in before.items() if name not in lost and not torch.equal(back[name], t)]
    if lost:
        return (
            f"{brief(lost)} comes back with another value or dtype from model.safetensors: a number that its dtype "
            "cannot hold"
        )
    apart = distance(predict(head, inputs), predict(new.eval(), inputs))
    if apart:
        there = f" ({brief(plain_tensors(head))})" if plain_tensors(head) else ""
        return (
            f"a head that loads the saved tensors gives outputs {apart:.2g} off: a state{there} that is neither "
            "parameter nor persistent buffer"
        )
    return None


def movable(case: HeadCase) -> str | None:
    inputs, head = case.inputs(), case.moved().eval()
    plain = plain_tensors(head)
    cause = f"make {brief(plain)} a buffer or parameter" if plain else "a tensor that is neither parameter nor buffer"
    try:
        out = predict(head.double(), tuple(t.double() if t.is_floating_point() else t for t in inputs))
    except Exception as error:
        return f"after .double() it raises {said(error)}: {cause}, or a dtype written into forward"
    if out.dtype != torch.float64:
        return f"after .double() the output has dtype {out.dtype}, not float64: a cast written into forward"
    with OtherDevice(case.moved().eval()) as device:
        predict(device.head, inputs)
    if device.mixed:
        return (
            f"on another device {brief(device.mixed)} would meet a tensor left on the CPU: {cause}, or one that "
            "forward makes without device="
        )
    return None


def input_kept(case: HeadCase) -> str | None:
    head = case.moved()
    for training in (False, True):
        inputs = case.inputs()
        with torch.no_grad():
            head.train(training)(*inputs)
        for name, now, then in zip(("the input", "the mask"), inputs, case.inputs()):
            if largest(now.float(), then.float()):
                return (
                    f"{name} is not the same after a call in {mode(training)}: forward writes into it (inplace=True, "
                    "+=, masked_fill_), and others read it too"
                )
    return None


_CHECKS: dict[str, Callable[[HeadCase], str | None]] = {
    check.__name__: check
    for check in (
        output_shape, parameter_gradients, input_gradient, row_independence, row_order, padding, determinism,
        dropout_only, finite, seeding, start_loss, overfitting, saving, movable, input_kept,
    )
}  # fmt: skip
CHECKS: tuple[str, ...] = tuple(_CHECKS)

# What a check relies on: where one of these failed, its own failure decides nothing. A check in which the head raises
# relies on output_shape too.
NEEDS: dict[str, tuple[str, ...]] = {
    "row_independence": ("output_shape", "determinism"),
    "row_order": ("output_shape", "determinism"),
    "padding": ("determinism",),
    "dropout_only": ("determinism",),
    "start_loss": ("output_shape",),
    "overfitting": ("output_shape", "parameter_gradients"),
    "saving": ("determinism",),
    "movable": ("output_shape",),
}
