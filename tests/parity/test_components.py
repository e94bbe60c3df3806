"""Every part of the network against an oracle in plain torch: written-out formulas, and torch's own encoder layer.

Forward and the gradient of every parameter and input. The oracle reads the very parameters of the part under test,
so nothing is copied and both gradients are of the same leaves. Most of the strength is in float64, where 1e-10 tells
an eps of 1e-12 from one of 1e-7; float32 shows that the usual format is no special case.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import perturbed, seeing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minibert.model import (
    Bert,
    BertClassifier,
    BertConfig,
    ClsPooler,
    Embeddings,
    FeedForward,
    Layer,
    MeanPooler,
    SelfAttention,
)

# The largest difference allowed, relative to the largest number of the tensor (at least 1).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
EPS = (1e-12, 1e-7, 1e-5, 1e-3, 0.1)
MASKS = ("none", "ones", "right", "left", "holes")


def few(examples):
    """The same examples on every machine, and nothing kept between runs."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------- random cases


@st.composite
def configs(draw):
    """A tiny BERT in which no two numbers are the same, so that none can stand in for another unseen."""
    used = set()

    def fresh(low, high, unlike=lambda n: True):
        number = draw(st.sampled_from([n for n in range(low, high + 1) if n not in used and unlike(n)]))
        used.add(number)
        return number

    layers = fresh(1, 3)
    heads = fresh(1, 5)
    head_size = fresh(3, 8, lambda n: n * heads not in used)
    used.add(heads * head_size)
    rates = draw(st.permutations([0.11, 0.17, 0.23]))
    vocab_size = fresh(12, 60)
    return BertConfig(
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=fresh(5, 50),
        vocab_size=vocab_size,
        max_position_embeddings=fresh(1, 17),
        type_vocab_size=fresh(1, 9),
        num_labels=fresh(2, 12),
        pad_token_id=draw(st.sampled_from([0, 0, 1, vocab_size - 1])),
        layer_norm_eps=draw(st.sampled_from(EPS)),
        hidden_dropout_prob=rates[0],
        attention_probs_dropout_prob=rates[1],
        classifier_dropout=rates[2],
    )


@st.composite
def cases(draw, dtypes=tuple(TOLERANCE)):
    """A config, inputs that fit it, a number format and a generator for weights and cotangents."""
    config = draw(configs())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, config.max_position_embeddings))
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    types = torch.randint(0, config.type_vocab_size, (batch, length), generator=generator)
    return Case(
        config,
        ids,
        mask_of(draw(st.sampled_from(MASKS)), batch, length, generator),
        draw(st.sampled_from([None, types, types])),
        draw(st.sampled_from(dtypes)),
        generator,
    )


def mask_of(kind, batch, length, generator):
    """(B, S) of 0 and 1 with at least a 1 in each row; None for no mask."""
    if kind == "none":
        return None
    real = torch.randint(1, length + 1, (batch, 1), generator=generator)
    place = torch.arange(length).expand(batch, length)
    if kind == "ones":
        return torch.ones(batch, length, dtype=torch.long)
    if kind == "right":
        return (place < real).long()
    if kind == "left":
        return (place >= length - real).long()
    holes = torch.rand(batch, length, generator=generator) < 0.6
    return holes.scatter(1, real - 1, True).long()


class Case:
    def __init__(self, config, ids, mask, types, dtype, generator):
        self.config, self.ids, self.mask, self.types, self.dtype = config, ids, mask, types, dtype
        self.generator = generator

    def __repr__(self):  # what hypothesis shows of a failure
        return f"{self.config}, ids {tuple(self.ids.shape)}, mask {self.mask}, types {self.types}, {self.dtype}"

    def build(self, part):
        """A part of the network in eval mode, every tensor off its start and large enough to matter."""
        torch.manual_seed(self.generator.initial_seed())  # for BERT's own random start
        module = part(self.config)
        with torch.no_grad():
            for tensor in module.parameters():
                tensor += 0.3 * torch.randn(tensor.shape, generator=self.generator)
        return module.to(self.dtype).eval()

    def hidden(self):
        """(B, S, D) random hidden states with a gradient."""
        shape = (*self.ids.shape, self.config.hidden_size)
        return torch.randn(shape, generator=self.generator).to(self.dtype).requires_grad_()

    @property
    def keys(self):
        """The mask as the parts take it: (B, 1, 1, S) bool."""
        return None if self.mask is None else self.mask.bool()[:, None, None]

    def cotangent(self, output):
        return torch.randn(output.shape, generator=self.generator).to(output.dtype)

    def compare(self, ours, theirs, leaves):
        """Outputs, then the gradients that one random cotangent sends to `leaves`, a dict of tensors."""
        same(ours, theirs, self.dtype, "output")
        cotangent = self.cotangent(ours)
        gradients = [
            torch.autograd.grad(output, list(leaves.values()), cotangent, materialize_grads=True)
            for output in (ours, theirs)
        ]
        for name, a, b in zip(leaves, *gradients):
            same(a, b, self.dtype, name)


