"""Dropout by other means than nn.Dropout's: the same distribution, faster. A model is built with one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from minibert.model import Dropout

ONE = 0x3F80  # the bits of 1.0 in bfloat16


class BitDropout(nn.Module):
    """For the CPU: masks of 15 random bits an element, where torch draws them one number at a time.

    The rate is rounded to a multiple of 2^-15, and below 1. The generator is seeded from torch's at every call, so
    torch.manual_seed rules it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.kept = max(1, round((1 - p) * 2**15))  # of 2^15 values

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x.shape).to(x.dtype) * (2**15 / self.kept) if self.training and self.p else x

    def mask(self, shape: Sequence[int]) -> Tensor:
        """1 where kept, else 0, in bfloat16. In integers: bools are slow to make and to multiply by."""
        count = math.prod(shape)
        generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
        bits = generator.integers(2**64, size=-(-count // 4), dtype=np.uint64)
        mask = torch.from_numpy(bits.view(np.int16)[:count]).bitwise_and_(0x7FFF).sub_(self.kept)
        mask = mask.bitwise_right_shift_(15).bitwise_and_(ONE)  # the sign, in every bit; then 1.0 or 0.0
        return mask.view(torch.bfloat16).view(shape)


class OneKernelDropout(nn.Module):
    """For other devices: torch's own, by the operator that draws and multiplies in one kernel each way."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p else x


def dropout_for(device: torch.device) -> Dropout:
    """The way to draw dropout that suits a device."""
    return BitDropout if device.type == "cpu" else OneKernelDropout
