"""minibert/heads.py, and heads over tokens from end to end: train, resume, evaluate, predict, probe."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed
from test_classifier import LABELS, TEXTS
from test_loop import Killed, final
from torch import nn

from minibert import Classifier, Data, InputError, TrainConfig, load_classifier, train
from minibert.config import HEADS as CHOICES
from minibert.engine.dropout import BitDropout
from minibert.files import read_json
from minibert.heads import HEADS, AttentionHead, MlpHead
from minibert.initialization import Init, initialize
from minibert.lab.probe import format_probe, probe
from minibert.model import BertClassifier
from minibert.seeds import Seeds
from minibert.setup import prepare
from minibert.testing import HeadCase, parametrize_with_head_checks
from minibert.training import folder
from minibert.training import run as running
from minibert.training.folder import load_state, read_history
from minibert.training.loop import fit
from minibert.training.outcome import evaluate_run
from minibert.training.run import resume


class OverTokens(nn.Module):
    """A head of one's own that reads all tokens, and normalizes over the batch."""

    reads = "tokens"

    def __init__(self, hidden_size, num_labels):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(hidden_size), nn.Linear(hidden_size, num_labels)

    def forward(self, tokens, mask):
        return self.linear(self.norm((tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)))


class OverBatch(nn.Sequential):
    """The same on the pooled vector."""

    def __init__(self, hidden_size, num_labels):
        super().__init__(nn.BatchNorm1d(hidden_size), nn.Linear(hidden_size, num_labels))


@pytest.fixture
def config(tiny, tmp_path):
    return TrainConfig(model=str(tiny), epochs=2, lr=1e-2, batch_size=8, precision="fp32", out=str(tmp_path / "run"))


@pytest.fixture
def on_file(config, tmp_path):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return replace(config, data=str(tmp_path / "texts.jsonl"), save_every=0)


# What they compute


def test_the_choices_are_the_heads():
    assert tuple(HEADS) == CHOICES


@parametrize_with_head_checks([HeadCase(name, lambda kind=kind: kind(TINY), 24, 5) for name, kind in HEADS.items()])
def test_every_head_passes_every_check(run_check):
    run_check()


def test_mlp_by_hand():
    torch.manual_seed(0)
    head, x = perturbed(MlpHead(TINY)).eval(), torch.randn(3, 24)
    hidden = x @ head.dense.weight.T + head.dense.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    torch.testing.assert_close(head(x), gelu @ head.linear.weight.T + head.linear.bias, rtol=1e-5, atol=1e-6)


def test_attention_by_hand():
    torch.manual_seed(0)
    head, tokens = perturbed(AttentionHead(TINY)).eval(), torch.randn(2, 4, 24)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    for text, real, logits in zip(tokens, mask, head(tokens, mask)):
        scores = [sum(q * t for q, t in zip(head.query.weight[0], token)).exp() for token in text[real]]
        pooled = sum(score * token for score, token in zip(scores, text[real])) / sum(scores)
        torch.testing.assert_close(logits, head.linear.weight @ pooled + head.linear.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sites"), [("linear", 1), ("mlp", 2), ("attention", 1)])
def test_dropout_is_the_heads_rate_at_every_site(name, sites, monkeypatch):
    calls, real = [], BitDropout.forward
    monkeypatch.setattr(BitDropout, "forward", lambda self, x: calls.append(self.p) or real(self, x))
    head = HEADS[name](TINY, BitDropout).train()
    head(*((torch.ones(2, 3, 24), torch.ones(2, 3, dtype=torch.bool)) if name == "attention" else (torch.ones(2, 24),)))
    assert calls == [0.23] * sites


@pytest.mark.parametrize("name", HEADS)
def test_heads_start_by_berts_rules_from_the_heads_seed(name, tiny):
    def start(seeds):
        model = BertClassifier(TINY, perturbed(HEADS[name](TINY)))
        manifest = initialize(model, Init.parse("pretrained"), tiny, seeds)
        assert {entry["source"] for key, entry in manifest.items() if key.startswith("head.")} == {"drawn"}
        return model.head.state_dict()

    one, same, other = start(Seeds()), start(Seeds(encoder=5)), start(Seeds(head=1))
    for key, tensor in one.items():
        assert torch.equal(tensor, same[key])
        if key.endswith("bias"):
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[key])
            assert 0.6 < tensor.std() / TINY.initializer_range < 1.4


