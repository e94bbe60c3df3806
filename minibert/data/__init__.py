"""From `--data` to tokenized, split examples with named labels.

text files, windows  ->  Table  ->  splits  ->  texts  ->  ids  ->  Dataset  ->  batches

Token ids lie in files of SHARD texts in the cache. Where there are several, they are mapped into memory, and no
more of them is read than batches ask for.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np

from minibert.config import TrainConfig
from minibert.data.columns import Names, Part, Texts
from minibert.data.splits import SPLITS, fewer, split_rows
from minibert.data.streamed import Streamed, is_large, load_checked, read_streamed, write_checked
from minibert.data.table import Layout, Table, check_kind, read_texts
from minibert.data.windows import Encoding, read_motion, read_windows
from minibert.errors import InputError
from minibert.progress import Progress
from minibert.tokenizer import Tokenizer

BUNDLED = ("motion", "motion-overlap")
IN_MEMORY = "in memory"  # what stands for `--data` in a run that was given its data by Python
WORDS = {"train": "training", "val": "validation", "test": "test"}
SHARD = 65_536  # texts in a file of the cache: what a kill loses at most
BATCH = 1024  # texts that are tokenized at a time, on all cores: the library has threads of its own
PADDING = 127  # rows that an embedding may have beyond the words: sizes are rounded up to a multiple of 8 to 128


@dataclass(frozen=True)
class Examples:
    """One split, tokenized.

    Attributes:
        ids: n arrays of token ids, each as long as its text. A list of arrays becomes Texts.
        types: n arrays of token types, or None where no example has a second text.
        labels: (n,) whole numbers, places in Dataset.labels.
        rows: (n,) whole numbers, places in the data as it was read.
        groups: n names (of a person, a document), or None where the data have none.
    """

    ids: Texts
    types: Texts | None
    labels: np.ndarray
    rows: np.ndarray
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", Texts.of(self.ids))
        object.__setattr__(self, "types", None if self.types is None else Texts.of(self.types))

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
    if windows:
        return read_windows(path)
    check_kind(path)
    if is_large(path):
        return read_streamed(path, config.charset, layout, cache_folder())
    return read_texts(path, config.charset, layout)


def chosen_rows(config: TrainConfig, table: Table) -> dict[str, np.ndarray]:
    """Row numbers of each split, as many as `--examples` and `--max-examples` leave.

    Raises:
        InputError: as split_rows and fewer.
    """
    parts, labels, most = split_rows(table, config.seeds.split), Names.of(table.labels).codes, config.max_examples
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
    named = Names.of(table.labels)
    labels = sorted(named.names, key=table.label_order)
    texts, how, encoding = table.texts, "", None
    if table.windows is not None:
        encoding = Encoding.fit(config, table, parts["train"])
        texts, how = encoding.texts(table.windows), f"; {encoding.describe()}"
    longest = min(config.max_length, positions or config.max_length)
    ids, types, cut = tokenize(tokenizer, texts, table.pairs, longest)
    y = np.array([labels.index(label) for label in named.names], np.int16)
    groups = None if table.groups is None else Names.of(table.groups)
    splits = {
        name: Examples(
            ids[rows], None if types is None else types[rows], y[named.codes[rows]], rows,
            None if groups is None else groups[rows],
        )
        for name, rows in parts.items()
    }  # fmt: skip
    lengths = ids.lengths
    counts = " / ".join(f"{len(splits[name]):,}" for name in SPLITS)
    summary = f"{table.name}: {counts} for training / validation / test, {len(labels)} classes{how}, "
    least, most = lengths.min(), lengths.max()
    summary += (f"{least} to " if least < most else "") + f"{most} tokens"
    if table.left_out:
        summary += f" (left out: {table.left_out})"
    if cut:
        limit = f"--max-length {longest}" if longest == config.max_length else f"the model's {longest} positions"
        summary += f" ({cut:,} of {len(ids):,} texts cut to {limit})"
    return Dataset(**splits, labels=labels, summary=summary, sha256=table.sha256, encoding=encoding,
                   pairs=table.pairs is not None)  # fmt: skip


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[Texts, Texts | None, int]:
    """Ids, token types (None without pairs) and the number of texts cut.

    SHARD texts at a time; those that lie in the cache, whole, are not tokenized anew.
    """
    key = hashlib.sha256(tokenizer.to_json().encode())
    for part in (str(max_length), *parts_of(texts), "" if pairs is None else "pairs", *parts_of(pairs or [])):
        key.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    rows, read = zip(texts, repeat("") if pairs is None else pairs), 0
    shards, mapped = [], len(texts) > SHARD
    with Progress(max(1, len(texts))) as bar:
        for first in range(0, len(texts), SHARD):
            count = min(SHARD, len(texts) - first)
            cached = cache_folder() / f"{key.hexdigest()}-{first // SHARD}.safetensors"
            shard = load_shard(cached, count, mapped)
            if shard is None:
                deque(islice(rows, first - read), maxlen=0)
                read = first + count
                made = tokenized(tokenizer, islice(rows, count), pairs is not None, max_length, bar)
                if isinstance(texts, Streamed):
                    texts.file.check()  # what is kept bears the name of what was read at first
                write_checked(cached, made)
                shard = load_shard(cached, count, mapped) if mapped else made
            else:
                bar.done = bar.skipped = bar.done + count
            shards.append(shard or made)  # in memory, where the cache cannot be written
    ids = [Part(shard["ids"].view(np.uint16) if shard["ids"].dtype == np.int16 else shard["ids"], shard["starts"])
           for shard in shards]  # fmt: skip
    types = None if pairs is None else Texts([Part(shard["types"], shard["starts"]) for shard in shards], SHARD)
    return Texts(ids, SHARD), types, sum(int(shard["cut"][0]) for shard in shards)


def parts_of(texts: Sequence[str]) -> Sequence[str]:
    """What stands for texts in the name of what came of them."""
    return [texts.key] if isinstance(texts, Streamed) else texts


def load_shard(path: Path, count: int, mapped: bool) -> dict[str, np.ndarray] | None:
    """What `tokenized` made of `count` texts; None where it does not lie in the cache, whole."""
    shard = load_checked(path, mapped)
    return shard if shard is not None and shard.get("starts", path).shape == (count + 1,) else None


def tokenized(
    tokenizer: Tokenizer, rows: Iterable[tuple[str, str]], pairs: bool, max_length: int, bar: Progress
) -> dict[str, np.ndarray]:
    """
    Returns:
        `ids`: token ids end to end, in 16 bits where they have room; `starts` (n + 1,) of the texts; `types`: token
        types, with second texts; `cut`: how many texts were cut.
    """
    flat, kinds, lengths, cut = [], [], [0], 0
    while some := list(islice(rows, BATCH)):
        texts, seconds = map(list, zip(*some))
        ids, types, more = tokenizer.encode(texts, seconds if pairs else None, max_length)
        flat.append(np.fromiter(chain.from_iterable(ids), np.int32))
        if pairs:
            kinds.append(np.fromiter(chain.from_iterable(types), np.uint8))
        lengths += map(len, ids)
        cut += more
        bar.advance(len(some), lambda: "tokenizing")
    joined = np.concatenate(flat)
    starts = np.cumsum(lengths, dtype=np.int64)
    return {
        "ids": joined.astype(np.uint16).view(np.int16) if joined.max() < 2**16 else joined,
        "starts": starts.astype(np.int32) if starts[-1] < 2**31 else starts,
        "cut": np.array([cut]),
    } | ({"types": np.concatenate(kinds)} if pairs else {})


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
