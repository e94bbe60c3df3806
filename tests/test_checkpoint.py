"""minibert/checkpoint.py: every published form loads, and what does not fit is named."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TINY, labels_of, perturbed
from safetensors.torch import load_file, save_file
from torch import nn

from minibert.checkpoint import (
    load_classifier,
    load_encoder,
    load_weights,
    normal_name,
    published_names,
    save_pretrained,
)
from minibert.errors import InputError
from minibert.model import Bert, BertClassifier, ClassificationHead

LABELS = ["walking", "sitting", "lying", "日本", "e"]


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil."""
    return shutil.copytree(tiny, tmp_path / "copy")


def rewrite(folder, change):
    """Pass the file's tensors through `change`."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def same(model, other):
    assert model.state_dict().keys() == other.state_dict().keys()
    return all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_file_has_the_published_names(tiny):
    names = load_file(tiny / "model.safetensors").keys()
    assert len(names) == 5 + 16 * TINY.num_hidden_layers + 2
    assert "encoder.layer.1.attention.self.key.bias" in names
    assert "embeddings.LayerNorm.weight" in names
    assert json.loads((tiny / "config.json").read_text())["architectures"] == ["BertModel"]


def test_query_key_value_are_in_their_order(tiny):
    tensors = load_file(tiny / "model.safetensors")
    qkv = load_encoder(tiny).layers[1].attention.qkv
    for place, name in enumerate(("query", "key", "value")):
        part = slice(24 * place, 24 * place + 24)
        assert torch.equal(qkv.weight[part], tensors[f"encoder.layer.1.attention.self.{name}.weight"])
        assert torch.equal(qkv.bias[part], tensors[f"encoder.layer.1.attention.self.{name}.bias"])


def test_every_tensor_has_its_own_names():
    names = [name for names in published_names(BertClassifier(TINY)).values() for name in names]
    assert len(set(names)) == len(names) == 5 + 16 * TINY.num_hidden_layers + 2 + 2


def test_round_trip_of_an_encoder(tiny, tmp_path):
    model = load_encoder(tiny)
    assert not model.training
    save_pretrained(model, tmp_path)
    assert same(load_encoder(tmp_path), model)


def test_round_trip_of_a_classifier(tmp_path):
    torch.manual_seed(1)
    model = perturbed(BertClassifier(TINY))
    save_pretrained(model, tmp_path, LABELS)
    again = load_classifier(tmp_path)
    assert same(again, model)
    assert again.config == TINY
    assert labels_of(tmp_path) == LABELS
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"classifier.weight", "classifier.bias"} < names
    assert all(name.startswith(("bert.", "classifier.")) for name in names)


def test_mean_pool_is_remembered(tmp_path):
    model = perturbed(BertClassifier(TINY, pool="mean"))
    save_pretrained(model, tmp_path)
    assert same(load_classifier(tmp_path), model)
    assert load_classifier(tmp_path).config.pool == "mean"


@pytest.mark.parametrize(
    "change", [{"residual_scale": 2.0}, {"branch_gate": "channel"}, {"branch_gate": "scalar"}, {"norm_first": True}]
)
def test_other_layers_round_trip(tmp_path, change):
    model = perturbed(BertClassifier(replace(TINY, **change)))
    save_pretrained(model, tmp_path)
    assert same(load_classifier(tmp_path), model)
    assert load_classifier(tmp_path).config == replace(TINY, **change)


def test_label_order_is_numerical(tmp_path):
    labels = [f"c{i}" for i in range(12)]
    save_pretrained(BertClassifier(replace(TINY, num_labels=12)), tmp_path, labels)
    assert labels_of(tmp_path) == labels


def published_form(tensors):
    """As bert-base-uncased's file: prefix, gamma and beta, pretraining heads."""
    out = {}
    for name, tensor in tensors.items():
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        out["bert." + name] = tensor
    out["cls.predictions.bias"] = torch.zeros(TINY.vocab_size)
    out["cls.seq_relationship.weight"] = torch.zeros(2, 24)
    return out


def test_prefix_gamma_beta_and_unused_heads(tiny, folder):
    rewrite(folder, published_form)
    model = Bert(TINY)
    report = load_weights(model, folder)
    assert report.unused == ("cls.predictions.bias", "cls.seq_relationship.weight")
    assert same(model, load_encoder(tiny))


