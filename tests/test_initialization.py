"""minibert/initialization.py: the tensors of each scheme are what it says, and the manifest tells the truth."""

import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from safetensors.torch import load_file, save_file
from torch import nn

from minibert.checkpoint import load_classifier, load_encoder, read_config, save_pretrained
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.initialization import SCHEMES, Init, forms, initialize, layer_config, layer_of, summary
from minibert.model import BertClassifier
from minibert.seeds import Seeds
from minibert.training import loop
from minibert.training.run import resume, train

WRITTEN = [form.replace("K", "1").replace("I-J", "1-1").replace("G", "0.1").replace(":E", ":1") for form in forms()]


def start(scheme, tiny, **seeds):
    init = Init.parse(scheme)
    model = BertClassifier(layer_config(init, TINY))
    return model, initialize(model, init, tiny, Seeds(**seeds), learned(scheme))


def learned(scheme):
    """What self-mlm would have trained, in a scale that no draw has; None for the others."""
    if not scheme.startswith("self-mlm"):
        return None
    generator = torch.Generator().manual_seed(0)
    encoder = BertClassifier(TINY, pool="mean").bert.state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) + 3 for name, tensor in encoder.items()}


def equal(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.fixture
def source(tiny):
    return load_encoder(tiny).state_dict()


@pytest.mark.parametrize("scheme", WRITTEN)
def test_manifest_covers_every_parameter_once_and_tells_the_truth(tiny, source, scheme):
    model, manifest = start(scheme, tiny)
    assert list(manifest) == [name for name, _ in model.named_parameters()]
    for name, tensor in model.named_parameters():
        entry = manifest[name]
        assert entry["mean"] == pytest.approx(tensor.mean().item())
        assert entry["std"] == pytest.approx(tensor.std(correction=0).item())
        assert entry["sha256"] == hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        assert entry["source"] in ("pretrained", "permuted", "drawn", "self-mlm")
        if name.startswith("bert.") and "permute-layers" not in scheme:
            same = torch.equal(tensor, source.get(name.removeprefix("bert."), torch.zeros(0)))
            assert same == (entry["source"] == "pretrained"), name


@pytest.mark.parametrize("scheme", WRITTEN)
def test_seeds_are_apart(tiny, scheme):
    first, _ = start(scheme, tiny, encoder=1, head=2)
    assert equal(first, start(scheme, tiny, encoder=1, head=2, order=9, dropout=9)[0])
    other_head, _ = start(scheme, tiny, encoder=1, head=3)
    assert equal(first.bert, other_head.bert)
    assert not torch.equal(first.head.linear.weight, other_head.head.linear.weight)
    others = [start(scheme, tiny, encoder=seed, head=2)[0] for seed in (2, 3, 4, 5)]
    drawn = scheme not in ("pretrained", "permute-layers")
    assert all(equal(first.head, other.head) for other in others)
    assert any(not equal(first.bert, other.bert) for other in others) == drawn  # two layers have one other order


@pytest.mark.parametrize("scheme", [form for form in WRITTEN if not Init.parse(form).scheme.needs_weights])
def test_random_schemes_need_no_weights(tiny, tmp_path, scheme):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert equal(start(scheme, tmp_path)[0], start(scheme, tiny)[0])


@pytest.mark.parametrize("scheme", [form for form in WRITTEN if Init.parse(form).scheme.needs_weights])
def test_the_others_say_so(tmp_path, tiny, scheme):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        start(scheme, tmp_path)


def kept(scheme, tiny):
    """Which parts a scheme leaves pretrained: embeddings, layer numbers, pooler."""
    _, manifest = start(scheme, tiny)
    parts = {}
    for name, entry in manifest.items():
        short = name.removeprefix("bert.")
        parts.setdefault(layer_of(short) or short.split(".")[0], set()).add(entry["source"])
    assert all(len(sources) == 1 for sources in parts.values()), parts
    assert parts.pop("head") == {"drawn"}
    assert len(parts) == TINY.num_hidden_layers + 2
    return {part for part, sources in parts.items() if sources == {"pretrained"}}


@pytest.mark.parametrize(
    ("scheme", "parts"),
    [
        ("pretrained", {"embeddings", 1, 2, "pooler"}),
        ("random", set()),
        ("reinit:1", {"embeddings", 1}),
        ("reinit:2", {"embeddings"}),
        ("layers:1-1", {1}),
        ("layers:2-2", {2}),
        ("layers:1-2", {1, 2}),
        ("embeddings", {"embeddings"}),
        ("encoder", {1, 2}),
        ("no-pooler", {"embeddings", 1, 2}),
    ],
)
def test_partial_schemes_keep_these_parts(tiny, scheme, parts):
    assert kept(scheme, tiny) == parts


def test_what_a_partial_scheme_draws_is_what_random_draws(tiny):
    partial, random = start("embeddings", tiny)[0], start("random", tiny)[0]
    assert equal(partial.bert.layers, random.bert.layers)


def test_random_is_berts(tiny):
    model, _ = start("random", tiny)
    weights = torch.cat([p.flatten() for p in model.bert.parameters() if p.dim() == 2])
    assert weights.std().item() == pytest.approx(TINY.initializer_range, rel=0.02)
    assert weights.abs().max() > 2.5 * TINY.initializer_range
    assert model.bert.layers[0].attention_norm.weight.unique().tolist() == [1.0]
    assert model.bert.embeddings.word.weight[0].abs().max() == 0


def test_truncated_stays_within_two_sigma(tiny):
    model, _ = start("random:truncated", tiny)
    weights = torch.cat([p.flatten() for p in model.bert.parameters() if p.dim() == 2])
    assert weights.abs().max() <= 2 * TINY.initializer_range
    assert weights.std().item() == pytest.approx(0.88 * TINY.initializer_range, rel=0.02)  # of a normal cut at two
    assert model.bert.embeddings.word.weight[0].abs().max() == 0


def test_xavier_scales_by_the_two_widths_of_each_matrix(tiny):
    model, _ = start("xavier", tiny)
    layer = model.bert.layers[0]
    for part in layer.attention.qkv.weight.chunk(3):
        assert part.std().item() == pytest.approx(math.sqrt(2 / (24 + 24)), rel=0.1)
    for matrix in (layer.feed_forward.input.weight, layer.feed_forward.output.weight):
        assert matrix.std().item() == pytest.approx(math.sqrt(2 / (24 + 40)), rel=0.1)
    assert model.bert.embeddings.word.weight.std().item() == pytest.approx(TINY.initializer_range, rel=0.05)
    assert layer.attention.qkv.bias.abs().max() == 0


def test_mimetic_products_lie_near_the_identity(tiny):
    model, _ = start("mimetic", tiny)
    eye = torch.eye(24)
    for layer in model.bert.layers:
        query, key, value = layer.attention.qkv.weight.chunk(3)
        both = layer.attention.output.weight @ value
        # -0.4 I plus noise: the diagonal is certain, the rest is the noise's 0.4 / sqrt(24).
        assert both.diagonal().mean().item() == pytest.approx(-0.4, abs=0.06)
        assert (both + 0.4 * eye).std().item() == pytest.approx(0.4 / math.sqrt(24), rel=0.15)
        for q, k in zip(query.chunk(4), key.chunk(4)):
            # The best approximation of rank 6 (of 24): the trace keeps the largest part of its singular values.
            assert (q.T @ k).diagonal().mean().item() > 0.1
            assert torch.linalg.matrix_rank(q.T @ k) == 6


def test_shuffle_keeps_the_values_and_loses_the_places(tiny, source):
    model, _ = start("shuffle", tiny)
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor.flatten().sort().values, source[name].flatten().sort().values), name
        assert not torch.equal(tensor, source[name]), name