def same(ours, theirs, dtype, name):
    assert ours.shape == theirs.shape, name
    assert ours.dtype == dtype, name
    difference = (ours - theirs).abs().max().item()
    allowed = TOLERANCE[dtype] * max(1.0, theirs.abs().max().item())
    assert difference <= allowed, f"{name}: {difference:.2e} is more than {allowed:.2e}"


# ----------------------------------------------------------------------------------------------- the oracle


def layer_norm(x, norm, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)  # of all D numbers, not D - 1
    return (x - mean) / torch.sqrt(variance + eps) * norm.weight + norm.bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def embeddings(part, ids, types, config):
    """Row by row and position by position; [PAD]'s own row is held still, as BERT's embedding does."""
    word = part.word.weight
    types = torch.zeros_like(ids) if types is None else types
    rows = []
    for row, kinds in zip(ids.tolist(), types.tolist()):
        for place, (word_id, kind) in enumerate(zip(row, kinds)):
            vector = word[word_id].detach() if word_id == config.pad_token_id else word[word_id]
            rows.append(vector + part.position.weight[place] + part.token_type.weight[kind])
    return layer_norm(torch.stack(rows).view(*ids.shape, -1), part.norm, config.layer_norm_eps)


def attention(part, x, mask, config):
    """softmax(q k^T / sqrt(H)) v, one head at a time; mask (B, S), 0 where no token may look."""
    size = config.hidden_size // config.num_attention_heads
    q, k, v = (x @ w.T + b for w, b in zip(part.qkv.weight.chunk(3), part.qkv.bias.chunk(3)))
    heads = []
    for first in range(0, config.hidden_size, size):
        head = slice(first, first + size)
        scores = torch.einsum("bqh,bkh->bqk", q[..., head], k[..., head]) / math.sqrt(size)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, :] == 0, -math.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        weights = weights / weights.sum(-1, keepdim=True)
        heads.append(torch.einsum("bqk,bkh->bqh", weights, v[..., head]))
    return linear(torch.cat(heads, -1), part.output)


def feed_forward(part, x):
    return linear(gelu(linear(x, part.input)), part.output)


def layer(part, x, mask, config):
    x = layer_norm(x + attention(part.attention, x, mask, config), part.attention_norm, config.layer_norm_eps)
    return layer_norm(x + feed_forward(part.feed_forward, x), part.feed_forward_norm, config.layer_norm_eps)


def pooled(part, x, mask, pool):
    if pool == "cls":
        return torch.tanh(linear(x[:, 0], part.dense))
    real = torch.ones(x.shape[:2]) if mask is None else mask
    return torch.stack([row[keep.bool()].mean(0) for row, keep in zip(x, real)])


def encoder(part, ids, mask, types, config):
    x = embeddings(part.embeddings, ids, types, config)
    for one in part.layers:
        x = layer(one, x, mask, config)
    return x


# ------------------------------------------------------------------------------------------------ the parts


def leaves_of(module, **inputs):
    return dict(module.named_parameters()) | inputs


@given(cases())
@few(40)
def test_embeddings(case):
    part = case.build(Embeddings)
    theirs = embeddings(part, case.ids, case.types, case.config)
    case.compare(part(case.ids, case.types), theirs, leaves_of(part))


@given(cases())
@few(40)
def test_attention(case):
    part, x = case.build(SelfAttention), case.hidden()
    case.compare(part(x, seeing(case.keys)), attention(part, x, case.mask, case.config), leaves_of(part, x=x))


@given(cases())
@few(20)
def test_feed_forward(case):
    part, x = case.build(FeedForward), case.hidden()
    case.compare(part(x), feed_forward(part, x), leaves_of(part, x=x))


@given(cases())
@few(20)
def test_layer(case):
    part, x = case.build(Layer), case.hidden()
    case.compare(part(x, seeing(case.keys)), layer(part, x, case.mask, case.config), leaves_of(part, x=x))


