"""Small things about files: hashes, and writes that a kill cannot leave half done."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minibert.errors import InputError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows; `locked` asks


def sha256(path: Path) -> str:
    """The file's SHA-256, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place in one step: readers see old or new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # as any new file: safetensors writes files that nobody else can read
        with open(beside, "rb") as file:
            os.fsync(file.fileno())  # without it, a power cut can leave the new name on empty content
        os.replace(beside, path)
        flush_folder(path.parent)
    except SafetensorError as error:  # its way to say that the disk is full or may not be written
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        beside.unlink(missing_ok=True)


def write_output(path: Path, write: Callable[[Path], Any]) -> None:
    """As replace_file, for a path that a user names: a link stays one and its target is replaced; into a pipe or a
    device, what `write` makes is copied.
    """
    if not is_stream(path):
        replace_file(Path(os.path.realpath(path)), write)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / path.name)
        content = (Path(scratch) / path.name).read_bytes()
    sys.stdout.flush()
    # Standard output as it is open: opened anew, a file behind it would be written from its start again.
    with open(1 if is_stdout(path) else path, "wb", closefd=not is_stdout(path)) as file:
        file.write(content)


def check_output(path: Path, flag: str) -> None:
    """To be asked before long work whose result goes there.

    Raises:
        InputError: write_output cannot write it.
    """
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise InputError(f"{flag} {path} is a folder; name a file")
    if not is_stream(path) and not folder.is_dir():
        raise InputError(f"{flag} {path}: there is no folder {folder}; make it first")
    if not is_stream(path) and not os.access(folder, os.W_OK):
        raise InputError(f"{flag} {path}: the folder {folder} may not be written")


def is_stream(path: Path) -> bool:
    """Whether it is a pipe, a device, or standard output, which nothing may take the place of."""
    return path.exists() and (not path.is_file() or is_stdout(path))


def is_stdout(path: Path) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(1))


def flush_folder(path: Path) -> None:
    """Put the names in a folder on the disk: without it, a power cut can undo a rename. Windows has no such thing."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether a kill inside replace_file left it."""
    return re.fullmatch(r"\..+\.\d+", path.name) is not None


def write_cache(path: Path, write: Callable[[Path], Any]) -> None:
    """As replace_file, in a folder that need not be there; a cache that cannot be written costs time, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError:
        pass


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def parse_json(text: str, **more: Any) -> Any:
    """As json.loads.

    Raises:
        ValueError: not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text, **more)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """
    Raises:
        InputError: no such file, or not JSON.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path.name} in {path.parent}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold `path` as a lock while open. False: another process holds it. A killed process holds nothing.

    Args:
        wait: until it is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if fcntl is None:  # Windows: nobody is kept out
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file sets it free


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds `path`, and hold it; where it cannot be written, nobody waits."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(locked(path, wait=True))
        yield