def test_permuted_layers_are_whole(tiny, source):
    model, manifest = start("permute-layers", tiny)
    for name, tensor in model.bert.state_dict().items():
        other = (
            name.replace("layers.0.", "layers.x.").replace("layers.1.", "layers.0.").replace("layers.x.", "layers.1.")
        )
        assert torch.equal(tensor, source[other]), name
        assert manifest[f"bert.{name}"]["source"] == ("permuted" if "layers" in name else "pretrained")


def test_moments_keep_mean_and_spread(tiny, source):
    model, _ = start("moments", tiny)
    for name, tensor in model.bert.state_dict().items():
        spread = source[name].std(correction=0).item()
        error = 5 * spread / math.sqrt(tensor.numel())
        assert tensor.mean().item() == pytest.approx(source[name].mean().item(), abs=error), name
        assert tensor.std(correction=0).item() == pytest.approx(spread, abs=error), name


def test_self_mlm_takes_what_was_trained_and_draws_the_pooler(tiny):
    model, manifest = start("self-mlm:1", tiny)
    given, random = learned("self-mlm:1"), start("random", tiny)[0].bert.state_dict()
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor, given.get(name, random[name])), name
        assert manifest[f"bert.{name}"]["source"] == ("drawn" if name.startswith("pooler.") else "self-mlm")
    assert summary(manifest).startswith("29 tensors self-mlm, 4 tensors randomly initialized: bert.pooler.dense.weight")
    with pytest.raises(ValueError, match="pass them as `learned`"):
        initialize(model, Init.parse("self-mlm:1"), tiny, Seeds())


