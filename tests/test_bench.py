"""minibert/lab/bench.py, workloads.py: what is measured, how it is counted, and that both sides get the same work."""

import contextlib
import json
import subprocess
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from minibert.__main__ import main
from minibert.data import Examples
from minibert.errors import InputError
from minibert.lab import bench as module
from minibert.lab import workloads
from minibert.lab.bench import RIVALS, compare, format_case, our_step
from minibert.lab.workloads import CASES, WARMUP, Case, order, work

SMALL = Case("base", 4, 3, "16 to 256")


def figures(ms, tokens=100.0, gflop=6.0, gb=0.1, rss_mb=500.0, start_seconds=2.0):
    return {"ms": ms, "tokens": tokens, "gflop": gflop, "gb": gb, "rss_mb": rss_mb, "start_seconds": start_seconds}


@pytest.fixture
def small(monkeypatch):
    """Case names -> a tiny network and few texts."""
    monkeypatch.setattr(module, "our_model", lambda case, machine: module.BertClassifier(replace(TINY, num_labels=6)))
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in np.linspace(3, 60, 24).astype(int)]
    return Examples(ids, None, generator.integers(0, 6, 24), np.arange(24))


def test_medians_against_the_fastest_rival():
    seen = {"minibert": [figures(20), figures(30), figures(10)], "loop": [figures(90), figures(50), figures(70)],
            "Trainer": [figures(60, rss_mb=900), figures(61, rss_mb=900), figures(1000, rss_mb=900)]}  # fmt: skip
    result = compare("motion-b2", seen, peak=400.0, speed=50.0)
    assert (result["ms"], result["ms_other"], result["other"], result["ratio"]) == (20, 61, "Trainer", 3.05)
    assert result["ms_rivals"] == {"loop": 70, "Trainer": 61}
    assert result["tokens_per_second"] == pytest.approx(100 / 0.020)
    assert result["peak_share"] == pytest.approx(6 / 0.020 / 400)
    assert result["limit_ms"] == pytest.approx(1e3 * (6 / 400 + 0.1 / 50))
    assert result["limit_share"] == pytest.approx(result["limit_ms"] / 20)
    assert (result["rss_mb"], result["rss_mb_other"]) == (500, 900)
    assert "3.05" in format_case(result)
    assert len(format_case(result | {"ms": 519_462.0, "ms_other": 798_938.0, "rss_mb": 10_000})) <= 80
    assert len(module.HEADER) <= 80


def test_launches_are_counted_where_there_is_a_gpu():
    seen = {"minibert": [figures(20) | {"launches": 3}], "loop, sdpa": [figures(50) | {"launches": 1100}],
            "loop, eager": [figures(60) | {"launches": 1300}], "Trainer, sdpa": [figures(40)]}  # fmt: skip
    result = compare("base-b2", seen, peak=400.0, speed=50.0)
    assert (result["launches"], result["launches_other"]) == (3, 1100)
    row, launches = format_case(result | {"other": "Trainer, eager"}).splitlines()
    assert launches == "  launches a step: 3, the reference's loop 1,100"
    assert len(row) <= 80
    without = compare("base-b2", {side: [figures(20)] for side in seen}, peak=400.0, speed=50.0)
    assert without["launches"] is None
    assert "launches" not in format_case(without)


def test_what_gives_a_gpu_work_is_counted(monkeypatch):
    """With the profiler's names of what one step calls: kernels by runtime and driver, a graph, a copy."""
    names = ["aten::mm", "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch",
             "cudaMemcpyAsync", "cudaMemsetAsync", "cudaStreamSynchronize", "Memcpy HtoD", "gemm_kernel"]  # fmt: skip
    ran = []

    class Profile(contextlib.ExitStack):
        def events(self):
            return [SimpleNamespace(name=name) for name in names] if ran == ["batch", "synchronized"] else []

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: ran.append("synchronized"))
    assert workloads.launches(ran.append, "batch") == 6


@pytest.mark.cuda
def test_a_recorded_step_is_few_launches():
    batch, weight = torch.ones(64, 64, device="cuda"), torch.ones(64, 64, device="cuda")
    assert workloads.launches(lambda x: x @ weight + 1, batch) == 2


def test_work_is_counted_in_real_tokens(monkeypatch):
    """By hand: each matrix entry 2 FLOP a token, scores and their use 2 S D each, all of it three times in training."""
    monkeypatch.setattr(workloads, "bert_config", lambda case: TINY)
    layer = 4 * 24 * 24 + 2 * 24 * 40
    tokens, squares = 5 + 7, 25 + 49
    forward = 2 * (2 * layer * tokens + 2 * 2 * squares * 24)
    assert work(SMALL, [5, 7]) == pytest.approx(3 * forward / 1e9)
    assert work(SMALL._replace(what="eval"), [5, 7]) == pytest.approx(forward / 1e9)


