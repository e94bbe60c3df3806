"""Every part of the network against the reference implementation, transformers' BERT: forward and all gradients.

Both of the reference's attentions are asked, eager and sdpa. Skipped without transformers (extra `parity`).
"""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, perturbed, seeing
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_components import cases, few, one_thread  # noqa: F401

from minibert.checkpoint import load_encoder, load_weights, published_names
from minibert.model import Bert, BertClassifier

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'minibert[parity]'"
)

# The largest difference allowed, relative to the largest number of the tensor (at least 1).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
# With weights of 8 or 11 bits every operation rounds, the reference's like ours, eager's in other places than sdpa's,
# and each processor's in its own. So both are held against the reference in float64: logits and gradients may be off by
# four times what the reference itself is off, plus two rounding steps of the format.
HALF = (torch.bfloat16, torch.float16)
BERT_BASE = ROOT / "weights" / "bert-base-uncased"


def reference_config(config, attention="eager"):
    numbers = {name: value for name, value in config.to_dict().items() if name != "pool"}
    return transformers.BertConfig(**numbers, attn_implementation=attention)


def published(model, tensors=None):
    """Our tensors (None: the model's weights) under the reference's names, query, key and value apart."""
    prefix = "bert." if isinstance(model, BertClassifier) else ""
    out, table = {}, published_names(model)
    for ours, tensor in (tensors or model.state_dict()).items():
        names = table[ours]
        for name, part in zip(names, tensor.chunk(len(names))):
            out[name if name.startswith("classifier.") else prefix + name] = part
    return out


def reference_of(model, attention="eager"):
    """The reference's model with the weights of `model`, every one of them, in the same mode."""
    classes = {Bert: transformers.BertModel, BertClassifier: transformers.BertForSequenceClassification}
    reference = classes[type(model)](reference_config(model.config, attention))
    reference.to(next(model.parameters()).dtype).load_state_dict(published(model), strict=True)
    return reference.train(model.training)


def difference(ours, theirs):
    """Relative to the largest number of `theirs`, or 1."""
    assert ours.shape == theirs.shape
    if not theirs.numel():
        return 0.0
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1)).item()


def same(ours, theirs, dtype, name):
    assert ours.dtype == theirs.dtype == dtype, name
    found = difference(ours, theirs)
    assert found <= TOLERANCE[dtype], f"{name}: {found:.2e} is more than {TOLERANCE[dtype]:.0e}"


def additive(mask, dtype):
    """(B, S) of 0 and 1 -> what the reference's parts take: 0 or the lowest number of the format, to be added."""
    return None if mask is None else ((1 - mask).to(dtype) * torch.finfo(dtype).min)[:, None, None]


def compare(case, ours, theirs, model, reference, x=None, x_too=None):
    """Outputs, and the gradient of every parameter and of the hidden states that went in."""
    same(ours, theirs, case.dtype, "output")
    cotangent = case.cotangent(ours)
    ours.backward(cotangent)
    theirs.backward(cotangent)
    if x is not None:
        same(x.grad, x_too.grad, case.dtype, "x")
    same_gradients(case, model, reference)