# From end to end


@pytest.mark.parametrize("head", ["mlp", "attention"])
def test_a_run_with_another_head_needs_no_further_word(on_file, tmp_path, monkeypatch, head):
    config = replace(on_file, head=head)
    said = []
    whole = running.train(replace(config, out=str(tmp_path / "whole")), said.append)
    what = {"mlp": "[CLS] through the pooler", "attention": "all tokens, no pooler"}[head]
    assert f"head: {head}; it reads {what}" in said
    calls, real = [], folder.append_row

    def stop(*arguments):
        calls.append(real(*arguments))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folder, "append_row", stop)
        with pytest.raises(Killed):
            running.train(config, str)
    path = resume(tmp_path / "run", str)
    assert torch.equal(final(path)[0], final(whole)[0])
    assert final(path)[1] == final(whole)[1]
    reports, rows = evaluate_run(path)
    assert reports["val"]["accuracy"] == pytest.approx(max(row["val_accuracy"] for row in read_history(path)))
    rows = list(rows)
    p = Classifier.load(path).predict_proba([TEXTS[row["row"]] for row in rows])
    np.testing.assert_allclose(p, [[row["p(high)"], row["p(low)"]] for row in rows], atol=2e-6)
    model = read_json(path / "model" / "config.json")
    pool = "tokens" if head == "attention" else "cls"
    assert (model["model_type"], model["head"], model["pool"]) == ("minibert", head, pool)
    assert any("pooler" in name for name in read_json(path / "manifest.json")) == (head == "mlp")
    settings = read_json(path / "config.json")["settings"]
    assert (settings["head"], settings["pool"]) == (head, pool)
    assert type(load_classifier(path / "model").head) is HEADS[head]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_of_ones_own_reads_all_tokens(config, precision):
    run = train(replace(config, precision=precision), (TEXTS, LABELS), head=OverTokens)
    assert run.report()["val"]["accuracy"] == pytest.approx(run.best["val_accuracy"])
    clf = Classifier.load(run.path, head=OverTokens)
    together, alone = clf.predict_proba(TEXTS[:4]), [clf.predict_proba([text])[0] for text in TEXTS[:4]]
    np.testing.assert_allclose(together, alone, atol=1e-5 if precision == "fp32" else 0.02)
    assert clf.network.model.config.pool == "tokens"
    assert clf.network.model.head.norm.num_batches_tracked == 8 * run.best["epoch"]
    with pytest.raises(InputError, match="trained with the head OverTokens, which reads all tokens; Linear does not"):
        Classifier.load(run.path, head=nn.Linear)


def test_a_checkpoint_without_pooler_starts_other_heads(config, tmp_path):
    """A run goes on from the model of another, whose head read all tokens."""
    run = train(replace(config, head="attention", epochs=1), (TEXTS, LABELS))
    again = replace(config, model=str(run.path / "model"), epochs=1)
    for head, pool in (("linear", "mean"), ("attention", "tokens")):
        setup = prepare(replace(again, head=head), str, table=Data(TEXTS, LABELS).table())
        assert setup.model.config.pool == pool
        word = load_classifier(run.path / "model").bert.embeddings.word.weight
        assert torch.equal(setup.model.bert.embeddings.word.weight, word)


class NoAttribute(OverTokens):
    reads = "pooled"


class Unknown(OverTokens):
    reads = "words"