def test_the_weights_way_through_memory_is_counted(small, monkeypatch):
    """28 bytes a trained number: the words that do not occur are none."""
    monkeypatch.setattr(workloads, "bert_config", lambda case: TINY)
    model = module.BertClassifier(TINY)
    occurring = len({i for ids in small.ids for i in ids.tolist()} | {0})
    trained = sum(p.numel() for p in model.parameters()) - (TINY.vocab_size - occurring) * 24
    assert workloads.weights_moved(SMALL, small) == pytest.approx(28 * trained / 1e9)
    assert workloads.weights_moved(SMALL._replace(what="eval"), small) == 0


def test_a_copy_is_read_and_written():
    x, y = torch.ones(2, 1 << 22)
    begin = module.time.perf_counter()
    for _ in range(5):
        y.copy_(x)
    seen = 5 * 8 * (1 << 22) / 1e9 / (module.time.perf_counter() - begin)
    assert seen / 20 < module.copy_speed() < 50 * seen


def test_both_sides_get_the_same_batches(small):
    batches = order(SMALL, small)
    assert batches == order(SMALL, small)
    assert [len(batch) for batch in batches] == [4] * (SMALL.steps + WARMUP)
    assert len({i for batch in batches for i in batch}) == 24
    spread = [max(rows) - min(rows) for rows in batches]
    assert max(spread) > 8  # random order, not by length
    together = order(SMALL._replace(what="eval"), small)
    assert all(max(rows) - min(rows) == 3 for rows in together)  # by length, the batches themselves shuffled
    assert [min(rows) for rows in together] != sorted(min(rows) for rows in together)


@pytest.mark.parametrize("what", ["train", "eval"])
def test_our_side_runs(small, what):
    first, seconds, _ = our_step(SMALL._replace(what=what), small, "fp32")(module.time.time() - 5)
    assert first > 5
    assert 0 < seconds < 60


@pytest.mark.parametrize(("what", "side"), [(what, side) for what in ("train", "eval") for side in RIVALS[what]])
def test_the_reference_side_runs(small, monkeypatch, what, side):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from minibert.lab import bench_reference

    def tiny(case, attention):
        config = transformers.BertConfig(
            vocab_size=TINY.vocab_size, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_labels=6,
            intermediate_size=40, max_position_embeddings=64, attn_implementation=attention,
        )  # fmt: skip
        return transformers.BertForSequenceClassification(config)

    monkeypatch.setattr(bench_reference, "model_of", tiny)
    run = bench_reference.reference_step(SMALL._replace(what=what), small, "bf16", side)
    first, seconds, launches = run(module.time.time() - 5)
    assert launches is None
    assert first > 5
    assert 0 < seconds < 60


def test_the_peak_is_that_of_a_matrix_product(monkeypatch):
    monkeypatch.setattr(module, "shortest", partial(module.shortest, times=2))
    x = torch.randn(1024, 1024)
    begin = module.time.perf_counter()
    for _ in range(5):
        x @ x
    seen = 5 * 2 * 1024**3 / 1e9 / (module.time.perf_counter() - begin)
    assert seen / 5 < module.matmul_peak("fp32") < 50 * seen


def test_json_and_table(monkeypatch, capsys):
    monkeypatch.setattr(module, "installed", lambda package: "1.0")
    monkeypatch.setattr(module.sources, "resolve", lambda name: None)
    monkeypatch.setattr(module, "matmul_peak", lambda *_: 400.0)
    monkeypatch.setattr(module, "copy_speed", lambda *_: 50.0)
    asked = []
    monkeypatch.setattr(module, "measure", lambda *one: (asked.append(one), figures(len(asked)))[1])
    assert main(["bench", "--cases", "motion-b2,eval-b64", "--rounds", "2", "--precision", "fp32", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [case["case"] for case in result["cases"]] == ["motion-b2", "eval-b64"]
    assert {"ms", "ms_other", "ratio", "tokens_per_second", "peak_share", "rss_mb", "start_seconds"} <= set(
        result["cases"][0]
    )
    assert result["precision"] == "fp32"
    assert err.count("\n") == 5
    turns = ["minibert", *RIVALS["train"]]
    assert [side for _, side, *_ in asked[:10]] == turns + turns  # in turn, not one after the other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cases", "motion-b3"], "motion-b3: known are motion-b2"),
        (["--rounds", "0"], "--rounds 0"),
        (["--device", "tpu"], "--device tpu: it must be one of auto, cpu, cuda"),
        (["--precision", "fp16"], "--precision fp16: it must be one of auto, fp32, bf16"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, flags, message):
    monkeypatch.setattr(module, "installed", lambda package: "1.0")
    with pytest.raises(InputError, match=message):
        main(["bench", *flags])


def test_without_the_reference_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "installed", lambda name: "not installed" if name == "accelerate" else "1.0")
    with pytest.raises(InputError, match=r"accelerate is missing: pip install -e '\.\[bench\]'"):
        main(["bench"])


def test_a_measurement_that_fails_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no more")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match="motion-b2, minibert: the measurement failed: MemoryError: no more"):
        module.measure("motion-b2", "minibert", "fp32")


def test_every_case_is_in_the_documentation():
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in CASES)
