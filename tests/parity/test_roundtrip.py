"""What minibert saves opens in the reference implementation with the same numbers, and the other way round.

Skipped without transformers (extra `parity`).
"""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY, labels_of, perturbed
from safetensors.torch import load_file

from minibert.checkpoint import load_classifier, load_encoder, save_pretrained
from minibert.config import TrainConfig
from minibert.model import Bert, BertClassifier
from minibert.tokenizer import Tokenizer
from minibert.training.run import train

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'minibert[parity]'"
)

# Eleven, so that class 10 stands after class 2.
LABELS = ["walking", "sitting", "lying", "日本", "up & down", "", "B", "a", "Ä", "10", "2"]
CONFIG = replace(TINY, num_labels=len(LABELS))
TEXTS = ["12 99 7 - 3.", "ab 5", "", "a 1 b 2 c 3 héllo 日本 [SEP] 4"]


def inputs():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, TINY.vocab_size, (4, 11), generator=generator)
    mask = (torch.arange(11) < torch.tensor([[11], [4], [9], [1]])).long()
    return ids, mask, torch.randint(0, TINY.type_vocab_size, ids.shape, generator=generator)


def identical(ours, theirs):
    """The same up to the order of additions: 1e-6 of logits of size 1."""
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def model_of(kind, config=CONFIG):
    torch.manual_seed(1)
    return perturbed(kind(config)).eval()


def reference_of(kind, dtype=torch.float32):
    """The reference's own model with its own random weights, every tensor off its start."""
    torch.manual_seed(3)
    numbers = {name: value for name, value in CONFIG.to_dict().items() if name not in ("pool", "num_labels")}
    config = transformers.BertConfig(
        **numbers, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )
    return perturbed(kind(config)).to(dtype).eval()


@torch.no_grad()
def test_a_classifier_of_ours_opens_there(tmp_path):
    model = model_of(BertClassifier)
    save_pretrained(model, tmp_path, LABELS)
    reference, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report  # no tensor missing, left over or of another shape
    assert type(reference) is transformers.BertForSequenceClassification
    # Loading is lenient with prefixes; other readers of the file may not be.
    assert load_file(tmp_path / "model.safetensors").keys() == reference.state_dict().keys()
    assert reference.config.id2label == dict(enumerate(LABELS))
    assert reference.config.label2id == {label: i for i, label in enumerate(LABELS)}
    identical(model(*inputs()), reference(*inputs()).logits)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for name in CONFIG.to_dict().keys() - {"num_labels"}:
        assert getattr(reference.config, name) == written[name] == CONFIG.to_dict()[name], name


@torch.no_grad()
def test_a_head_without_names_gets_the_references_names(tmp_path):
    save_pretrained(model_of(BertClassifier), tmp_path)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert reference.config.id2label == {i: f"LABEL_{i}" for i in range(len(LABELS))}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_classifier_of_theirs_opens_here(tmp_path, dtype):
    reference = reference_of(transformers.BertForSequenceClassification, dtype)
    reference.save_pretrained(tmp_path)
    model = load_classifier(tmp_path)
    assert labels_of(tmp_path) == LABELS
    assert model.config == CONFIG
    identical(model(*inputs()), reference.float()(*inputs()).logits)  # here everything is float32 in memory


@torch.no_grad()
def test_an_encoder_of_ours_opens_there(tmp_path):
    model = model_of(Bert)
    save_pretrained(model, tmp_path)
    reference, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(reference) is transformers.BertModel
    assert load_file(tmp_path / "model.safetensors").keys() == reference.state_dict().keys()
    theirs = reference(*inputs())
    for ours, other in zip(model(*inputs()), (theirs.last_hidden_state, theirs.pooler_output)):
        identical(ours, other)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_encoder_of_theirs_opens_here(tmp_path, dtype):
    reference = reference_of(transformers.BertModel, dtype)
    reference.save_pretrained(tmp_path)
    theirs = reference.float()(*inputs())
    for ours, other in zip(load_encoder(tmp_path)(*inputs()), (theirs.last_hidden_state, theirs.pooler_output)):
        identical(ours, other)