def test_deepnorm_has_its_gains_and_its_scale(tiny):
    model, _ = start("deepnorm", tiny)
    gain = (8 * 2) ** -0.25
    assert model.config.residual_scale == pytest.approx((2 * 2) ** 0.25)
    layer = model.bert.layers[1]
    query, key, value = layer.attention.qkv.weight.chunk(3)
    square, oblong = math.sqrt(2 / 48), math.sqrt(2 / 64)
    for matrix, std in [
        (query, square), (key, square), (value, gain * square), (layer.attention.output.weight, gain * square),
        (layer.feed_forward.input.weight, gain * oblong), (layer.feed_forward.output.weight, gain * oblong),
    ]:  # fmt: skip
        assert matrix.std().item() == pytest.approx(std, rel=0.1)
    assert layer_config(Init.parse("deepnorm"), replace(TINY, num_hidden_layers=12)).residual_scale == pytest.approx(
        2.213, abs=1e-3
    )


def test_admin_scales_the_skip(tiny):
    model, _ = start("admin", tiny)
    assert equal(model.bert, start("random", tiny)[0].bert)
    assert model.bert.layers[1].residual_scale == model.config.residual_scale > 1
    config = layer_config(Init.parse("admin"), replace(TINY, num_hidden_layers=12))
    assert config.residual_scale == pytest.approx(2.601, abs=1e-3)


def test_gates_start_where_the_scheme_says(tiny):
    for scheme, shape, value in (("rezero", (), 0.0), ("layerscale:0.1", (24,), 0.1)):
        model, _ = start(scheme, tiny)
        gates = [p for name, p in model.named_parameters() if "_gate." in name]
        assert len(gates) == 4
        assert all(torch.equal(gate, torch.full(shape, value)) for gate in gates)


def test_prenorm_has_its_norms_elsewhere(tiny):
    model, _ = start("prenorm", tiny)
    assert model.bert.norm.weight.shape == (24,)
    assert model.bert.layers[0].norm_first


def test_a_checkpoint_of_other_layers_is_refused():
    with pytest.raises(InputError, match="starts from a plain BERT"):
        layer_config(Init.parse("random"), replace(TINY, norm_first=True))


def test_encoder_and_head_share_no_stream(tiny):
    model, _ = start("random", tiny)
    head, word = model.head.linear.weight.flatten(), model.bert.embeddings.word.weight.flatten()
    assert not torch.isin(head, word).any()


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("xavierr", "no such scheme; known: pretrained, random, .*reinit:K, layers:I-J"),
        ("", "no such scheme"),
        ("random:2", "no such scheme"),
        ("pretrained:1", "no such scheme"),
        ("reinit", "layers 1 to 2; write reinit:K with K from 1 to 2"),
        ("reinit:0", "K from 1 to 2"),
        ("reinit:3", "K from 1 to 2"),
        ("reinit:1-2", "K from 1 to 2"),
        ("layers:0-1", "layers 1 to 2; write layers:I-J, such as layers:1-2"),
        ("layers:2-1", "layers:I-J"),
        ("layers:1-3", "layers:I-J"),
        ("layers:1", "layers:I-J"),
        ("layerscale:2", "layerscale:G with G from 0 to 1"),
        ("layerscale:x", "layerscale:G"),
        ("layerscale", "layerscale:G"),
        ("self-mlm", "write self-mlm:E with a whole number of epochs from 1"),
        ("self-mlm:0", "self-mlm:E"),
        ("self-mlm:1.5", "self-mlm:E"),
        ("self-mlm:-1", "self-mlm:E"),
        ("self-mlm:x", "self-mlm:E"),
    ],
)
def test_bad_schemes_name_what_is_allowed(tiny, scheme, words):
    with pytest.raises(InputError, match=words):
        start(scheme, tiny)


@pytest.mark.parametrize(
    ("text", "name", "argument", "numbers"),
    [
        ("pretrained", "pretrained", "", ()),
        ("random:deep", "random:deep", "", ()),
        ("reinit:2", "reinit", "2", (2,)),
        ("layers:1-2", "layers", "1-2", (1, 2)),
        ("layerscale:1e-1", "layerscale", "1e-1", (0.1,)),
        ("self-mlm:10", "self-mlm", "10", (10,)),
    ],
)
def test_a_scheme_is_parsed_once_and_its_numbers_are_the_models(text, name, argument, numbers):
    init = Init.parse(text)
    assert init == Init(text, SCHEMES[name], argument)
    assert init.numbers(TINY) == numbers


def test_one_layer_has_no_other_order(tiny):
    with pytest.raises(InputError, match="one layer"):
        initialize(BertClassifier(replace(TINY, num_hidden_layers=1)), Init.parse("permute-layers"), tiny, Seeds())


def test_the_documentation_has_every_scheme():
    page = (ROOT / "docs" / "starts.md").read_text(encoding="utf-8").split("## Starting weights")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    assert [name for row in rows for name in re.findall("`(.*?)`", row) if name in forms()] == forms()