def test_position_ids_are_known(folder):
    rewrite(folder, lambda t: t | {"embeddings.position_ids": torch.arange(64)[None]})
    assert load_weights(Bert(TINY), folder).unused == ("embeddings.position_ids",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(tiny, folder, dtype):
    rewrite(folder, lambda t: {name: tensor.to(dtype) for name, tensor in t.items()})
    word = load_encoder(folder).embeddings.word.weight
    assert word.dtype == torch.float32
    assert torch.equal(word, load_encoder(tiny).embeddings.word.weight.to(dtype).float())


def test_only_the_norms_have_gamma_and_beta():
    assert normal_name("bert.encoder.layer.3.output.LayerNorm.gamma") == "encoder.layer.3.output.LayerNorm.weight"
    assert normal_name("embeddings.LayerNorm.beta") == "embeddings.LayerNorm.bias"
    assert normal_name("something.gamma") == "something.gamma"


def test_new_head_is_said_once(tiny, caplog):
    with caplog.at_level(logging.WARNING, "minibert"):
        model = load_classifier(tiny)
    assert len(caplog.records) == 1
    assert "head.linear.weight, head.linear.bias" in caplog.text
    assert model.head.linear.weight.shape == (2, 24)


def test_encoder_leaves_a_classifiers_head_aside(tmp_path):
    model = perturbed(BertClassifier(TINY))
    save_pretrained(model, tmp_path)
    assert same(load_encoder(tmp_path), model.bert)
    assert load_weights(Bert(TINY), tmp_path).unused == ("classifier.bias", "classifier.weight")


def test_own_head_round_trip(tmp_path):
    def head():
        return nn.Sequential(nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 5))

    model = perturbed(BertClassifier(TINY, head=head()))
    save_pretrained(model, tmp_path)
    assert same(load_classifier(tmp_path, head=head()), model)
    with pytest.raises(InputError, match="holds a head of its own kind, Sequential: make one, and pass it as head="):
        load_classifier(tmp_path)
    with pytest.raises(InputError, match=r"lacks classifier\.weight"):
        load_classifier(tmp_path, head=nn.Linear(24, 5))
    assert same(load_encoder(tmp_path), model.bert)


