"""Tests of lesson 1: your functions beside minibert's modules, on a network of 2 layers, 24 wide."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from checks import need, same
from safetensors.torch import load_file, save_file

from minibert.model import Bert, BertConfig
from minibert.sources import weights_folder


@pytest.fixture
def w(tiny_classifier):
    """The tiny network's tensors under the lesson's names."""
    state = tiny_classifier.bert.state_dict()
    names = {
        "embeddings.word": "word", "embeddings.position": "position", "embeddings.token_type": "token_type",
        "embeddings.norm": "embeddings_norm", "pooler.dense": "pooler",
    }  # fmt: skip
    inside = {
        "attention.output": "attention_output", "attention_norm": "attention_norm", "feed_forward.input": "up",
        "feed_forward.output": "down", "feed_forward_norm": "feed_forward_norm",
    }  # fmt: skip
    for i in range(2):
        names |= {f"layers.{i}.{theirs}": f"{i}.{ours}" for theirs, ours in inside.items()}
    w = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if stem in names:
            w[f"{names[stem]}.{leaf}"] = tensor
        else:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3)):
                w[f"{stem.split('.')[1]}.{part}.{leaf}"] = piece
    return w


@pytest.fixture
def published(tiny_checkpoint):
    """config.json of the tiny network."""
    return json.loads((tiny_checkpoint / "config.json").read_text())


@pytest.fixture
def texts():
    """ids (3, 7), types (3, 7), mask (3, 7): texts of 7, 4 and 1 tokens."""
    torch.manual_seed(1)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    return torch.randint(5, 60, (3, 7)) * mask, torch.randint(0, 5, (3, 7)) * mask, mask


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_layer_norm(mine):
    x, weight, bias = 3 + 2 * draw(2, 5, 8), draw(8), draw(1, 8)[0] + 1
    plain = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
    whole = (x - x.mean()) / x.std(correction=0)
    token = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    same(
        mine.layer_norm(x, weight, bias, 1e-12), F.layer_norm(x, (8,), weight, bias, 1e-12), "layer_norm",
        {
            "the variance is divided by D - 1; BERT's is divided by D (correction=0)": plain * weight + bias,
            "mean and variance are over all of x; they must be over the last dimension": whole * weight + bias,
            "mean and variance are over the tokens; they must be over the last dimension": token * weight + bias,
            "weight and bias are not used": F.layer_norm(x, (8,), None, None, 1e-12),
        },
    )  # fmt: skip
    x = 0.1 * draw(4, 8)
    without = F.layer_norm(x, (8,), weight, bias, 1e-12)
    deviation = x.std(-1, correction=0, keepdim=True)
    outside = (x - x.mean(-1, keepdim=True)) / (deviation + 0.1) * weight + bias
    same(
        mine.layer_norm(x, weight, bias, 0.1), F.layer_norm(x, (8,), weight, bias, 0.1), "layer_norm with eps 0.1",
        {"eps is not used": without, "eps belongs under the root, added to the variance": outside},
    )  # fmt: skip


def test_gelu(mine):
    x = torch.linspace(-4, 4, 81)
    same(
        mine.gelu(x), F.gelu(x), "gelu",
        {"this is the tanh approximation; BERT's is the exact one": F.gelu(x, approximate="tanh")}, tolerance=1e-6,
    )  # fmt: skip


def test_split_heads(mine):
    x = draw(2, 5, 12)
    want = torch.stack([x[:, :, 3 * n : 3 * n + 3] for n in range(4)], dim=1)
    same(
        mine.split_heads(x, 4), want, "split_heads",
        {
            "shape right, numbers mixed up: view() first to (B, S, N, H), then transpose": x.reshape(2, 4, 5, 3),
            "head n must have H neighbouring channels, not each N-th": x.view(2, 5, 3, 4).permute(0, 3, 1, 2),
        },
    )  # fmt: skip


def test_merge_heads(mine):
    x = draw(2, 4, 5, 3)
    same(
        mine.merge_heads(x), torch.cat(list(x.unbind(1)), dim=-1), "merge_heads",
        {"shape right, numbers mixed up: transpose before you reshape": x.reshape(2, 5, 12)},
    )  # fmt: skip


def test_attention(mine):
    q, k, v = draw(3, 2, 4, 5, 6)
    same(
        mine.attention(q, k, v), F.scaled_dot_product_attention(q, k, v), "attention",
        {
            "the scores are not divided by sqrt(H)": F.scaled_dot_product_attention(q, k, v, scale=1.0),
            "the scores are divided by H, not by its root": F.scaled_dot_product_attention(q, k, v, scale=1 / 6),
            "the scores are divided by the root of D = N H; H alone": F.scaled_dot_product_attention(
                q, k, v, scale=24**-0.5
            ),
            "softmax is over the tokens that ask; it must be over those that are asked, dim=-1": (
                q @ k.transpose(-1, -2) / math.sqrt(6)
            ).softmax(-2) @ v,
        },
    )  # fmt: skip


def test_attention_with_a_mask(mine):
    q, k, v = draw(3, 3, 4, 7, 6)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    scores = q @ k.transpose(-1, -2) / math.sqrt(6)
    zeroed = scores.softmax(-1).masked_fill(~mask[:, None, None, :], 0) @ v
    zero_scores = scores.masked_fill(~mask[:, None, None, :], 0).softmax(-1) @ v
    want = F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
    real = mask[:, None, :, None]  # what padding itself says is nobody's business
    got = mine.attention(q, k, v, mask)
    need(torch.is_tensor(got) and got.shape == want.shape, f"attention must give shape {tuple(want.shape)}")
    need(
        bool(got[real.expand_as(got)].isfinite().all()),
        "attention with a mask gives NaN for a real token: mask the tokens that are asked (the last dimension of the"
        " scores), not those that ask",
    )
    same(
        got.where(real, 0), want.where(real, 0), "attention with a mask",
        {
            "the mask is not used, or closes those that ask": (scores.softmax(-1) @ v).where(real, 0),
            "weights are masked after softmax, so that they no longer sum to 1: mask the scores": zeroed.where(real, 0),
            "masked scores are 0, which softmax does not ignore; minus infinity": zero_scores.where(real, 0),
        },
    )  # fmt: skip


def test_embed(mine, w, texts, tiny_classifier):
    ids, types, _ = texts
    embeddings = tiny_classifier.bert.embeddings
    words, rows, kinds = w["word.weight"][ids], w["position.weight"][:7], w["token_type.weight"][types]
    with torch.no_grad():
        mistakes = {
            "there is no LayerNorm at the end": words + rows + kinds,
            "the token types are not used: all are taken for 0": embeddings(ids, types * 0),
            "the token types are left out": embeddings.norm(words + rows),
            "the positions are left out": embeddings.norm(words + kinds),
        }
        want = embeddings(ids, types)
    same(mine.embed(w, ids, types, 1e-12), want, "embed", mistakes)


def test_layer(mine, w, texts, tiny_classifier):
    x, mask = draw(3, 7, 24), texts[2]
    block = tiny_classifier.bert.layers[1]
    attention, feed_forward = block.attention, block.feed_forward
    norm, second_norm = block.attention_norm, block.feed_forward_norm
    with torch.no_grad():
        want, bare, half = block(x), norm(attention(x)), norm(x + attention(x))
        first = x + attention(norm(x))
        pre = first + feed_forward(second_norm(first))
        mistakes = {
            "what went in is not added (the residual), neither time": second_norm(feed_forward(bare)),
            "what went in is not added (the residual) to the attention": second_norm(bare + feed_forward(bare)),
            "what went in is not added (the residual) to the feed-forward": second_norm(feed_forward(half)),
            "the feed-forward part is missing": half,
            "this is pre-LN, LayerNorm before each part; BERT's stands behind the sum": pre,
        }
    same(mine.layer(w, 1, x, 4, None, 1e-12), want, "layer 1", mistakes, 1e-4)
    alone, padded = mine.layer(w, 1, x[1:2, :4], 4, None, 1e-12), mine.layer(w, 1, x, 4, mask, 1e-12)
    same(padded[1:2, :4], alone, "a padded text with a mask (does it reach attention?)", None, 1e-4)


def test_whole_bert(mine, w, published, texts, tiny_classifier):
    ids, types, mask = texts
    with torch.no_grad():
        sequence, pooled = tiny_classifier.bert(ids, mask, types)
    got = mine.bert(w, published, ids, types, mask)
    need(isinstance(got, tuple) and len(got) == 2, "bert must give two tensors: the last layer's, and pooled")
    same(got[0][mask], sequence[mask], "the last layer's output", None, 1e-4)
    last = torch.tanh(sequence[:, -1] @ w["pooler.weight"].T + w["pooler.bias"])
    bare = sequence[:, 0] @ w["pooler.weight"].T + w["pooler.bias"]
    same(
        got[1],
        pooled,
        "pooled",
        {"the pooler reads the first token, not the last": last, "tanh is missing": bare},
        1e-4,
    )


NAMED = {
    "embeddings.word_embeddings.weight": "word.weight",
    "embeddings.LayerNorm.weight": "embeddings_norm.weight",
    "bert.embeddings.LayerNorm.beta": "embeddings_norm.bias",
    "encoder.layer.0.attention.self.query.bias": "0.query.bias",
    "bert.encoder.layer.3.output.LayerNorm.gamma": "3.feed_forward_norm.weight",
    "encoder.layer.11.attention.output.LayerNorm.weight": "11.attention_norm.weight",
    "bert.encoder.layer.11.intermediate.dense.weight": "11.up.weight",
    "bert.pooler.dense.bias": "pooler.bias",
    "cls.predictions.bias": None,
    "embeddings.position_ids": None,
    "classifier.weight": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_our_name(mine, name):
    got = mine.our_name(name)
    need(got == NAMED[name], f"our_name({name!r}) is {got!r}; it must be {NAMED[name]!r}")


@pytest.mark.parametrize("spelling", ["as transformers writes it", "as Google published it"])
def test_load(mine, tiny_checkpoint, w, spelling):
    file = tiny_checkpoint / "model.safetensors"
    tensors = load_file(file)
    if spelling != "as transformers writes it":
        tensors = {
            (name if name.startswith("bert.") else f"bert.{name}")
            .replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items() if not name.startswith("classifier")
        }  # fmt: skip
    tensors |= {"cls.predictions.bias": torch.zeros(3)}
    save_file({name: tensor.half() for name, tensor in tensors.items()}, file)
    got, config = mine.load(tiny_checkpoint)
    need(
        isinstance(config, dict) and config.get("hidden_size") == 24,
        "load must give (w, config); config is config.json",
    )
    lacking, odd = sorted(w.keys() - got.keys()), sorted(str(name) for name in got.keys() - w.keys())
    need(not lacking, f"load gives no {', '.join(lacking[:3])}")
    need(not odd, f"load gives {', '.join(odd[:3])}, which BERT has no place for")
    need(got["word.weight"].dtype == torch.float32, f"tensors are {got['word.weight'].dtype}; make them float32")
    for name, tensor in w.items():
        same(got[name], tensor.half().float(), name, None, 0)


@pytest.mark.parametrize("lost", ["encoder.layer.1.output.dense.bias", "embeddings.position_embeddings.weight"])
def test_load_names_what_is_missing(mine, tiny_checkpoint, lost):
    file = tiny_checkpoint / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(lost)}, file)
    ours = {"encoder.layer.1.output.dense.bias": "1.down.bias"}.get(lost, "position.weight")
    try:
        mine.load(tiny_checkpoint)
    except KeyError as error:
        need(ours in str(error), f"the KeyError says {error}; it must name {ours}")
    else:
        need(False, f"the file has no {ours}, and load says nothing: half a network would go on with what it has")


@pytest.mark.parametrize(
    "sizes", [{}, {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}]
)
def test_count(mine, sizes):
    config = BertConfig(**sizes)
    with torch.device("meta"):
        want = sum(p.numel() for p in Bert(config).parameters())
    got = mine.count(config.to_dict())
    need(
        got == want, f"count gives {got:,} for hidden_size {config.hidden_size}; minibert has {want:,}: {got - want:+,}"
    )


def test_all_of_it_on_minilm(mine):
    folder = weights_folder() / "minilm-l6"
    if not folder.is_dir():
        pytest.skip("python -m minibert fetch minilm-l6 brings the weights")
    from minibert import Tokenizer, load_encoder

    w, config = mine.load(folder)
    ids, mask, types = Tokenizer.load(folder)(["a river bank", "he brought his money to the bank"])
    with torch.no_grad():
        sequence, pooled = load_encoder(folder)(ids, mask, types)
    got = mine.bert(w, config, ids, types, mask)
    same(got[0][mask], sequence[mask], "MiniLM's last layer", None, 1e-3)
    same(got[1], pooled, "MiniLM's pooled vector", None, 1e-3)
