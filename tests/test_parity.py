"""minibert/lab/parity.py: the table is all ok for this BERT and says NO when a component is broken."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT, TINY

from minibert import model
from minibert.checkpoint import save_pretrained
from minibert.errors import InputError
from minibert.lab import parity as module
from minibert.lab.parity import Row, format_rows, parity

REFERENCES = [
    "formulas",
    pytest.param("transformers", marks=pytest.mark.skipif(not find_spec("transformers"), reason="not installed")),
]


@pytest.mark.parametrize("against", REFERENCES)
def test_all_ok(tiny, against):
    name, rows = parity(tiny, against)
    assert against in name
    assert all(row.ok for row in rows), format_rows(rows)
    components = [row.component for row in rows]
    assert components[:4] == ["embeddings", "layer 1", "layer 2", "encoder, end to end"]
    assert {"gradients, attention", "gradients, LayerNorm", "linear warmup and decay"} < set(components)


def failing(tiny, against="formulas"):
    return {row.component for row in parity(tiny, against)[1] if not row.ok}


@pytest.mark.parametrize("against", REFERENCES)
def test_tanh_gelu_is_seen(tiny, against, monkeypatch):
    monkeypatch.setitem(model.ACTIVATIONS, "gelu", model.ACTIVATIONS["gelu_new"])
    assert {"layer 1", "layer 2", "encoder, end to end"} <= failing(tiny, against)


def test_a_shifted_schedule_is_seen(tiny, monkeypatch):
    real = module.linear_schedule
    monkeypatch.setattr(module, "linear_schedule", lambda step, *a: real(step + 1, *a))
    assert failing(tiny) == {"linear warmup and decay"}


def test_decayed_norms_are_seen(tiny, monkeypatch):
    monkeypatch.setattr(module.AdamW, "decays", lambda self, name: True)
    assert failing(tiny) == {"AdamW, 10 steps (torch.optim)"}


def test_a_lost_gradient_is_seen(tiny, monkeypatch):
    real = module.BertClassifier.forward
    monkeypatch.setattr(
        module.BertClassifier, "forward", lambda self, *a: self.head(self.bert(*a)[1].detach()) + 0 * real(self, *a)
    )
    assert {"gradients, attention", "gradients, embeddings"} <= failing(tiny)


def test_not_a_number_is_not_ok():
    assert not Row("x", float("nan"), float("nan"), 1.0).ok
    assert "NO" in format_rows([Row("x", float("nan"), float("nan"), 1.0)])


def test_other_layers_have_no_reference(tmp_path):
    save_pretrained(model.Bert(replace(TINY, norm_first=True)), tmp_path)
    with pytest.raises(InputError, match="layers are not BERT's"):
        parity(tmp_path, "formulas")


def test_unknown_reference(tiny):
    with pytest.raises(InputError, match="known are transformers, formulas"):
        parity(tiny, "jax")


@pytest.mark.parametrize(("spoil", "code"), [("", 0), ("model.ACTIVATIONS.update(gelu=torch.relu)", 1)])
def test_command(tiny, spoil, code):
    program = f"import sys, torch; from minibert import model; {spoil}\nfrom minibert.__main__ import main\n"
    program += f"sys.exit(main(['parity', '--model', {str(tiny)!r}, '--against', 'formulas']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "component" in done.stdout
    assert torch.tensor([("NO" in line.split()) for line in done.stdout.splitlines()]).any() == bool(code)