@pytest.mark.parametrize(
    ("change", "head", "family"),
    [
        ({}, None, "Bert"),
        ({"pool": "mean"}, None, "Minibert"),
        ({"norm_first": True}, None, "Minibert"),
        ({}, nn.Linear(24, 5), "Minibert"),
        ({}, nn.Identity(), "Minibert"),
    ],
)
def test_what_is_not_bert_throughout_does_not_say_so(tmp_path, change, head, family):
    config = replace(TINY, **change)
    save_pretrained(BertClassifier(config, head=head), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == family.lower()
    assert written["architectures"] == [f"{family}ForSequenceClassification"]
    assert written.get("head") == (None if head is None else type(head).__name__)
    save_pretrained(Bert(config), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    alone = family if change else "Bert"
    assert (written["model_type"], written["architectures"]) == (alone.lower(), [f"{alone}Model"])
    assert "head" not in written


@torch.no_grad()
def test_the_chosen_tensors_alone(tiny, folder):
    """The others may be missing, may have other shapes, and stay as they are."""
    rewrite(folder, drop("pooler.dense.weight"))
    rewrite(folder, lambda t: t | {"embeddings.word_embeddings.weight": torch.zeros(99, 24)})
    model = BertClassifier(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, folder, lambda name: name.startswith("bert.layers.1."))
    there = BertClassifier(TINY)
    load_weights(there.bert, tiny)
    for name, tensor in model.state_dict().items():
        wanted = there.state_dict() if name.startswith("bert.layers.1.") else before
        assert torch.equal(tensor, wanted[name]), name
    assert report.drawn == ()
    assert len(report.unused) == 5 + 16 + 1  # the embeddings, layer 0 and what is left of the pooler
    with pytest.raises(InputError, match=r"lacks pooler\.dense\.weight"):
        load_weights(model, folder, lambda name: "pooler" in name)
    rewrite(folder, lambda t: t | {"extra": torch.zeros(1)})
    with pytest.raises(InputError, match="no place for: extra"):
        load_weights(model, folder, lambda name: False)


class Twins(nn.Module):
    """A head whose names would fall together, or be taken for BERT's, if any of them were changed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 24))
        self.linear = nn.Linear(24, 5)
        self.inner = nn.ModuleDict({"linear": nn.Linear(24, 24), "bert": nn.Linear(24, 24, bias=False)})
        self.LayerNorm = nn.LayerNorm(24)
        self.LayerNorm.gamma = nn.Parameter(torch.zeros(24))
        self.batch = nn.BatchNorm1d(24)
        self.tied = self.linear
        self.scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("third", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        return self.linear(x)


@torch.no_grad()
def test_a_head_keeps_its_own_names_and_kinds(tmp_path):
    torch.manual_seed(2)
    model = perturbed(BertClassifier(TINY, head=Twins()))
    model.head.batch.num_batches_tracked += 2**53 + 1  # more than any float holds
    model.head.third += 1 / 3
    save_pretrained(model, tmp_path)
    again = load_classifier(tmp_path, head=Twins())
    assert same(again, model)
    assert not torch.equal(again.head.weight, again.head.linear.weight)
    assert again.head.batch.num_batches_tracked.dtype == torch.int64
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"classifier.weight", "classifier.linear.weight", "classifier.inner.bert.weight"} < names


def test_a_head_made_from_the_default_one_is_not_it(tmp_path):
    class More(ClassificationHead):
        def __init__(self):
            super().__init__(TINY)
            self.weight = nn.Parameter(torch.zeros(7))

    model = perturbed(BertClassifier(TINY, head=More()))
    save_pretrained(model, tmp_path)
    assert same(load_classifier(tmp_path, head=More()), model)


def drop(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("encoder.layer.1.output.dense.bias"), r"lacks encoder\.layer\.1\.output\.dense\.bias"),
        (drop("encoder.layer.0.attention.self.key.weight"), r"lacks encoder\.layer\.0\.attention\.self\.key\.weight"),
        (lambda t: t | {"encoder.layer.2.output.dense.bias": torch.zeros(24)}, r"no place for: encoder\.layer\.2"),
        (lambda t: t | {"extra": torch.zeros(1)}, "no place for: extra"),
        (lambda t: t | {"pooler.dense.bias": torch.zeros(23)}, r"pooler\.dense\.bias has \[23\], not \[24\]"),
        (lambda t: t | {"embeddings.word_embeddings.weight": torch.zeros(99, 24)}, r"word_embeddings.*\[99, 24\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_copied(folder, change, words):
    rewrite(folder, change)
    model = Bert(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        load_weights(model, folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_missing_pooler_names_the_way_out(folder):
    rewrite(folder, lambda t: {n: v for n, v in t.items() if not n.startswith("pooler")})
    with pytest.raises(InputError, match="pool mean needs no pooler"):
        load_encoder(folder)
    assert load_encoder(folder, pool="mean").config.pool == "mean"


def test_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_encoder(folder)


def test_pickles_are_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        load_encoder(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"hidden_size": "wide"}', '{"hidden_size": 10, "num_attention_heads": 3}']
)
def test_bad_config_json(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 2**24}, "asks for .* weights; 2,147,483,648 are the most"),
        ({"num_hidden_layers": 10**7}, "asks for 10,000,000 layers; 1,024 are the most"),
        ({"num_labels": 10**9}, "asks for 1,000,000,000 classes; 4,096 are the most"),
        ({"intermediate_size": 10**30}, "are the most"),
        ({"vocab_size": 10**6}, "not a whole safetensors file: it has .* bytes for the 24,"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"hidden_size": 24.0}, "hidden_size is 24.0"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'; it must be a number above 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob is None"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob is True"),
        ({"residual_scale": float("inf")}, "residual_scale is inf"),
        ({"pad_token_id": 169}, "pad_token_id is 169; it must be a word, 0 to 168"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"id2label": 7}, "config.json"),
        ({"norm_first": "no"}, "norm_first is 'no'"),
    ],
)  # fmt: skip
def test_a_config_that_no_network_has(folder, change, said):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=said):
        load_encoder(folder)


def test_no_padding_word_is_the_first(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    assert load_encoder(folder).config == replace(TINY, num_labels=2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights(folder, dtype):
    rewrite(folder, lambda t: t | {"pooler.dense.bias": t["pooler.dense.bias"].to(dtype)})
    with pytest.raises(InputError, match=r"pooler\.dense\.bias is .*; weights are F32, F16, BF16, F64"):
        load_encoder(folder)


@pytest.mark.parametrize("other", ["bert.pooler.dense.bias", "embeddings.LayerNorm.gamma"])
def test_two_names_of_one_tensor(folder, other):
    rewrite(folder, lambda t: t | {other: torch.zeros(24)})
    with pytest.raises(InputError, match=f"{other}.*one tensor|one tensor.*"):
        load_encoder(folder)
