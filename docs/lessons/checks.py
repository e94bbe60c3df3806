"""What the lessons' tests say when an answer is wrong: one sentence, and where possible which mistake it is."""

import pytest
import torch


def same(got, want, what, mistakes=None, tolerance=1e-5):
    """Fail in one sentence unless two tensors, or two numbers, agree.

    Args:
        mistakes: {a sentence: what an answer with that mistake would be}.
    """
    __tracebackhide__ = True
    want = torch.as_tensor(want)
    try:
        got = torch.as_tensor(got).detach()
    except (TypeError, ValueError, RuntimeError):
        pytest.fail(f"{what} is a {type(got).__name__}; it must be a tensor or a number", pytrace=False)
    if got.shape != want.shape:
        pytest.fail(f"{what} has shape {tuple(got.shape)}; it must be {tuple(want.shape)}", pytrace=False)
    if off(got, want) <= tolerance:
        return
    for sentence, wrong in (mistakes or {}).items():
        if torch.as_tensor(wrong).shape == got.shape and off(got, torch.as_tensor(wrong)) <= tolerance:
            pytest.fail(f"{what}: {sentence}", pytrace=False)
    shown = f": {got.item():.6g} in place of {want.item():.6g}" if got.numel() == 1 else ""
    pytest.fail(f"{what} is off by up to {off(got, want):.2g}{shown}", pytrace=False)


def off(got, want):
    """The largest difference; infinite where a number is none."""
    difference = (got.double() - want.double()).abs()
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0


def need(true, sentence):
    """Fail with the sentence unless it holds."""
    __tracebackhide__ = True
    if not true:
        pytest.fail(sentence, pytrace=False)
