"""minibert/tokenizer.py. Parity with the reference's tokenizer is in tests/parity."""

import json
import shutil

import pytest

from minibert.errors import InputError
from minibert.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny):
    return Tokenizer.load(tiny)


def pieces(tokenizer, ids):
    return [tokenizer.backend.id_to_token(i) for i in ids]


def test_one_text(tokenizer):
    (ids,), (types,), cut = tokenizer.encode(["Ab 7, 107"])
    assert pieces(tokenizer, ids) == ["[CLS]", "a", "##b", "7", "[UNK]", "10", "##7", "[SEP]"]
    assert types == [0] * 8
    assert cut == 0


def test_a_pair(tokenizer):
    (ids,), (types,), _ = tokenizer.encode(["1 2"], ["3"])
    assert pieces(tokenizer, ids) == ["[CLS]", "1", "2", "[SEP]", "3", "[SEP]"]
    assert types == [0, 0, 0, 0, 1, 1]


def test_cuts_are_counted(tokenizer):
    texts = ["1 2 3 4 5 6", "1 2"]
    short, _, cut = tokenizer.encode(texts, max_length=5)
    assert [pieces(tokenizer, ids)[1:-1] for ids in short] == [["1", "2", "3"], ["1", "2"]]
    assert cut == 1
    assert len(tokenizer.encode(texts)[0][0]) == 8  # the limit is not remembered
    assert tokenizer.backend.truncation is None  # nor saved


def test_of_a_pair_the_longer_is_cut_first(tokenizer):
    (ids,), _, _ = tokenizer.encode(["1 2 3 4 5"], ["6 7"], max_length=8)
    assert pieces(tokenizer, ids) == ["[CLS]", "1", "2", "3", "[SEP]", "6", "7", "[SEP]"]


def test_json_and_vocabulary_agree(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    texts = ["héllo 12", "a" * 200, "", "  ", "日本 x"]
    assert again.encode(texts) == tokenizer.encode(texts)
    assert again.vocab_size == tokenizer.vocab_size == 169


def test_padding_and_truncation_of_a_published_file_are_switched_off(tokenizer, tmp_path):
    tokenizer.backend.enable_padding(length=20)
    tokenizer.backend.enable_truncation(6)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode(["1 2 3 4 5 6 7"])[0][0]) == 9


@pytest.mark.parametrize(
    ("config", "words", "expected"),
    [
        (None, ["a"], "a"),  # no upper-case letter in it: for lower-cased text
        (None, ["a", "A"], "A"),
        ({"do_lower_case": False}, ["a"], "[UNK]"),
        ({"do_lower_case": True}, ["a", "A"], "a"),
    ],
)
def test_case_of_a_bare_vocabulary(tmp_path, config, words, expected):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert pieces(tokenizer, tokenizer.encode(["A"])[0][0])[1] == expected


def test_errors_name_the_folder(tiny, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json and no vocab\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        Tokenizer.load(tmp_path)
    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[SEP]\na\n")
    with pytest.raises(InputError, match=r"lacks \[CLS\]"):
        Tokenizer.load(folder)


def test_the_models_own_words_must_have_its_unk(tiny, tmp_path):
    """One among the added tokens alone: the library's own error would come at the first text."""
    content = json.loads(Tokenizer.load(tiny).to_json())
    content["model"]["unk_token"] = "[NONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lacks \[NONE\]"):
        Tokenizer.load(tmp_path)


GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": GROW}, "its normalizer is 'Replace'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [GROW] * 60}}, "its normalizer is 'Replace'"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Removed", "invert": False}},
         "its pre_tokenizer is 'Split'"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "its model is 'BPE'"),
        ({"normalizer": 7}, "its normalizer is 7"),
    ],
)  # fmt: skip
def test_parts_that_could_fill_the_memory_or_search_for_ever(tokenizer, tmp_path, change, said):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_json()) | change))
    with pytest.raises(InputError, match=said):
        Tokenizer.load(tmp_path)


def test_words_of_any_length_are_not_searched(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    content["model"]["max_input_chars_per_word"] = 10**9
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="max_input_chars_per_word is 1000000000; it must be from 1 to 1000"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_config_that_is_none(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "tokenizer_config.json").write_text("[]")
    Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": "yes"}')
    with pytest.raises(InputError, match="do_lower_case is 'yes'; true or false"):
        Tokenizer.load(folder)
