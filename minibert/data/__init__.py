"""From `--data` to tokenized, split examples with named labels.

text files, windows  ->  Table  ->  splits  ->  texts  ->  ids  ->  Dataset  ->  batches
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from minibert.config import TrainConfig
from minibert.data.splits import SPLITS, fewer, split_rows
from minibert.data.table import Layout, Table, read_texts
from minibert.data.windows import Encoding, read_motion, read_windows
from minibert.errors import InputError
from minibert.files import write_cache
from minibert.tokenizer import Tokenizer

BUNDLED = ("motion", "motion-overlap")
IN_MEMORY = "in memory"  # what stands for `--data` in a run that was given its data by Python
WORDS = {"train": "training", "val": "validation", "test": "test"}
PADDING = 127  # rows that an embedding may have beyond the words: sizes are rounded up to a multiple of 8 to 128


@dataclass(frozen=True)
class Examples:
    """One split, tokenized.

    Attributes:
        ids: n arrays of token ids, each as long as its text.
        types: n arrays of token types, or None where no example has a second text.
        labels: (n,) int64, places in Dataset.labels.
        rows: (n,) int64, places in the data as it was read.
        groups: n names (of a person, a document), or None where the data have none.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray] | None
    labels: np.ndarray
    rows: np.ndarray
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three splits, the names of the labels, one line that describes them, and the hash of all that was read.

    Attributes:
        encoding: how windows became texts; None: they were texts.
        pairs: whether each example is two texts.
    """

    train: Examples
    val: Examples
    test: Examples
    labels: list[str]
    summary: str
    sha256: str
    encoding: Encoding | None = None
    pairs: bool = False


def read_table(config: TrainConfig) -> Table:
    """What `--data` names, before any split or encoding.

    Raises:
        InputError: not there, or not of the form that its kind asks for.
    """
    if config.data == IN_MEMORY:
        raise InputError(
            "the run's data were given in memory and are not in its folder; in Python run.report() scores it where it"
            " was trained, and python -m minibert predict works without them"
        )
    path, layout = Path(os.path.expanduser(config.data)), Layout.of(config)
    windows = config.data in BUNDLED or path.suffix.lower() == ".npz"
    if layout != Layout() and (windows or path.is_dir()):
        raise InputError(f"--data {config.data} has no columns; leave out the flags that name them or a delimiter")
    if config.data in BUNDLED:
        return read_motion(overlap=config.data == "motion-overlap")
    return read_windows(path) if windows else read_texts(path, config.charset, layout)


def chosen_rows(config: TrainConfig, table: Table) -> dict[str, np.ndarray]:
    """Row numbers of each split, as many as `--examples` and `--max-examples` leave.

    Raises:
        InputError: as split_rows and fewer.
    """
    parts, labels, most = split_rows(table, config.seeds.split), np.array(table.labels), config.max_examples
    if config.examples != "all":
        few = fewer(parts["train"], labels, int(config.examples), config.seeds.subset)
        # Not of those few, but anew: so that few are among more whichever flag says so.
        parts["train"] = parts["train"] if 0 < most < len(few) else few
    for name, rows in parts.items():
        if 0 < most < len(rows):
            # other seeds must still be tested on the same examples
            seed = config.seeds.subset if name == "train" else config.seeds.split
            parts[name] = fewer(rows, labels, most, seed, "--max-examples", WORDS[name])
    return parts


def load_dataset(
    config: TrainConfig, tokenizer: Tokenizer, positions: int | None = None, table: Table | None = None
) -> Dataset:
    """Read, split, encode and tokenize `--data`.

    Args:
        positions: tokens that the model can take; None: any number. Texts are cut to it or `--max-length`.
        table: in place of what `--data` names.

    Raises:
        InputError: the data cannot be used; the line says what is wrong and where.
    """
    table = read_table(config) if table is None else table
    parts = chosen_rows(config, table)
    labels = sorted(set(table.labels), key=table.label_order)
    texts, how, encoding = table.texts, "", None
    if table.windows is not None:
        encoding = Encoding.fit(config, table, parts["train"])
        texts, how = encoding.texts(table.windows), f"; {encoding.describe()}"
    longest = min(config.max_length, positions or config.max_length)
    ids, types, cut = tokenize(tokenizer, texts, table.pairs, longest)
    number = {label: place for place, label in enumerate(labels)}
    y = np.array([number[label] for label in table.labels])
    splits = {
        name: Examples(
            [ids[i] for i in rows], types and [types[i] for i in rows], y[rows], rows,
            table.groups and [table.groups[i] for i in rows],
        )
        for name, rows in parts.items()
    }  # fmt: skip
    lengths = [len(row) for row in ids]
    counts = " / ".join(f"{len(splits[name]):,}" for name in SPLITS)
    summary = f"{table.name}: {counts} for training / validation / test, {len(labels)} classes{how}, "
    summary += (f"{min(lengths)} to " if min(lengths) < max(lengths) else "") + f"{max(lengths)} tokens"
    if table.left_out:
        summary += f" (left out: {table.left_out})"
    if cut:
        limit = f"--max-length {longest}" if longest == config.max_length else f"the model's {longest} positions"
        summary += f" ({cut:,} of {len(ids):,} texts cut to {limit})"
    return Dataset(**splits, labels=labels, summary=summary, sha256=table.sha256, encoding=encoding,
                   pairs=table.pairs is not None)  # fmt: skip


def tokenize(
    tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[np.ndarray], list[np.ndarray] | None, int]:
    """Ids, token types (None without pairs) and the number of texts cut, from the cache where it has these texts."""
    key = hashlib.sha256(tokenizer.to_json().encode())
    for part in (str(max_length), *texts, "" if pairs is None else "pairs", *(pairs or [])):
        key.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    cached = cache_folder() / f"{key.hexdigest()}.safetensors"
    try:
        flat = load_file(cached)
        whole = flat.keys() == {"ids", "types", "lengths", "cut"} and flat["lengths"].sum() == len(flat["ids"])
    except (OSError, SafetensorError):
        whole = False
    if not whole:
        ids, types, cut = tokenizer.encode(texts, pairs, max_length)
        flat = {
            "ids": np.concatenate([np.asarray(row, np.int32) for row in ids]),
            "types": np.concatenate([np.asarray(row, np.uint8) for row in types]),
            "lengths": np.array([len(row) for row in ids]),
            "cut": np.array([cut]),
        }
        write_cache(cached, lambda beside: save_file(flat, beside))
    ends = np.cumsum(flat["lengths"])[:-1]
    types = None if pairs is None else np.split(flat["types"], ends)
    return np.split(flat["ids"], ends), types, int(flat["cut"][0])


def cache_folder() -> Path:
    """$MINIBERT_CACHE, else minibert/ in the user's cache folder."""
    if os.environ.get("MINIBERT_CACHE"):
        return Path(os.environ["MINIBERT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minibert"


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, name: str) -> None:
    """
    Raises:
        InputError: the tokenizer and the word embedding do not belong together: fewer rows than words, or many more;
            or it gives words or token types that no BERT has.
    """
    if not tokenizer.vocab_size <= vocab_size <= tokenizer.vocab_size + PADDING:
        raise InputError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} words, the word embedding {vocab_size} rows;"
            " take the tokenizer that was published with these weights"
        )
    cls, sep = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
    (alone,), _, _ = tokenizer.encode([""])
    (pair,), (types,), _ = tokenizer.encode([""], [""])
    if (alone, pair, types) != ([cls, sep], [cls, sep, sep], [0, 0, 1]):
        raise InputError(f"{name}: the tokenizer does not put [CLS], [SEP] and token types around texts as BERT's does")
    largest = max(tokenizer.backend.get_vocab().values())
    if largest >= vocab_size:
        raise InputError(f"{name}: the tokenizer has a word {largest}; the word embedding has {vocab_size} rows")