@given(cases())
@few(40)
def test_layer_is_torchs_encoder_layer(case):
    config, part, x = case.config, case.build(Layer), case.hidden()
    # Dropout 0 and training mode: in eval mode torch may take a fused path of its own.
    torchs = nn.TransformerEncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, dropout=0.0, activation="gelu",
        layer_norm_eps=config.layer_norm_eps, batch_first=True, norm_first=False, dtype=case.dtype,
    )  # fmt: skip
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.output.weight",
        "self_attn.out_proj.bias": "attention.output.bias",
        "linear1.weight": "feed_forward.input.weight",
        "linear1.bias": "feed_forward.input.bias",
        "linear2.weight": "feed_forward.output.weight",
        "linear2.bias": "feed_forward.output.bias",
        "norm1.weight": "attention_norm.weight",
        "norm1.bias": "attention_norm.bias",
        "norm2.weight": "feed_forward_norm.weight",
        "norm2.bias": "feed_forward_norm.bias",
    }
    ours = dict(part.named_parameters())
    assert set(names.values()) == ours.keys()
    torchs.load_state_dict({name: ours[names[name]].detach() for name in names})
    padding = None if case.mask is None else case.mask == 0
    x_too = x.detach().clone().requires_grad_()
    output, expected = part(x, seeing(case.keys)), torchs(x_too, src_key_padding_mask=padding)
    same(output, expected, case.dtype, "output")
    cotangent = case.cotangent(output)
    output.backward(cotangent)
    expected.backward(cotangent)
    same(x.grad, x_too.grad, case.dtype, "x")
    for name, parameter in torchs.named_parameters():
        same(ours[names[name]].grad, parameter.grad, case.dtype, name)


@given(cases())
@few(30)
def test_poolers(case):
    x = case.hidden()
    for pool, part in (("cls", ClsPooler), ("mean", MeanPooler)):
        part = case.build(part)
        case.compare(part(x, case.keys), pooled(part, x, case.mask, pool), leaves_of(part, x=x))


@given(cases(), st.sampled_from(["cls", "mean"]))
@few(40)
def test_encoder_stack(case, pool):
    part = case.build(lambda config: Bert(replace(config, pool=pool)))
    sequence, summary = part(case.ids, case.mask, case.types)
    theirs = encoder(part, case.ids, case.mask, case.types, case.config)
    case.compare(sequence, theirs, leaves_of(part))
    same(summary, pooled(part.pooler, theirs, case.mask, pool), case.dtype, "pooled")


@given(cases(), st.sampled_from(["cls", "cls", "mean"]))
@few(200)
def test_classifier(case, pool):
    part = case.build(lambda config: BertClassifier(config, pool=pool))
    bert = part.bert
    theirs = pooled(bert.pooler, encoder(bert, case.ids, case.mask, case.types, case.config), case.mask, pool)
    case.compare(part(case.ids, case.mask, case.types), linear(theirs, part.head.linear), leaves_of(part))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", gelu),
        ("gelu_new", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("gelu_pytorch_tanh", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("relu", lambda x: torch.where(x > 0, x, 0.0)),
    ],
)
def test_activations(name, formula):
    part = FeedForward(BertConfig(hidden_size=4, num_attention_heads=2, intermediate_size=6, hidden_act=name))
    x = torch.linspace(-6, 6, 301, dtype=torch.float64).requires_grad_()
    same(part.activation(x), formula(x), torch.float64, name)
    gradients = [torch.autograd.grad(f(x).sum(), x)[0] for f in (part.activation, formula)]
    same(*gradients, torch.float64, f"gradient of {name}")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_row_without_a_single_real_token_harms_nobody(dtype, pool):
    """No data set has such a row; a mask may.

    The reference disagrees with itself here: its eager attention adds the lowest number of the format to every score,
    which spreads the weights evenly over the padding, its sdpa attention gives a zero context, which leaves the output
    bias. minibert does as the latter does. Neither means anything, but neither may be NaN or reach another row.
    """
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=9, num_labels=5,
    )  # fmt: skip
    model = perturbed(BertClassifier(config, pool=pool)).to(dtype).eval()
    ids = torch.randint(1, 31, (3, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0] * 6, [0, 1, 0, 1, 1, 0]])
    logits = model(ids, mask)
    assert logits.isfinite().all()
    keep = [0, 2]
    same(logits[keep], model(ids[keep], mask[keep]), dtype, "the other rows")
    F.cross_entropy(logits[keep], torch.tensor([1, 4])).backward()
    with_it = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(model(ids[keep], mask[keep]), torch.tensor([1, 4])).backward()
    for name, parameter in model.named_parameters():
        same(with_it[name], parameter.grad, dtype, name)
    model.zero_grad()
    F.cross_entropy(model(ids, mask), torch.tensor([1, 2, 4])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    blind = seeing(mask[1:2].bool()[:, None, None])
    empty = model.bert.layers[0].attention(torch.randn(1, 6, 12, dtype=dtype), blind)
    same(empty[0], model.bert.layers[0].attention.output.bias.expand(6, 12), dtype, "zero context")
