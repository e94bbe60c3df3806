"""Several real processes that train one run, as torchrun starts them, and what they do in tests/test_processes.py."""

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import CONTEXT

from minibert.commands import guarded
from minibert.engine import network
from minibert.engine.processes import here, joined
from minibert.errors import InputError
from minibert.setup import prepare
from minibert.training import loop, run
from minibert.training.keeper import Keeper
from minibert.training.outcome import evaluate_run


def new_store():
    """Where processes find each other; torchrun has one for all its restarts."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def together(world, work, *arguments, store=None, seconds=100, **environment):
    """Call `work` in `world` processes. Their exit codes, and what each of them printed, both outputs in one."""
    store = store or new_store()
    where = Path(os.environ["MINIBERT_CACHE"])
    where.mkdir(parents=True, exist_ok=True)
    texts = [where / f"printed-{store.port}-{os.urandom(4).hex()}" for _ in range(world)]
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "test",
              "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
    shared |= {name: os.environ[name] for name in ("MINIBERT_CACHE", "HF_HUB_OFFLINE")} | environment
    processes = [
        CONTEXT.Process(
            target=begin, args=({"RANK": rank, "LOCAL_RANK": rank} | shared, texts[rank], work, arguments), daemon=True
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    printed = [text.read_text(encoding="utf-8") for text in texts]
    assert not late, printed
    return [process.exitcode for process in processes], printed


def begin(environment, text, work, arguments):
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    out = os.open(text, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["train.py"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(guarded(lambda _: work(*arguments)))


def compare(folder, configs):
    """Train each config and leave in FOLDER/RANK.json the loss of each step and a hash of all that training changed,
    and of the last one's reports.
    """
    real, seen = loop.engine_of, {"losses": [], "hashes": [], "empty": 0, "evaluated": 0}
    engines, portion, network_call = [], network.PORTION, network.Packed.__call__
    network.PORTION = 150  # tokens: several portions to share out

    def counted(self, batch):
        seen["evaluated"] += not self.model.training and len(batch.labels)
        return network_call(self, batch)

    network.Packed.__call__ = counted

    def engine_of(setup, *rest):
        if setup.machine.processes.rank:
            torch.nn.init.zeros_(setup.model.head.linear.weight)  # where they start, the first one says
        engine = real(setup, *rest)
        engines.append(engine)

        def step(batches, count):
            before = engine.sums().clone()
            seen["empty"] += not batches
            seen["seed"] = torch.initial_seed()
            engine.step(batches, count)
            after = engine.sums() - before
            seen["losses"][-1].append((after[0] / after[2]).item())

        return replace(engine, step=step)

    loop.engine_of = engine_of
    with joined() as processes:
        for config in configs:
            seen["losses"].append([])
            path = run.train(config)
            tensors = engines[-1].state_dict()
            seen["hashes"].append(hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest())
        seen["reports"], rows = evaluate_run(path)
        seen["rows"] = len(list(rows))
        checks(processes, configs[0])
    loop.engine_of, network.PORTION, network.Packed.__call__ = real, portion, network_call
    (folder / f"{processes.rank}.json").write_text(json.dumps(seen))


def checks(processes, config):
    """What needs processes and no run."""
    world, rank = processes.world, processes.rank
    assert here().most(rank, -rank) == [world - 1, 0]
    assert processes.join(list(processes.share(range(7)))) == list(range(7))
    assert processes.join(list(processes.share(range(1)))) == [0]
    assert processes.once(lambda: rank + 5) == 5
    small, double = torch.tensor([1.0 if rank else 2**-9]).bfloat16(), torch.ones(2, dtype=torch.float64)
    added = processes.add([small, double])
    assert added[0].item() == world - 1 + (2**-9)  # not a number of bfloat16
    assert added[1].tolist() == [world] * 2
    for work, message in (
        (lambda: processes.alike(rank == 1, "numbers"), "processes . and . have different numbers; start all of them"),
        (lambda: processes.once(refuse, f"by {rank}"), "by 0"),
        (lambda: processes.each(refuse_in_last, processes), f"by {world - 1}"),
        (
            lambda: loop.plan_of(
                prepare(config, str, head=torch.nn.Sequential(torch.nn.BatchNorm1d(24), torch.nn.Linear(24, 2)))
            ),
            "BatchNorm, .* in one process",
        ),
    ):
        if world > 1:
            with pytest.raises(InputError, match=message):
                work()


def refuse(text):
    raise InputError(text)


def refuse_in_last(processes):
    if processes.rank == processes.world - 1:
        refuse(f"by {processes.rank}")


def train(config, rank=None, number=None, look=0):
    """Train; process `rank` gets the signal `number` before it takes its look number `look`."""
    seen, real = 0, Keeper.look

    def signalled(self, cursor, save):
        nonlocal seen
        seen += 1
        if seen == look and os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), number)
        real(self, cursor, save)

    Keeper.look = signalled
    try:
        run.train(config)
    finally:
        Keeper.look = real


def command(*arguments):
    """train.py's own way in."""
    import train as script

    script.main(list(arguments))


def resume(path):
    run.resume(path, force=True)


def overflow(config, rank):
    """Train where the gradient of one process is infinite."""
    real = loop.engine_of

    def engine_of(setup, *rest):
        engine = real(setup, *rest)
        if here().rank == rank:
            engine.trained.head.linear.weight.register_hook(lambda gradient: gradient * torch.inf)
        return engine

    loop.engine_of = engine_of
    run.train(config)
