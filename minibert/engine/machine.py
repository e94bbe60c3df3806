"""What trains: the device, how many processes, and the number format of the forward and backward pass. The weights
themselves are always float32.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minibert.engine.processes import Processes, here

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        name: of the number format of the forward and backward pass: "fp32", "bf16" or "fp16".
        why: the reason for it, for the first line of a run.
    """

    name: str
    why: str
    device: torch.device
    processes: Processes = field(default_factory=here)

    def autocast(self) -> AbstractContextManager:
        """Matrix products in the format, sums and LayerNorm in float32."""
        if self.name == "fp32":
            return nullcontext()
        # No cache: no weight is used twice in a step, and a cast that a CUDA graph did not record would be wrong in it.
        return torch.autocast(self.device.type, dtype=DTYPES[self.name], cache_enabled=False)

    def describe(self) -> str:
        """ "CPU, 2 threads", or what the GPU calls itself; of several processes their number and how they talk."""
        world = self.processes.world
        together = f", {world} processes, {'nccl' if self.device.type == 'cuda' else 'gloo'}" if world > 1 else ""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device) + together
        count = torch.get_num_threads()
        return f"CPU, {count} thread{'s' * (count > 1)}{together}"


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def instructions() -> str:
    """The instruction set that the CPU's kernels are chosen for, and what in the environment chooses another."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
    asked = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *asked])


def choose_device() -> torch.device:
    """CUDA if there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_machine(wanted: str, device: torch.device) -> Machine:
    """`auto`: bf16 where the hardware multiplies it faster than float32, on older CUDA fp16, else fp32."""
    if wanted != "auto":
        return Machine(wanted, "as asked", device)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return Machine("bf16", "this GPU has bf16 tensor cores", device)
        return Machine("fp16", "this GPU has no bf16 tensor cores", device)
    if fast_bf16_cpu():
        return Machine("bf16", "this CPU has bf16 matrix instructions", device)
    return Machine("fp32", "this CPU has no bf16 matrix instructions", device)


def fast_bf16_cpu() -> bool:
    """AMX or AVX512-BF16 on x86; elsewhere unknown, so no. Emulated bf16 is 6 to 10 times slower than float32."""
    tests = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return platform.machine() in ("x86_64", "AMD64") and any(test is not None and test() for test in tests)
