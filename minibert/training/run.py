"""A run, from a command to its end: begun or gone on with, held against others, stopped from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import astuple
from pathlib import Path
from shlex import quote
from typing import Any

from minibert import sources
from minibert.config import TrainConfig
from minibert.data.table import Table
from minibert.engine.epochs import Cursor
from minibert.engine.processes import Processes, joined
from minibert.errors import InputError, LostProcessError, OwnError, Say, Stopped, is_out_of_memory
from minibert.files import locked, write_json
from minibert.launch import launch
from minibert.lines import tell
from minibert.setup import Head, Setup, prepare
from minibert.tokenizer import Tokenizer
from minibert.training import folder
from minibert.training.keeper import how_to_go_on
from minibert.training.loop import fit, plan_of


def train(config: TrainConfig, say: Say = tell, head: Head | None = None, table: Table | None = None) -> Path:
    """A new run, to its end.

    Args:
        head, table: a head of one's own, data in memory; a run with either can only be gone on with by who has them.

    Returns:
        The run's folder.

    Raises:
        InputError: as prepare; an --out that is not empty; a gradient that is not finite.
    """
    with joined() as processes:
        once, say = processes.once, processes.voice(say)
        if once(goes_on, config, *processes.most(launch().restarts)):
            return resume(Path(config.out), say, force=True)
        if config.out is not None:
            once(folder.check_free, config.out)  # before anything long begins
        setup = prepare(config, say, head, table)
        plan_of(setup)  # what it refuses leaves no folder
        path = once(folder.new_folder, config.out, config.init)
        with holding(path, processes):
            once(folder.check_free, str(path))  # another process may have been quicker
            can_go_on = config.save and head is None and table is None
            with stoppable(path) if can_go_on else nullcontext(), within_memory(setup):
                once(folder.begin, path, setup)
                return fit(setup, path, None, say, obeys=can_go_on)


def goes_on(config: TrainConfig, restarts: int) -> bool:
    """Whether torchrun has started this command anew, and an earlier try has left a run to go on with.

    Args:
        restarts: how often it has; each machine counts those that began there.

    Raises:
        InputError: it is to be started anew where needed, and could not know with which run to go on.
    """
    if launch().max_restarts and config.out is None:
        raise InputError("--max-restarts needs --out: a process that is started anew goes on with the run there")
    if not restarts or not (Path(config.out) / "config.json").is_file():
        return False
    left, _ = folder.read_run(Path(config.out))
    pairs = zip(astuple(config), astuple(left))  # of the run left, with auto and relative paths resolved
    return all(value in ("auto", was) or str(Path(str(value)).resolve()) == was for value, was in pairs)


def resume(path: Path, say: Say = tell, force: bool = False) -> Path:
    """Go on with a run that was stopped, where its last state stands, with its own settings.

    Args:
        force: also where its last bits will not be those of a run that never was stopped; config.json then says so.

    Raises:
        InputError: not a run, one that has ended, or its data, its checkpoint or the machine are not what they were.
    """
    with joined() as processes:
        processes.once(folder.read_run, path)  # before a lock is made in what is no run
        processes.once(folder.check_links, path)
        with holding(path, processes):
            return go_on(path, processes.voice(say), force, processes.once)


def go_on(path: Path, say: Say, force: bool, once: Callable[..., Any]) -> Path:
    """`resume`, where nobody else is at the run. `once`: see Processes."""
    config, content = once(folder.read_run, path)
    if not config.save:
        raise InputError(f"{path} was trained with --no-save, so there is nothing to go on from; start it anew")
    once(folder.sweep, path)
    if "ended" in content:
        once(folder.clear, path)  # a kill may have come between its end and this
        once((path / "lock").unlink, missing_ok=True)
        if not once((path / "model").is_dir):
            raise InputError(f"{path} has ended, and {path / 'model'}, its best epoch, is gone; start the run anew")
        if once(folder.own_tokenizer, path, content):
            raise InputError(f"{path} has ended: python eval.py {quote(str(path))} reports on it")
        return once(put_tokenizer_back, path, config, content, say)
    if content.get("head"):
        raise InputError(f"{path} has a head of your own, {content['head']}; train it anew in Python")
    state = once(folder.load_state, path)
    if state is not None and state.history and not once(folder.has_model, path):
        raise InputError(f"{path / 'model'}, the best epoch so far, is gone, and nothing else holds it; start anew")
    setup = prepare(config, say)
    fresh, source = folder.content_of(setup), content["checkpoint"]
    files = {file: (was, setup.source.files.get(file, "none")) for file, was in source.get("files", {}).items()}
    for name, (was, now) in {
        "the data": (content["dataset"]["sha256"], setup.data.sha256),
        "the checkpoint": (source["sha256"], setup.source.sha256),
        **{f"the checkpoint's {file}": hashes for file, hashes in files.items()},
    }.items():
        if was != now:
            raise InputError(f"{name} of {path} changed since it started (SHA-256 {was[:12]}, now {now[:12]})")
    once(note_a_move, path, content, fresh, Cursor() if state is None else state.cursor, say, force)
    once(folder.complete, path, setup)
    with stoppable(path), within_memory(setup):
        return fit(setup, path, state, say, obeys=True)


def note_a_move(
    path: Path, content: dict[str, Any], fresh: dict[str, Any], cursor: Cursor, say: Say, force: bool
) -> None:
    """Say, and keep in config.json, that a run goes on elsewhere than it began.

    Args:
        content: its config.json; fresh: what that would be if it began here and now; force: see resume.

    Raises:
        InputError: it does, and is not forced to.
    """
    was, now = folder.around(content), folder.around(fresh)
    moved = {name: (was[name], now[name]) for name in was if was[name] != now[name]}
    if moved:
        told = ", ".join(f"{name} {one} (now {other})" for name, (one, other) in moved.items())
        if not force:
            raise InputError(f"{path} began with {told}: its last bits would change from here on; --force goes on so")
        say(f"it began with {told}: the last bits may differ from a run that never was stopped")
        here = {"epoch": cursor.epoch, "step": cursor.step, "was": was, "now": now}
        fresh |= {"started": content["started"], "moved": [*content.get("moved", []), here]}
        write_json(path / "config.json", fresh)


def put_tokenizer_back(path: Path, config: TrainConfig, content: dict[str, Any], say: Say) -> Path:
    """The tokenizer of a run that has ended, from its checkpoint.

    Raises:
        InputError: the checkpoint has another one now.
    """
    tokenizer = Tokenizer.load(sources.resolve(config.model, need_weights=False, say=say).path)
    if hashlib.sha256(tokenizer.content()).hexdigest() != content.get("tokenizer"):
        raise InputError(f"{path} has lost its tokenizer, and --model {config.model} has another one now")
    tokenizer.save(path / "model")
    say(f"{path} has ended; its tokenizer is back: python eval.py {quote(str(path))} reports on it")
    return path


@contextmanager
def holding(path: Path, processes: Processes) -> Iterator[None]:
    """Keep others from the run; the first of its processes holds it for all.

    Raises:
        InputError: one is at it already.
    """
    with ExitStack() as stack:
        processes.once(stack.enter_context, held(path))
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    with locked(path / "lock") as free:
        if not free:
            raise InputError(f"another process is training {path}; wait for it, or stop it first")
        yield
        (path / "lock").unlink(missing_ok=True)  # the run has ended


@contextmanager
def stoppable(path: Path) -> Iterator[None]:
    """Whatever stops a run from outside, while open, says how to go on, where there is something to go on with.

    Raises:
        Stopped: in place of KeyboardInterrupt, and where nobody reads the output any more.
        InputError: in place of an OSError: the disk is full, the folder is gone.
        LostProcessError: another process has gone.
    """
    try:
        yield
    except Stopped:
        raise
    except LostProcessError as error:
        raise LostProcessError(f"{error}; {how_to_go_on(path)} goes on from its last snapshot") from None
    except (KeyboardInterrupt, OSError) as error:
        folder.check_there(path)
        how = f"{how_to_go_on(path)} goes on from its last snapshot" if (path / "config.json").is_file() else ""
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(how) from None
        if isinstance(error, BrokenPipeError):
            raise Stopped(f"nobody reads the output any more; {how}", 141) from None
        raise InputError(f"{error}{'; ' * bool(how)}{how}") from None


@contextmanager
def within_memory(setup: Setup) -> Iterator[None]:
    """
    Raises:
        OwnError: there was not enough memory, while open.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        longest = setup.data.train.ids.lengths.max()
        weights = sum(weight.numel() for weight in setup.model.parameters())
        again = "" if setup.config.gradient_checkpointing else ", add --gradient-checkpointing"
        raise OwnError(
            f"out of memory with {setup.config.batch_size} examples of up to {longest} tokens a pass and {weights:,}"
            f" weights ({str(error).strip() or type(error).__name__}); lower --batch-size (--accumulate makes up for"
            f" it) or --max-length{again}, or take a smaller --model"
        ) from None
