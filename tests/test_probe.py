"""minibert/inside.py, lab/probe.py: figures are those of direct computation, drift is a real move, words are true."""

import copy
import json
import math
import re
from dataclasses import replace

import forked
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, seeing

from minibert.config import TrainConfig
from minibert.data.batches import Batch
from minibert.errors import InputError
from minibert.initialization import Init, initialize, layer_config
from minibert.inside import look
from minibert.lab import probe as module
from minibert.lab.probe import format_probe, highest_rate, logit_figures, probe, spread, tolerance
from minibert.model import BertClassifier
from minibert.seeds import Seeds
from minibert.verdict import mean_cosine

LENGTHS = [9, 5, 7, 9, 6, 8]


@pytest.fixture
def batch():
    """Six inputs that begin with the same token, padded."""
    ids = torch.randint(5, TINY.vocab_size, (6, 9), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 2
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    return Batch(ids * mask, mask, None, torch.tensor([0, 1, 2, 3, 4, 0]))


def start(scheme, tiny, **changes):
    init = Init.parse(scheme)
    model = BertClassifier(layer_config(init, replace(TINY, **changes)))
    return model.eval(), initialize(model, init, tiny, Seeds())


def pairs(vectors):
    """The mean cosine of all pairs, one by one."""
    all_pairs = [F.cosine_similarity(a, b, dim=0) for i, a in enumerate(vectors) for b in vectors[:i]]
    return torch.stack(all_pairs).mean().item()


def test_cosine_by_hand():
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 2], [3, 3]])) == pytest.approx(math.sqrt(2) / 3)
    assert mean_cosine(torch.tensor([[1.0, 2, 3]] * 4)) == pytest.approx(1, abs=1e-12)


def test_spread_by_hand():
    assert spread(torch.tensor([[2.0, 1], [2, -1]])) == pytest.approx(1 / math.sqrt(5))
    assert spread(torch.tensor([[3.0, 4], [-3, -4]])) == pytest.approx(1)
    assert spread(torch.tensor([[3.0, 4], [3, 4]])) == 0
    assert spread(torch.zeros(2, 2)) == 0


def test_logits_by_hand():
    """Less their mean over the classes: (0.5, -0.5) and (1.5, -1.5), off by (1, -1) together."""
    figures = logit_figures(torch.tensor([[11.0, 10], [3, 0]]))
    assert figures == pytest.approx({"spread": 0.5, "offset": 1.0})


@pytest.mark.parametrize("scheme", ["random", "admin", "layerscale:0.3", "rezero", "prenorm"])
def test_figures_of_each_part_are_those_of_its_own_modules(tiny, batch, scheme):
    model, manifest = start(scheme, tiny)
    parts = {part.name: part for part in look(model, batch, manifest)}
    expected = ["embeddings", "layer 1", "layer 2", "norm", "pooler", "head"]
    assert list(parts) == [name for name in expected if name != "norm" or scheme == "prenorm"]
    real, mask = batch.attention_mask, batch.attention_mask[:, None, None, :]

    def check(part, x):
        assert part.tokens == pytest.approx(sum(pairs(x[i, :n]) for i, n in enumerate(LENGTHS)) / 6, abs=1e-5)
        assert part.cls == pytest.approx(pairs(x[:, 0]), abs=1e-5)
        assert part.means == pytest.approx(pairs([x[i, :n].mean(dim=0) for i, n in enumerate(LENGTHS)]), abs=1e-5)
        assert part.activation == pytest.approx(x[real].norm(dim=1).mean().item(), rel=1e-5)

    with torch.no_grad():
        x = model.bert.embeddings(batch.input_ids)
        check(parts["embeddings"], x)
        for i, layer in enumerate(model.bert.layers, 1):
            before = layer.attention_norm(x) if layer.norm_first else x
            branch = layer.attention_gate(layer.attention(before, seeing(mask)))
            ratio = (branch[real].norm() / (layer.residual_scale * x)[real].norm()).item()
            assert parts[f"layer {i}"].attention == pytest.approx(ratio, rel=1e-5)
            middle = layer.residual_scale * x + branch
            middle = middle if layer.norm_first else layer.attention_norm(middle)
            before = layer.feed_forward_norm(middle) if layer.norm_first else middle
            branch = layer.feed_forward_gate(layer.feed_forward(before))
            ratio = (branch[real].norm() / (layer.residual_scale * middle)[real].norm()).item()
            assert parts[f"layer {i}"].feed_forward == pytest.approx(ratio, rel=1e-5)
            assert (ratio == 0) == (scheme == "rezero")
            x = layer(x, seeing(mask))
            check(parts[f"layer {i}"], x)
        if scheme == "prenorm":
            check(parts["norm"], model.bert.norm(x))

    F.cross_entropy(model(*batch[:3]), batch.labels).backward()
    for name, part in parts.items():
        prefix = name if name == "head" else f"bert.{name}"
        prefix = f"bert.layers.{int(name[6:]) - 1}" if name.startswith("layer ") else prefix
        own = {n: p for n, p in model.named_parameters() if n.startswith(f"{prefix}.")}
        together = torch.cat([p.grad.flatten() for p in own.values()])
        assert part.gradient == pytest.approx(together.norm().item(), rel=1e-4)
        matrices = [p.detach().flatten() for p in own.values() if p.dim() == 2]
        if matrices:
            assert part.mean == pytest.approx(torch.cat(matrices).mean().item())
            assert part.std == pytest.approx(torch.cat(matrices).std(correction=0).item())
        else:
            assert (part.mean, part.std) == (None, None)