def gradients(model):
    """Of every parameter; zero for those that the output does not depend on."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def same_gradients(case, model, reference):
    ours, theirs = published(model, gradients(model)), gradients(reference)
    assert ours.keys() == theirs.keys()
    for name in ours:
        same(ours[name], theirs[name], case.dtype, f"gradient of {name}")


attentions = st.sampled_from(["eager", "sdpa"])


# ------------------------------------------------------------------------------------- the parts, one by one


@given(cases(), attentions)
@few(30)
def test_embeddings(case, attention):
    model = case.build(Bert)
    reference = reference_of(model, attention)
    theirs = reference.embeddings(input_ids=case.ids, token_type_ids=case.types)
    compare(case, model.embeddings(case.ids, case.types), theirs, model, reference)


@given(cases(), attentions)
@few(40)
def test_self_attention(case, attention):
    """The context alone: ours without its output matrix."""
    model, x = case.build(Bert), case.hidden()
    reference, x_too = reference_of(model, attention), x.detach().clone().requires_grad_()
    output, model.layers[0].attention.output = model.layers[0].attention.output, torch.nn.Identity()
    context = model.layers[0].attention(x, seeing(case.keys))
    model.layers[0].attention.output = output
    theirs = reference.encoder.layer[0].attention.self(x_too, additive(case.mask, case.dtype))[0]
    compare(case, context, theirs, model, reference, x, x_too)


@given(cases(), attentions)
@few(30)
def test_attention_with_its_output_and_norm(case, attention):
    model, x = case.build(Bert), case.hidden()
    reference, x_too = reference_of(model, attention), x.detach().clone().requires_grad_()
    layer = model.layers[-1]
    ours = layer.attention_norm(x + layer.dropout(layer.attention(x, seeing(case.keys))))
    theirs = reference.encoder.layer[-1].attention(x_too, additive(case.mask, case.dtype))[0]
    compare(case, ours, theirs, model, reference, x, x_too)


@given(cases(), attentions)
@few(30)
def test_layer(case, attention):
    model, x = case.build(Bert), case.hidden()
    reference, x_too = reference_of(model, attention), x.detach().clone().requires_grad_()
    theirs = reference.encoder.layer[-1](x_too, additive(case.mask, case.dtype))
    compare(case, model.layers[-1](x, seeing(case.keys)), theirs, model, reference, x, x_too)


@given(cases())
@few(20)
def test_pooler(case):
    model, x = case.build(Bert), case.hidden()
    reference, x_too = reference_of(model), x.detach().clone().requires_grad_()
    compare(case, model.pooler(x), reference.pooler(x_too), model, reference, x, x_too)


# ------------------------------------------------------------------------------------------------- the whole


@given(cases(), attentions)
@few(60)
def test_hidden_states_of_every_layer_and_pooled_output(case, attention):
    model = case.build(Bert)
    reference, states = reference_of(model, attention), []
    for part in (model.embeddings, *model.layers):
        part.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    sequence, pooled = model(case.ids, case.mask, case.types)
    theirs = reference(case.ids, case.mask, case.types, output_hidden_states=True)
    assert len(states) == len(theirs.hidden_states) == case.config.num_hidden_layers + 1
    for place, (a, b) in enumerate(zip(states, theirs.hidden_states)):
        same(a, b, case.dtype, f"hidden states {place}")
    same(pooled, theirs.pooler_output, case.dtype, "pooled")
    compare(case, sequence, theirs.last_hidden_state, model, reference)


@given(cases(), attentions)
@few(200)
def test_classifier_logits_loss_and_gradients(case, attention):
    model = case.build(BertClassifier)
    reference = reference_of(model, attention)
    labels = torch.randint(0, case.config.num_labels, case.ids.shape[:1], generator=case.generator)
    logits = model(case.ids, case.mask, case.types)
    loss = F.cross_entropy(logits, labels)
    theirs = reference(case.ids, case.mask, case.types, labels=labels)
    same(logits, theirs.logits, case.dtype, "logits")
    same(loss, theirs.loss, case.dtype, "loss")
    loss.backward()
    theirs.loss.backward()
    same_gradients(case, model, reference)


@given(cases(dtypes=HALF), attentions)
@few(80)
def test_half_precision_weights(case, attention):
    """Against the reference in float64 with the same rounded weights; see HALF."""
    model = case.build(BertClassifier)
    reference, exact = reference_of(model, attention), reference_of(model, attention).double()
    labels = torch.randint(0, case.config.num_labels, case.ids.shape[:1], generator=case.generator)
    logits = model(case.ids, case.mask, case.types)
    F.cross_entropy(logits, labels).backward()
    theirs, truth = (other(case.ids, case.mask, case.types, labels=labels) for other in (reference, exact))
    theirs.loss.backward()
    truth.loss.backward()
    assert logits.dtype == case.dtype
    step = torch.finfo(case.dtype).eps
    off, theirs_off = difference(logits, truth.logits), difference(theirs.logits, truth.logits)
    assert off <= 4 * theirs_off + 2 * step
    ours, reference, exact = published(model, gradients(model)), gradients(reference), gradients(exact)
    whole = torch.cat([gradient.flatten() for gradient in exact.values()]).norm()
    for name, gradient in exact.items():
        # Some gradients are zero but for rounding, the key's bias above all: a tenth of the whole as floor.
        floor = gradient.norm() + 0.1 * whole
        off, theirs_off = (((side[name] - gradient).norm() / floor).item() for side in (ours, reference))
        assert off <= 4 * theirs_off + 2 * step, f"gradient of {name}"


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_without_a_single_real_token(attention):
    """The reference's two attentions differ on it (see test_components.py); minibert goes with sdpa."""
    torch.manual_seed(0)
    model = perturbed(Bert(TINY)).double().eval()
    ids = torch.randint(1, TINY.vocab_size, (3, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0] * 6, [0, 1, 0, 1, 1, 0]])
    ours, theirs = model(ids, mask)[0], reference_of(model, attention)(ids, mask).last_hidden_state
    same(ours[[0, 2]], theirs[[0, 2]], torch.float64, "the other rows")
    assert theirs.isfinite().all()
    if attention == "sdpa":
        same(ours[1], theirs[1], torch.float64, "the empty row")


