"""BERT's WordPiece tokenizer: a thin wrapper over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minibert.errors import InputError
from minibert.files import read_json, replace_file
from minibert.sources import folder_of

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

# What a tokenizer.json may be made of: the parts of BERT's. Others, such as Replace, can make of a short text one that
# fills the memory, or search it for ever.
PARTS = {
    "normalizer": ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents"),
    "pre_tokenizer": ("BertPreTokenizer", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"),
    "post_processor": ("BertProcessing", "TemplateProcessing"),
    "model": ("WordPiece",),
}
LONGEST_WORD = 1000  # letters that are searched for pieces: the time grows with the square


class Tokens(NamedTuple):
    """What a BERT takes, in its order: `bert(*tokenizer(texts))`."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S) bool, False where a text is padded
    token_type_ids: Tensor  # (B, S)


class Span(NamedTuple):
    """Where a token comes from: the first text (0) or the second (1), the place of its word there, and its letters."""

    text: int
    word: int
    start: int
    end: int


class Tokenizer:
    """Texts -> ids: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP] with token types 0 and 1."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.backend.no_padding()  # a published file may ask for padding to 128: batches pad to their own longest
        self.backend.no_truncation()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a checkpoint's tokenizer.json, else from its vocab.txt; a folder, or a name, as --model takes it.

        vocab.txt alone does not say whether it is for lower-cased text: tokenizer_config.json's `do_lower_case` does,
        else a vocabulary without a single upper-case letter is.

        Raises:
            InputError: neither file, or not readable, or not of BERT's parts, or its special tokens are not in it.
        """
        folder = folder_of(folder)
        try:
            if (folder / "tokenizer.json").is_file():
                check_parts(folder / "tokenizer.json")
                backend = Backend.from_file(str(folder / "tokenizer.json"))
            elif (folder / "vocab.txt").is_file():
                backend = from_vocab(folder)
            else:
                raise InputError(f"{folder} has no tokenizer.json and no vocab.txt")
        except InputError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"the tokenizer in {folder} cannot be read: {error}") from None
        lacking = [token for token in SPECIAL if backend.token_to_id(token) is None]
        unknown = backend.model.unk_token  # an [UNK] beside the model's own words does not help it
        lacking += [] if backend.model.token_to_id(unknown) is not None or unknown in lacking else [unknown]
        if lacking:
            raise InputError(f"the vocabulary in {folder} lacks {', '.join(lacking)}")
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def encode(
        self, texts: list[str], pairs: list[str] | None = None, max_length: int = 512
    ) -> tuple[list[list[int]], list[list[int]], int]:
        """
        Args:
            texts: n texts; pairs: n second texts or None.
            max_length: tokens at most, [CLS] and [SEP] counted. The end is cut, of a pair that of the longer text.

        Returns:
            ids and token types, n lists each, and how many of the n were cut.
        """
        self.backend.enable_truncation(max_length)
        inputs = texts if pairs is None else list(zip(texts, pairs))
        encoded = self.backend.encode_batch(inputs)
        self.backend.no_truncation()
        return [e.ids for e in encoded], [e.type_ids for e in encoded], sum(bool(e.overflowing) for e in encoded)

    def spans(self, text: str, pair: str | None = None, max_length: int = 512) -> tuple[list[Span | None], bool]:
        """Where each token of `encode` comes from, None for [CLS] and [SEP]; and whether the end was cut."""
        self.backend.enable_truncation(max_length)
        encoded = self.backend.encode(text, pair)
        self.backend.no_truncation()
        spans = [
            None if special else Span(int(place or 0), int(word or 0), *ends)
            for special, place, word, ends in zip(
                encoded.special_tokens_mask, encoded.sequence_ids, encoded.word_ids, encoded.offsets
            )
        ]
        return spans, bool(encoded.overflowing)

    def __call__(
        self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None, max_length: int = 512
    ) -> Tokens:
        """One text, or several padded to the longest.

        Raises:
            InputError: something else than texts, none, or not as many pairs as texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        for text in (*texts, *(pairs or [])):
            if not isinstance(text, str):
                raise InputError(f"a tokenizer takes texts; got {text!r}, a {type(text).__name__}")
        if not texts or (pairs is not None and len(pairs) != len(texts)):
            raise InputError(f"{len(texts)} texts{'' if pairs is None else f' and {len(pairs)} second texts'}")
        ids, types, _ = self.encode(texts, pairs, max_length)
        pad_id = self.token_id("[PAD]") or 0
        side_by_side = [
            pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
            for rows, value in ((ids, pad_id), ([[1] * len(row) for row in ids], 0), (types, 0))
        ]
        return Tokens(side_by_side[0], side_by_side[1].bool(), side_by_side[2])

    def to_json(self) -> str:
        return self.backend.to_str()

    def save(self, folder: str | Path) -> None:
        """Write FOLDER/tokenizer.json: all that `load` needs."""
        replace_file(Path(folder) / "tokenizer.json", lambda beside: beside.write_bytes(self.content()))

    def content(self) -> bytes:
        """Of the file that `save` writes."""
        return self.backend.to_str(pretty=True).encode()


def check_parts(path: Path) -> None:
    """
    Raises:
        InputError: a tokenizer.json that is no tokenizer of BERT's.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no object")
    for part, known in PARTS.items():
        waiting = [content.get(part)]
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict) and one.get("type") == "Sequence":
                names = ("normalizers", "pretokenizers", "processors")
                inner: Any = next((one[name] for name in names if name in one), [])
                waiting += inner if isinstance(inner, list) else [inner]
            elif one is not None and (not isinstance(one, dict) or one.get("type", known[0]) not in list(known)):
                name = one.get("type") if isinstance(one, dict) else one
                raise InputError(f"{path}: its {part} is {name!r}; BERT's is one of {', '.join(known)}")
    model = content.get("model")
    longest = model.get("max_input_chars_per_word", 100) if isinstance(model, dict) else 100
    if not isinstance(longest, int) or not 0 < longest <= LONGEST_WORD:
        raise InputError(f"{path}: max_input_chars_per_word is {longest!r}; it must be from 1 to {LONGEST_WORD}")


def from_vocab(folder: Path) -> Backend:
    """BERT's pipeline over FOLDER/vocab.txt: clean, split, then the longest pieces first (words up to 100 letters)."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    lowercase = not any(word != word.lower() for word in words if not word.startswith("["))
    if (folder / "tokenizer_config.json").is_file():
        config = read_json(folder / "tokenizer_config.json")
        lowercase = config.get("do_lower_case", lowercase) if isinstance(config, dict) else lowercase
        if not isinstance(lowercase, bool):
            raise InputError(f"{folder / 'tokenizer_config.json'}: do_lower_case is {lowercase!r}; true or false")
    backend = Backend(WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = WordPieceDecoder()
    backend.add_special_tokens([token for token in (*SPECIAL, "[MASK]") if token in words])
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    if cls is not None and sep is not None:
        backend.post_processor = BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return backend