@pytest.mark.parametrize(
    ("settings", "head", "said"),
    [
        ({"head": "attention", "pool": "cls"}, None, "--pool cls: this head reads all tokens"),
        ({"pool": "mean"}, OverTokens, "--pool mean: this head reads all tokens"),
        ({"pool": "tokens"}, None, "--pool tokens: this head reads one vector; give --head attention"),
        ({"pool": "tokens"}, OverBatch, "--pool tokens: this head reads one vector"),
        ({"head": "mlp"}, OverBatch, r"head twice: one of your own, and TrainConfig\(head='mlp'\)"),
        ({}, NoAttribute, r"head=NoAttribute: it is called as head\(pooled\): missing .*'mask'; .* reads = \"tokens\""),
        ({}, Unknown, "head=Unknown: the head's reads is 'words'; it must be 'pooled' or 'tokens'"),
    ],
)
def test_heads_and_pools_that_do_not_fit(config, settings, head, said):
    with pytest.raises(InputError, match=said):
        train(replace(config, **settings), (TEXTS, LABELS), head=head)


def test_models_that_do_not_fit(config):
    for pool, head in (("mean", OverTokens(24, 5)), ("tokens", None), ("tokens", OverBatch(24, 5))):
        with pytest.raises(ValueError, match="pool is .*the head reads"):
            BertClassifier(TINY, head, pool)
    run = train(replace(config, head="attention", epochs=1), (TEXTS, LABELS))
    with pytest.raises(InputError, match="head attention, which reads all tokens; OverBatch does not"):
        Classifier.load(run.path, head=OverBatch)


def test_the_probe_says_what_the_head_reads(on_file):
    result = probe(replace(on_file, head="attention"), 6, str)
    assert result["pool"] == "tokens"
    assert [part["name"] for part in result["parts"]] == ["embeddings", "layer 1", "layer 2", "head"]
    assert "the head reads all tokens; of their mean: cosine between inputs" in format_probe(result)
    assert all(part["gradient"] > 0 for part in result["parts"])


# BatchNorm, which a batch of one example breaks


@pytest.mark.parametrize("head", [OverBatch, OverTokens])
@pytest.mark.parametrize(("accumulate", "examples"), [(1, 57), (2, 57), (2, 49), (3, 49), (1, 56)])
def test_no_example_is_left_alone_with_batch_norm(config, head, accumulate, examples):
    """57: one is left in a step of its own, or behind another batch of its step."""
    config = replace(config, accumulate=accumulate, examples=str(examples), epochs=1)
    run = train(config, (TEXTS, LABELS), head=head)
    (row,) = run.history
    assert row["step"] == math.ceil(examples // 8 / accumulate)
    model = load_classifier(run.path / "model", head=head(24, 2))
    assert next(b for name, b in model.head.named_buffers() if "tracked" in name) == examples // 8


def test_batch_norm_goes_on_from_a_snapshot(config, tmp_path):
    config, table = replace(config, accumulate=2, examples="49", save_every=1e-9), Data(TEXTS, LABELS).table()
    whole = train(config, (TEXTS, LABELS), head=OverBatch)
    stopped = replace(config, out=str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("    1  "):
            raise Killed

    with pytest.raises(Killed):
        running.train(stopped, stop, OverBatch, table)
    path = tmp_path / "stopped"
    fit(prepare(stopped, str, OverBatch, table), path, load_state(path), str)
    one, other = (load_classifier(p / "model", head=OverBatch(24, 2)).state_dict() for p in (whole.path, path))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 1, "accumulate": 8}])
def test_batch_norm_refuses_batches_of_one_before_anything_is_written(config, tmp_path, settings):
    with pytest.raises(InputError, match="--batch-size 1, 64 examples: BatchNorm, which is in this head, needs"):
        train(replace(config, **settings), (TEXTS, LABELS), head=OverBatch)
    assert not (tmp_path / "run").exists()
