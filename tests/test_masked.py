"""minibert/masked.py: what is masked, that it learns, and that its result is one and kept."""

import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, WORDS

from minibert import masked as mlm
from minibert.config import TrainConfig
from minibert.data import Examples
from minibert.engine.machine import choose_machine
from minibert.engine.optimizer import AdamW
from minibert.errors import InputError
from minibert.masked import MaskedWordHead, Recipe, fingerprint, learn, mask_words, self_mlm
from minibert.setup import prepare
from minibert.tokenizer import Tokenizer

FP32 = choose_machine("fp32", torch.device("cpu"))
ONE_LAYER = replace(TINY, num_hidden_layers=1, initializer_range=0.02)
FAST = Recipe(lr=1e-2, batch_size=16)
MASK = WORDS.index("[MASK]")


@pytest.fixture
def tokenizer(tiny):
    return Tokenizer.load(tiny)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(tokenizer, count=64, first=0):
    """Runs of numbers that go up by one, so that a hidden one follows from its neighbours."""
    generator = np.random.default_rng(first)
    written = [" ".join(str(first + n + i) for i in range(8)) for n in generator.integers(0, 20, count)]
    ids, _, _ = tokenizer.encode(written)
    return Examples([np.asarray(row, np.int32) for row in ids], None, np.zeros(count, np.int64), np.arange(count))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_masking_is_berts():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (500, 42), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 3
    special = torch.arange(100) < 5
    hidden, chosen = mask_words(ids, special, 4, 0.15, generator)
    assert (chosen.sum(dim=1) == 6).all()  # of 40 words
    assert not chosen[:, 0].any()
    assert not chosen[:, -1].any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    was, now = ids[chosen], hidden[chosen]
    assert (now == 4).double().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (now == was).double().mean().item() == pytest.approx(0.1, abs=0.02)
    others = now[(now != 4) & (now != was)]
    assert len(others) / len(now) == pytest.approx(0.1, abs=0.02)
    assert others.min() >= 5
    assert len(others.unique()) > 80
    share = chosen.double().mean(dim=0)[1:-1]
    assert share.min() > 0.09  # each place alike
    assert share.max() < 0.21


def test_short_texts_have_a_word_masked_and_empty_ones_none():
    ids = torch.tensor([[2, 9, 3, 0], [2, 9, 8, 3], [2, 3, 0, 0]])
    _, chosen = mask_words(ids, torch.arange(10) < 5, 4, 0.15, torch.Generator().manual_seed(0))
    assert chosen.sum(dim=1).tolist() == [1, 1, 0]


def test_the_head_is_its_formula():
    torch.manual_seed(0)
    head, x, table = MaskedWordHead(TINY, 7), torch.randn(3, 24), torch.randn(7, 24)
    for tensor in head.parameters():
        torch.nn.init.normal_(tensor)
    y = x @ head.dense.weight.T + head.dense.bias
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    y = (y - y.mean(-1, keepdim=True)) / torch.sqrt(y.var(-1, correction=0, keepdim=True) + TINY.layer_norm_eps)
    expected = (y * head.norm.weight + head.norm.bias) @ table.T + head.bias
    torch.testing.assert_close(head(x, table), expected)


def test_it_learns(tokenizer):
    said = []
    learn(ONE_LAYER, texts(tokenizer, 320), tokenizer, 12, FAST, FP32, said.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in said]
    blind = math.log(27)  # 0 to 26 occur
    assert said[0].startswith(f"self-mlm: epoch 1 of 12, loss {losses[0]:.3f} (a blind guess: {blind:.3f})")
    assert losses[0] > 0.8 * blind
    assert losses[-1] < 0.6 * blind


def test_the_result_hangs_on_nothing_but_its_inputs(tokenizer):
    torch.manual_seed(1)
    one = learn(TINY, texts(tokenizer), tokenizer, 1, FAST, FP32, str)
    torch.manual_seed(2)
    two = learn(TINY, replace(texts(tokenizer), labels=np.ones(64, np.int64)), tokenizer, 1, FAST, FP32, str)
    assert equal(one, two)
    assert not equal(one, learn(TINY, texts(tokenizer, first=30), tokenizer, 1, FAST, FP32, str))


def test_dropout_is_on(tokenizer):
    dry = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    one, two = (learn(config, texts(tokenizer), tokenizer, 1, FAST, FP32, str) for config in (TINY, dry))
    assert not equal(one, two)


def test_words_that_never_occur_are_only_decayed(tokenizer):
    from minibert.initialization import draw, stream
    from minibert.model import Bert

    start = Bert(replace(TINY, pool="mean"))
    with torch.no_grad():
        draw(start, TINY.initializer_range, stream(mlm.SEED, "self-mlm encoder"))
    word, was = (
        learn(TINY, texts(tokenizer), tokenizer, 1, FAST, FP32, str)["embeddings.word.weight"],
        start.embeddings.word.weight.detach(),
    )
    ratio = word[WORDS.index("99")] / was[WORDS.index("99")]
    assert ratio.min().item() == pytest.approx(ratio.max().item())
    assert 0.999 < ratio.mean() < 1
    for token in ("5", "[MASK]", "[CLS]"):
        assert (word[WORDS.index(token)] - was[WORDS.index(token)]).abs().max() > 1e-3, token
    assert word[0].abs().max() == 0  # [PAD]