@torch.no_grad()
def test_their_encoder_without_a_pooler_opens_here_for_mean_pooling(tmp_path):
    torch.manual_seed(3)
    reference = perturbed(transformers.BertModel(reference_of(transformers.BertModel).config, add_pooling_layer=False))
    reference.eval().save_pretrained(tmp_path)
    model = load_encoder(tmp_path, pool="mean")
    identical(model(*inputs())[0], reference(*inputs()).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM"])
def test_the_encoder_of_their_pretraining_model_opens_here(tmp_path, kind):
    """Its heads are left aside. A masked language model has no pooler."""
    reference = reference_of(getattr(transformers, kind))
    reference.save_pretrained(tmp_path)
    model = load_encoder(tmp_path, pool="mean" if kind == "BertForMaskedLM" else "cls")
    identical(model(*inputs())[0], reference.bert(*inputs()).last_hidden_state)


@torch.no_grad()
def test_there_and_back_changes_not_a_bit(tmp_path):
    model = model_of(BertClassifier)
    save_pretrained(model, tmp_path / "ours", LABELS)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    back = load_classifier(tmp_path / "theirs")
    assert back.config == model.config
    assert labels_of(tmp_path / "theirs") == LABELS
    for (name, a), b in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a real run, short, with three classes and token types."""
    folder = tmp_path_factory.mktemp("finished")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"text": " ".join(map(str, torch.randint(30 * y, 30 * y + 30, (4 + i % 3,), generator=generator).tolist())),
         "text_b": "ab", "label": ("low", "middle one", "Höch")[y]}
        for y in range(3) for i in range(20)
    ]  # fmt: skip
    (folder / "numbers.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    settings = {"lr": 1e-3, "epochs": 2, "batch_size": 8, "precision": "fp32"}
    data = str(folder / "numbers.jsonl")
    return train(TrainConfig(data=data, model=str(tiny), out=str(folder / "run"), **settings), lambda _: None)


@torch.no_grad()
def test_a_runs_model_opens_there(finished):
    folder = finished / "model"
    labels = json.loads((finished / "config.json").read_text(encoding="utf-8"))["dataset"]["labels"]
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert reference.config.id2label == dict(enumerate(labels))
    assert sorted(labels) == ["Höch", "low", "middle one"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padded = tokenizer(TEXTS, ["1 2", "", "x", "7"], padding=True, return_tensors="pt")
    ours_ids, ours_types, _ = Tokenizer.load(folder).encode(TEXTS, ["1 2", "", "x", "7"])
    real = padded["attention_mask"].bool()
    assert [ids[keep].tolist() for ids, keep in zip(padded["input_ids"], real)] == ours_ids
    assert [types[keep].tolist() for types, keep in zip(padded["token_type_ids"], real)] == ours_types
    model = load_classifier(folder)
    identical(model(padded["input_ids"], real, padded["token_type_ids"]), reference(**padded).logits)
    # And as a user would call it: from text to the name of a class.
    said = transformers.pipeline("text-classification", model=reference, tokenizer=tokenizer)(
        {"text": "5 9", "text_pair": "ab"}
    )
    ids, types, _ = Tokenizer.load(folder).encode(["5 9"], ["ab"])
    chances = model(torch.tensor(ids), None, torch.tensor(types)).softmax(-1)[0]
    assert said["label"] == labels[chances.argmax()]
    assert said["score"] == pytest.approx(chances.max().item(), rel=1e-5)


@torch.no_grad()
def test_a_run_with_mean_pooling_opens_there_as_an_encoder(tmp_path):
    """The reference has no classifier over the mean; what it can open of one is the encoder."""
    model = model_of(BertClassifier, replace(CONFIG, pool="mean"))
    save_pretrained(model, tmp_path, LABELS)
    reference = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    identical(model.bert(*inputs())[0], reference(*inputs()).last_hidden_state)
    assert load_classifier(tmp_path).config.pool == "mean"


@pytest.mark.parametrize("change", [{"pool": "mean"}, {"head": torch.nn.Linear(TINY.hidden_size, len(LABELS))}])
def test_what_is_not_bert_throughout_is_refused_there(tmp_path, change):
    """Rather than run with a pooler or a head that the reference draws anew."""
    save_pretrained(BertClassifier(CONFIG, **change), tmp_path, LABELS)
    for kind in (transformers.AutoModelForSequenceClassification, transformers.AutoModel):
        with pytest.raises(ValueError, match="minibert"):
            kind.from_pretrained(tmp_path)