def test_what_is_drawn_need_not_be_in_the_checkpoint(tiny, tmp_path):
    """A masked language model has no pooler."""
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    tensors = load_file(tiny / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "pooler" not in name}, tmp_path / "model.safetensors")
    for scheme in ("no-pooler", "embeddings", "encoder", "layers:1-2", "reinit:1"):
        assert equal(start(scheme, tmp_path)[0], start(scheme, tiny)[0])
        assert start(scheme, tmp_path)[1] == start(scheme, tiny)[1]
    for scheme in ("pretrained", "shuffle", "moments"):
        with pytest.raises(InputError, match=r"lacks pooler.*; pool mean needs no pooler, and --init no-pooler draws"):
            start(scheme, tmp_path)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_any_saved_model_is_a_start_as_long_as_its_layers_are_berts(tmp_path, pool):
    model = BertClassifier(replace(TINY, pool=pool), head=nn.Linear(24, 5))
    save_pretrained(model, tmp_path)
    init = Init.parse("pretrained")
    again = BertClassifier(layer_config(init, read_config(tmp_path)))
    manifest = initialize(again, init, tmp_path, Seeds())
    assert again.config.pool == pool
    assert equal(again.bert, model.bert)
    assert not torch.equal(again.head.linear.weight, model.head.weight)
    assert manifest["head.linear.weight"]["source"] == "drawn"


def test_heads_with_buffers_of_whole_numbers_and_heads_with_nothing(tiny):
    model = BertClassifier(TINY, head=nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 5)))
    model.head.register_buffer("count", torch.tensor(3))
    model.head[0].weight.data += 1  # its reset_parameters takes it back
    manifest = initialize(model, Init.parse("pretrained"), tiny, Seeds())
    assert list(manifest) == list(model.state_dict())
    assert manifest["head.count"] == {
        "source": "buffer", "mean": 3.0, "std": 0.0, "sha256": hashlib.sha256(np.int64(3).tobytes()).hexdigest()
    }  # fmt: skip
    assert manifest["head.0.running_mean"]["source"] == "buffer"
    assert (manifest["head.0.weight"]["source"], manifest["head.1.weight"]["source"]) == ("reset_parameters", "drawn")
    assert (manifest["head.0.weight"]["mean"], manifest["head.0.weight"]["std"]) == (1.0, 0.0)
    assert "4 tensors buffer" in summary(manifest)
    bare = initialize(BertClassifier(TINY, head=nn.Identity()), Init.parse("pretrained"), tiny, Seeds())
    assert summary(bare) == "31 tensors pretrained"


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(24))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.query)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.pooled, self.linear = nn.Parameter(torch.ones(24)), Pooled(), nn.Linear(24, 5)


def test_a_head_of_ones_own_is_drawn_by_its_own_reset_parameters_under_the_heads_seed(tiny):
    starts = []
    for seed in ("0", "0", "1,head=0", "0,head=1"):
        model = BertClassifier(TINY, head=Mixed())
        torch.manual_seed(len(starts))
        state = torch.get_rng_state()
        manifest = initialize(model, Init.parse("pretrained"), tiny, Seeds.parse(seed))
        assert torch.equal(torch.get_rng_state(), state)
        starts.append(model.head.pooled.query.detach())
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[3])
    sources = {name: entry["source"] for name, entry in manifest.items() if name.startswith("head.")}
    assert sources == {"head.scale": "constructor", "head.pooled.query": "reset_parameters",
                       "head.linear.weight": "drawn", "head.linear.bias": "drawn"}  # fmt: skip
    assert "1 tensor by the head's reset_parameters" in summary(manifest)


def test_summary(tiny):
    assert summary(start("pretrained", tiny)[1]).endswith(
        "2 tensors randomly initialized: head.linear.weight, head.linear.bias"
    )
    assert summary(start("random", tiny)[1]) == "33 tensors randomly initialized"


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize("scheme", WRITTEN)
def test_a_run_from_each_start_saves_loads_and_resumes(tiny, tmp_path, monkeypatch, scheme):
    rows = [{"text": f"{i} {2 * i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = TrainConfig(
        data=str(tmp_path / "data.jsonl"), model=str(tiny), init=scheme, epochs=2, batch_size=16, lr=1e-3,
        out=str(tmp_path / "whole"),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setenv("MINIBERT_CACHE", str(tmp_path / "cache"))  # what --resume finds gone, and makes again
        whole = train(config, str)
    assert set(json.loads((whole / "manifest.json").read_text())) == set(load_classifier(whole / "model").state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "append_row", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(replace(config, out=str(tmp_path / "killed")), str)
    again = resume(tmp_path / "killed", str)
    assert equal(load_classifier(whole / "model"), load_classifier(again / "model"))