def test_the_result_is_kept_and_taken(tokenizer, cache, monkeypatch):
    split, said = texts(tokenizer), []
    first = self_mlm(TINY, split, tokenizer, 2, FP32, said.append)
    assert said[0] == (
        "self-mlm: 2 epochs of masked-language-model training on the 64 training texts, 32 a step, lr 0.0005"
    )
    with monkeypatch.context() as patch:
        patch.setattr(mlm, "learn", lambda *_: pytest.fail("trained again"))
        again = self_mlm(
            replace(TINY, pool="mean"), replace(split, labels=split.labels + 1), tokenizer, 2, FP32, said.append
        )
    assert equal(first, again)
    assert equal(first, learn(replace(TINY, pool="mean"), split, tokenizer, 2, Recipe(), FP32, str))
    (file,) = cache.glob("*.safetensors")
    assert said[-1].endswith(f"are in the cache, {file}")


def test_activations_computed_again_make_no_difference(tokenizer):
    split = texts(tokenizer)
    plain, again = (learn(TINY, split, tokenizer, 1, Recipe(), FP32, str, checkpointing) for checkpointing in (0, 1))
    assert equal(plain, again)


def test_runs_side_by_side_train_it_once(tokenizer, monkeypatch):
    split, trained, one, whole = texts(tokenizer), [], threading.Event(), mlm.learn

    def slow(*args):
        trained.append(args)
        one.wait(0.5)  # the other has time to come in, if it can
        return whole(*args)

    monkeypatch.setattr(mlm, "learn", slow)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: self_mlm(TINY, split, tokenizer, 1, FP32, str), range(2))
    assert len(trained) == 1
    assert equal(first, second)


def test_a_damaged_cache_is_made_anew(tokenizer, cache):
    first = self_mlm(TINY, texts(tokenizer), tokenizer, 1, FP32, str)
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    for damage in (whole[:1000], b"", None):
        if damage is None:
            mlm.save_file({name: tensor[:1].contiguous() for name, tensor in first.items()}, file)
        else:
            file.write_bytes(damage)
        assert equal(self_mlm(TINY, texts(tokenizer), tokenizer, 1, FP32, str), first)
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tokenizer, cache):
    cache.write_text("a file stands where the folder should be")
    assert self_mlm(TINY, texts(tokenizer), tokenizer, 1, FP32, str)


def test_all_that_matters_is_in_the_fingerprint(tokenizer, tiny, tmp_path, monkeypatch):
    split = texts(tokenizer)
    shutil.copy(tiny / "vocab.txt", tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:-1], "extra"]) + "\n")
    given = {"config": TINY, "texts": split, "tokenizer": tokenizer, "epochs": 1, "recipe": FAST, "machine": FP32}
    changes = [
        {},
        {"config": replace(TINY, hidden_dropout_prob=0.2)},
        {"texts": replace(split, ids=split.ids[::-1])},
        {"texts": replace(split, ids=[np.concatenate(split.ids)])},
        {"texts": replace(split, types=[np.zeros(len(row), np.uint8) for row in split.ids])},
        {"tokenizer": Tokenizer.load(tmp_path)},
        {"epochs": 2},
        {"recipe": replace(FAST, lr=2e-2)},
        {"machine": choose_machine("bf16", torch.device("cpu"))},
    ]
    keys = [fingerprint(**given | change) for change in changes]
    assert fingerprint(**given | {"texts": replace(split, labels=split.labels + 1, rows=split.rows + 1)}) == keys[0]
    monkeypatch.setattr(mlm, "RECIPE", mlm.RECIPE + 1)
    assert len({*keys, fingerprint(**given)}) == len(changes) + 1


def test_a_tokenizer_without_mask_and_texts_without_words(tokenizer, tiny, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(word for word in WORDS if word != "[MASK]") + "\n")
    with pytest.raises(InputError, match=r"self-mlm: the tokenizer has no \[MASK\]"):
        self_mlm(TINY, texts(tokenizer), Tokenizer.load(tmp_path), 1, FP32)
    empty = replace(texts(tokenizer, 1), ids=[np.array([2, 1, 3], np.int32)])  # [CLS] [UNK] [SEP]
    with pytest.raises(InputError, match="no word that the tokenizer knows"):
        self_mlm(TINY, empty, tokenizer, 1, FP32, str)


def test_a_gradient_that_is_not_finite_is_one_line(tokenizer, monkeypatch):
    monkeypatch.setattr(AdamW, "norm", lambda self, grads: torch.tensor(math.nan))
    with pytest.raises(InputError, match="self-mlm: the gradient is not finite at step 1"):
        learn(TINY, texts(tokenizer), tokenizer, 1, FAST, FP32, str)


def test_a_run_trains_on_its_training_texts_alone_and_another_seed_takes_the_result(tiny, tmp_path, monkeypatch):
    rows = [
        f"{i} {2 * i}\t{'ab'[i % 2]}\t{split}" for i, split in enumerate(["train"] * 30 + ["val"] * 8 + ["test"] * 8)
    ]
    (tmp_path / "data.tsv").write_text("text\tlabel\tsplit\n" + "\n".join(rows))
    seen, real = [], mlm.learn
    monkeypatch.setattr(mlm, "learn", lambda config, texts, *more: (seen.append(texts), real(config, texts, *more))[1])
    config = TrainConfig(data=str(tmp_path / "data.tsv"), model=str(tiny), init="self-mlm:1", out=str(tmp_path / "x"))
    first = prepare(config, str)
    assert seen[0].rows.tolist() == list(range(30))
    said = []
    second = prepare(replace(config, seed="5", pool="mean", dropout="0.3"), said.append)
    assert len(seen) == 1
    assert any(line.startswith("self-mlm: 1 epoch of masked") and "are in the cache" in line for line in said)
    mine, other = first.model.bert.state_dict(), second.model.bert.state_dict()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in other.items())
    assert set(mine) - set(other) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert {first.manifest[f"bert.{name}"]["source"] for name in other} == {"self-mlm"}