def test_a_part_says_where_its_weights_come_from(tiny, batch):
    model, manifest = start("reinit:1", tiny)
    assert [part.source for part in look(model, batch, manifest)] == ["pretrained", "pretrained", *["drawn"] * 3]
    again = start("pretrained", tiny)
    pretrained = look(again[0], batch, again[1])
    same = [a.sha256 == b.sha256 for a, b in zip(look(model, batch, manifest), pretrained)]
    assert same == [True, True, False, False, True]  # the head's stream is its own


def test_identical_inputs_have_cosine_one_and_leave_nothing_to_lose(tiny, batch):
    model, manifest = start("random", tiny)
    one = Batch(*(None if t is None else t[:1].repeat(6, *[1] * (t.dim() - 1)) for t in batch))
    for part in look(model, one, manifest)[:3]:
        assert (part.cls, part.means) == pytest.approx((1, 1), abs=1e-9)
        assert part.tokens < 0.99
    assert tolerance(model, one) == {"tolerance": 0.0, "curve": [], "rates": {}}


def test_a_network_without_words_is_blind(tiny, batch):
    model, _ = start("random", tiny)
    with torch.no_grad():
        model.bert.embeddings.word.weight.zero_()
    assert tolerance(model, batch._replace(attention_mask=None))["tolerance"] == 0


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1])
def test_the_tolerance_is_where_a_real_move_comes_to_the_share(tiny, batch, monkeypatch, share):
    """From far below the first t tried to far above it."""
    monkeypatch.setattr(module, "SHARE", share)
    model, _ = start("random", tiny, pool="mean")
    found = tolerance(model, batch)
    before = spread(model.bert(*batch[:3])[1].detach())
    F.cross_entropy(model(*batch[:3]), torch.zeros(6, dtype=torch.long)).backward()

    def left(t):
        moved = copy.deepcopy(model.bert)
        with torch.no_grad():
            for p, q in zip(moved.parameters(), model.bert.parameters()):
                if q.grad is not None:  # the pooler, which the mean does not ask
                    p -= t * q.grad.sign()
            return spread(moved(*batch[:3])[1]) / before

    assert left(found["tolerance"]) > share >= left(2**0.125 * found["tolerance"])
    assert [t for t, _ in found["curve"]] == sorted(t for t, _ in found["curve"])
    for t, value in found["curve"]:
        assert value == pytest.approx(left(t), rel=1e-4)


def test_a_share_that_is_never_reached(tiny, batch, monkeypatch):
    monkeypatch.setattr(module, "SHARE", -1.0)
    found = tolerance(start("random", tiny)[0], batch)
    assert (found["tolerance"], found["rates"]) == (None, {})
    assert found["curve"][-1][0] == module.COARSEST


def test_tamer_starts_bear_more(tiny, batch):
    borne = [
        tolerance(start(scheme, tiny, pool="mean", num_hidden_layers=6)[0], batch)["tolerance"]
        for scheme in ("xavier", "random", "layerscale:0.1", "rezero")
    ]
    assert borne == sorted(borne), borne
    assert borne[-1] > 3 * borne[0]


