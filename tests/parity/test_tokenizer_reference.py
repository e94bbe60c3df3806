"""The same ids and token types as the reference's fast tokenizer, on texts that split tokenizers apart.

From tokenizer.json and from vocab.txt alone, for lower-cased and for cased vocabularies. The vocabulary of minilm-l6,
which is bert-base-uncased's, where weights/minilm-l6 is there; the tiny checkpoint's and one of bytes always. Skipped
without transformers (extra `parity`).
"""

import json
import shutil
import string

import pytest
from conftest import ROOT, WORDS
from hypothesis import given
from hypothesis import strategies as st
from test_components import few

from minibert.tokenizer import Tokenizer

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'minibert[parity]'"
)

CHECKPOINT = ROOT / "weights" / "minilm-l6"

CORPUS = [
    # nothing, and what only looks like something
    *("", " ", "   \t \n  ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u00ad", "\x00", "\x00\x01\x7f", "\ufffd"),
    # plain
    *("The quick brown fox.", "12 99 7", "0.5 -3 1e-9", "don't stop-now (please)!", "ALL CAPS, MiXeD", "snake_case"),
    # accents: composed, decomposed, stacked, on letters that have none
    *("café naïve Ångström", "cafe\u0301 nai\u0308ve", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́", "1\u0301 -\u0302", "\u0301 alone", "ø đ ł ß ﬁ Ĳ"),
    # case that is not one to one
    *("İstanbul ıI", "STRASSE Straße ẞ", "ΌΣΟΣ ΟΔΟΣ ς σ", "ǅ ǆ Ǆ", "ⅷ Ⅷ ⓐ Ⓐ", "ﬀ ﬆ"),
    # scripts
    *(
        "日本語のテスト。漢字かな交じり",
        "中文abc混合123",
        "𠀀𪜶 㐀",
        "한국어 한국어",
        "สวัสดีชาวโลก",
        "हिन्दी क्षत्रिय",
        "தமிழ்",
    ),
    *("שלום עולם שָׁלוֹם", "مرحبا بالعالم مُحَمَّد", "abc \u202eדef\u202c ghi", "\u2067אב\u2069 x", "русский ЁЛКА й и\u0306"),
    # emoji: plain, joined, coloured, flags, keycaps
    *("I ❤️ you 😀😃", "👨‍👩‍👧‍👦 family", "👍🏽 ok", "🇩🇪🇯🇵", "1️⃣ #️⃣", "☺︎ ☺️"),
    # control, format, private and unassigned characters in the middle of words
    *(
        "a\x00b",
        "a\x07b\x1bc",
        "a\tb\nc\rd\x0be\x0cf",
        "a\x85b\u2028c\u2029d",
        "zero\u200bwidth",
        "join\u200d er\u200c",
    ),
    *("soft\u00adhyphen", "word\u2060joiner", "bom\ufeffin", "a\ue000b", "a\U000e0041b", "\U0010ffff x", "a\ufffdb"),
    # punctuation of every kind
    *(
        string.punctuation,
        "“quotes” «angles» …",
        "—–-‐‑",
        "¿que? ¡no!",
        "$5 €6 ¥7 £8 ₿",
        "a·b•c",
        "、。！？「」",
        "`~^|<>=+",
    ),
    # special tokens in the text, whole, broken and in the wrong case
    *(
        "[CLS] a [SEP] b",
        "[MASK]",
        "a[MASK]b",
        "[PAD][PAD]",
        "[UNK] x",
        "[cls] [Sep]",
        "[ CLS ]",
        "[CLS",
        "##ing",
        "x ##s",
    ),
    # length
    *("a" * 100, "a" * 101, "ab" * 5000, "é" * 10_000, "日" * 10_000, "x " * 3000, "\u0301" * 10_000, "." * 10_000),
    *("1" * 99 + "é", "a" * 99 + "\u0301", "unbelievabilities " * 40, "#" * 1000),
]

CASED = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.printable.strip(),
    *(f"##{c}" for c in string.ascii_letters + string.digits),
    *("é", "É", "##é", "ß", "İ", "i", "##\u0301", "The", "the", "##ick", "日", "中", "👍", "ZERO", "##width"),
]
CASED = list(dict.fromkeys(CASED))


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Name -> folder. Each stands for one form in which a vocabulary is published."""
    base = tmp_path_factory.mktemp("vocabularies")

    def bare(name, words=None, **tokenizer_config):
        (base / name).mkdir()
        if words is not None:
            (base / name / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        if tokenizer_config:
            (base / name / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        return base / name

    out = {
        "tiny": tiny,  # vocab.txt, no word of its own on the case
        "cased": bare("cased", CASED, do_lower_case=False),
        "cased words, lower-cased": bare("lower", CASED, do_lower_case=True),
        "lower words, cased": bare("kept", WORDS, do_lower_case=False),
    }
    for name in ("tiny", "cased"):
        Tokenizer.load(out[name]).save(bare(f"{name} json"))
        out[f"{name} json"] = base / f"{name} json"
    (base / "cased json" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    if CHECKPOINT.is_dir():
        out["minilm"] = CHECKPOINT  # tokenizer.json, which asks for truncation and padding to 128
        shutil.copy(CHECKPOINT / "vocab.txt", bare("minilm vocab"))
        out["minilm vocab"] = base / "minilm vocab"
    return out


FORMS = [
    *("tiny", "tiny json", "cased", "cased json", "cased words, lower-cased", "lower words, cased"),
    *(
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not CHECKPOINT.is_dir(), reason="weights/minilm-l6 is not there: python -m minibert fetch minilm-l6"
            ),
        )
        for name in ("minilm", "minilm vocab")
    ),
]


@pytest.fixture(scope="module")
def both(folders):
    """Name of a form -> our tokenizer and the reference's, each loaded once from the same folder."""
    loaded = {}

    def load(name):
        if name not in loaded:
            reference = transformers.BertTokenizer.from_pretrained(folders[name])
            assert reference.is_fast
            loaded[name] = Tokenizer.load(folders[name]), reference
        return loaded[name]

    return load


