"""minibert/engine/machine.py."""

import pytest
import torch

from minibert.engine.machine import choose_machine, fast_bf16_cpu, instructions

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amx", "avx", "name"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")])
def test_auto_on_a_cpu_asks_the_hardware(monkeypatch, amx, avx, name):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    assert choose_machine("auto", CPU).name == name
    assert "bf16 matrix instructions" in choose_machine("auto", CPU).why


def test_another_processor_is_taken_for_slow(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert not fast_bf16_cpu()


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_cuda(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_machine("auto", torch.device("cuda")).name == name


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_what_is_asked_for_is_used(name, dtype):
    with choose_machine(name, CPU).autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_what_the_environment_asks_of_the_kernels_is_noted(monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR"):
        monkeypatch.delenv(name, raising=False)
    plain = instructions()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert instructions() == f"{plain}, MKL_CBWR=COMPATIBLE"