def test_highest_rate_by_hand():
    """The first ten steps sum to 10 without a warmup, to (0 + 1 + ... + 9) / 15 with one of 15."""
    assert highest_rate(2.8e-3, 0) == pytest.approx(1e-3, rel=1e-4)
    assert highest_rate(2.8e-3, 15) == pytest.approx(10e-3 / 3)
    assert highest_rate(2.8e-3, 75) == pytest.approx(10e-3 / 0.6)


@pytest.fixture
def config(tiny, tmp_path):
    rows = [{"text": f"{i} {2 * i % 99} a" * (1 + i % 3), "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TrainConfig(data=str(tmp_path / "data.jsonl"), model=str(tiny), init="random")


def test_the_network_is_left_as_it_was(config, monkeypatch):
    kept = {}
    real = module.prepare

    def prepare(*arguments, **keywords):
        kept["setup"] = real(*arguments, **keywords)
        kept["before"] = copy.deepcopy(kept["setup"].model.state_dict())
        return kept["setup"]

    monkeypatch.setattr(module, "prepare", prepare)
    first = probe(config, 8, str)
    model = kept["setup"].model
    assert all(torch.equal(tensor, kept["before"][name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert probe(config, 8, str) == first  # nothing is drawn: dropout is off


def test_other_starts_are_shown_the_same_inputs(config, monkeypatch):
    seen = []
    real = module.choose
    monkeypatch.setattr(module, "choose", lambda *a: seen.append(real(*a)) or seen[-1])
    probe(config, 32, str)
    probe(replace(config, init="pretrained", seed="5"), 32, str)
    assert torch.equal(seen[0].input_ids, seen[1].input_ids)
    assert len({tuple(row) for row in seen[0].input_ids.tolist()}) == 32  # the whole split, none of it twice


def test_the_screen(config):
    said = []
    result = probe(config, 8, said.append)
    assert "fp32: as asked" in said[0]  # whatever a run would train in
    shown = format_probe(result)
    assert len(shown.splitlines()) >= len(result["parts"]) + 4
    assert f"{result['drift']['tolerance']:.1e} a weight" in shown
    assert f"{result['drift']['rates']['15']:.1e} (warmup 15)" in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())
    for part in result["parts"]:
        assert re.search(rf"^{part['name']} +randomly initialized .* {part['sha256'][:5]} ", shown, re.MULTILINE)
        assert (part["tokens"] is None) == (shown.count(f"\n{part['name']}  ") < 2)
    result["drift"]["tolerance"] = 0
    assert "blind" in format_probe(result)
    result["drift"]["tolerance"] = None
    assert "still sees" in format_probe(result)


def run(*words):
    return forked.run("-m", "minibert", "probe", *words)


def test_json_is_whole(config):
    flags = ["--init", "prenorm", "--inputs", "8", "--max-length", "6", "--json"]
    done = run("--data", config.data, "--model", config.model, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout, parse_constant=pytest.fail)  # no NaN, no infinity
    assert set(result) == {
        "init", "model", "data", "pool", "inputs", "manifest", "parts", "read", "logits", "drift"
    }  # fmt: skip
    assert set(result["manifest"]["head.linear.bias"]) == {"source", "mean", "std", "sha256"}
    assert (result["init"], result["inputs"]) == ("prenorm", 8)
    here = probe(replace(config, init="prenorm", max_length=6), 8, str)
    assert result == json.loads(json.dumps(here))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init", "xavierr"], "known: pretrained, random"),
        (["--init", "reinit:9"], "K from 1 to 2"),
        (["--inputs", "1"], "--inputs 1: it must be at least 2"),
        (["--inputs", "999"], "--inputs 999: the training split has 32"),
        (["--pool", "max"], "--pool max: it must be one of auto, cls, mean"),
    ],
)
def test_errors_are_one_line(config, words, said):
    done = run("--data", config.data, "--model", config.model, *words)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert said in done.stderr


def test_help_has_each_default_once():
    shown = " ".join(run("--help").stdout.split())
    assert "(default: acc for motion, else all) --steps" in shown
    assert "(default: pretrained)" in shown


def test_a_scheme_that_needs_weights_says_so(config, tiny, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    probe(replace(config, model=str(tmp_path)), 8, str)
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        probe(replace(config, model=str(tmp_path), init="pretrained"), 8, str)