def same(ours, reference, texts, pairs=None, max_length=512):
    theirs = reference(texts, pairs, truncation="longest_first", max_length=max_length, padding=False)
    ids, types, _ = ours.encode(texts, pairs, max_length)
    for place, text in enumerate(texts):
        what = (text[:60], pairs and pairs[place][:60])
        assert ids[place] == theirs["input_ids"][place], what
        assert types[place] == theirs["token_type_ids"][place], what


@pytest.mark.parametrize("form", FORMS)
def test_corpus(both, form):
    same(*both(form), CORPUS)
    same(*both(form), CORPUS, max_length=30_000)  # nothing cut


@pytest.mark.parametrize("form", FORMS)
def test_pairs(both, form):
    same(*both(form), CORPUS, CORPUS[::-1])
    same(*both(form), CORPUS, CORPUS[1:] + CORPUS[:1], max_length=30_000)


@pytest.mark.parametrize("form", [form for form in FORMS if "cased" not in str(form)])
def test_truncation(both, form):
    """Of a pair, the longer text is cut first, token by token; equally long ones the reference's way."""
    numbers = [" ".join(map(str, range(n))) for n in (0, 1, 2, 3, 5, 6, 13, 14, 40)]
    firsts, seconds = zip(*((a, b) for a in numbers for b in numbers))
    for max_length in (3, 4, 5, 6, 9, 10, 17, 32):
        same(*both(form), numbers, None, max_length)
        same(*both(form), list(firsts), list(seconds), max_length)
    same(*both(form), CORPUS, None, 11)
    same(*both(form), CORPUS, CORPUS[::-1], 16)


@pytest.mark.parametrize("form", FORMS)
def test_any_text(both, form):
    ours, reference = both(form)
    letters = st.one_of(st.characters(), st.sampled_from("abCD éÉ.,[]#\u0301\u200d\u200b日😀"))
    pieces = st.lists(st.sampled_from(["a", "B", "7", " ", "[CLS]", "[MASK]", "##a", "\u0301", "日", "-"]))
    texts = st.one_of(st.text(), st.text(letters), pieces.map("".join))

    @given(texts, texts, st.integers(3, 20))
    @few(200)
    def check(text, pair, max_length):
        same(ours, reference, [text, pair])
        same(ours, reference, [text], [pair], max_length)

    check()


@pytest.mark.skipif(
    not CHECKPOINT.is_dir(), reason="weights/minilm-l6 is not there: python -m minibert fetch minilm-l6"
)
def test_the_two_files_of_a_checkpoint_agree(both):
    """tokenizer.json and vocab.txt of one checkpoint, by the same texts."""
    assert both("minilm")[0].encode(CORPUS, max_length=30_000) == both("minilm vocab")[0].encode(
        CORPUS, max_length=30_000
    )
    assert both("minilm")[0].vocab_size == both("minilm vocab")[0].vocab_size == 30522