# ------------------------------------------------------------------------------------------- published files

# What stands in bert-base-uncased's config.json, down to the fields that mean nothing here.
BERT_BASE_CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
PRETRAINING_HEADS = {
    "cls.predictions.bias": (30522,),
    "cls.predictions.transform.LayerNorm.beta": (768,),
    "cls.predictions.transform.LayerNorm.gamma": (768,),
    "cls.predictions.transform.dense.bias": (768,),
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.seq_relationship.bias": (2,),
    "cls.seq_relationship.weight": (2, 768),
}


@pytest.fixture
def bert_base(tmp_path):
    """A checkpoint of bert-base-uncased's sizes in exactly its published form, but for the values."""
    (tmp_path / "config.json").write_text(json.dumps(BERT_BASE_CONFIG))
    with torch.device("meta"):
        shapes = transformers.BertModel(transformers.BertConfig()).state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in [*((f"bert.{n}", t.shape) for n, t in shapes.items()), *PRETRAINING_HEADS.items()]:
        # Drawn small, repeated: 110 million normal numbers would take longer than all the rest.
        size = torch.Size(shape).numel()
        numbers = torch.randn(min(size, 100_003), generator=generator) * 0.05
        tensor = numbers.repeat(-(-size // len(numbers)))[:size].view(shape)
        if name.endswith("LayerNorm.weight"):
            tensor += 1
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = tensor.contiguous()
    assert len(tensors) == 206
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    yield tmp_path
    (tmp_path / "model.safetensors").unlink()  # 440 MB, and pytest keeps the folders of three runs


@torch.no_grad()
def test_a_file_of_bert_base_in_its_published_form(bert_base):
    model = load_encoder(bert_base)
    assert sum(p.numel() for p in model.parameters()) == 109_482_240
    assert set(load_weights(model, bert_base).unused) == PRETRAINING_HEADS.keys()
    reference = transformers.BertModel.from_pretrained(
        bert_base, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = torch.randint(1, 30522, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    types = (torch.arange(12) > 4).long().expand(2, 12)
    theirs = reference(ids, mask, types)
    sequence, pooled = model(ids, mask, types)
    torch.testing.assert_close(sequence, theirs.last_hidden_state, rtol=0, atol=2e-5)
    torch.testing.assert_close(pooled, theirs.pooler_output, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.skipif(
    not (BERT_BASE / "model.safetensors").is_file(), reason="weights/bert-base-uncased is not there (440 MB)"
)
def test_published_numbers_of_bert_base_uncased():
    """The figures that the reference's own test holds its BERT to."""
    ids = torch.tensor([[0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]])
    sequence = load_encoder(BERT_BASE)(ids, torch.tensor([[0] + [1] * 10]))[0]
    assert sequence.shape == (1, 11, 768)
    expected = torch.tensor([[0.4249, 0.1008, 0.7531], [0.3771, 0.1188, 0.7467], [0.4152, 0.1098, 0.7108]])
    torch.testing.assert_close(sequence[0, 1:4, 1:4], expected, rtol=0, atol=1e-4)
