"""Which number format the forward and backward pass run in. The weights themselves are always float32."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """
    Attributes:
        name: "fp32", "bf16" or "fp16".
        why: the reason, for the first line of a run.
    """

    name: str
    why: str
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Matrix products in the format, sums and LayerNorm in float32."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.name])


def choose_device() -> torch.device:
    """CUDA if there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """`auto`: bf16 where the hardware multiplies it faster than float32, on older CUDA fp16, else fp32."""
    if wanted != "auto":
        return Precision(wanted, "as asked", device)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return Precision("bf16", "this GPU has bf16 tensor cores", device)
        return Precision("fp16", "this GPU has no bf16 tensor cores", device)
    if fast_bf16_cpu():
        return Precision("bf16", "this CPU has bf16 matrix instructions", device)
    return Precision("fp32", "this CPU has no bf16 matrix instructions", device)


def fast_bf16_cpu() -> bool:
    """AMX or AVX512-BF16 on x86; elsewhere unknown, so no. Emulated bf16 is 6 to 10 times slower than float32."""
    tests = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return platform.machine() in ("x86_64", "AMD64") and any(test is not None and test() for test in tests)


class LossScaler:
    """Keeps fp16 gradients out of underflow: the loss is multiplied by `scale`, the gradients divided by it.

    Micikevicius et al. 2018, arXiv:1710.03740. A step whose gradients overflowed is skipped and the scale halved; after
    `patience` good steps it doubles. Not `enabled`, the scale is 1 for ever.
    """

    def __init__(self, enabled: bool, scale: float = 2.0**16, patience: int = 2000) -> None:
        self.enabled, self.patience = enabled, patience
        self.scale = scale if enabled else 1.0
        self.good_steps = 0

    @property
    def spent(self) -> bool:
        """Whether gradients that are not finite cannot be mended by a smaller scale."""
        return not self.enabled or self.scale < 2**-24

    def update(self, finite: bool) -> None:
        """Say of each step whether all its gradients were finite."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps == self.patience:
            self.scale, self.good_steps = self.scale * 2, 0
