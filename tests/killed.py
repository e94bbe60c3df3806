"""train.py, in trouble at a chosen moment: python tests/killed.py, with orders on standard input.

An order is a line of JSON: `arguments` of train.py, the run's `folder`, and the trouble. A fork, which has torch
already, obeys it. Before operation `at` on the files inside the folder it meets its `act`: it is killed, the folder is
deleted, or there are `limits` from then on, such as the largest size of a file; or it is killed `after` seconds. The
reply is its exit code and what it wrote to standard error.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import minibert.training.loop
import train
from minibert.commands import guarded

CHANGES = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "fcntl.flock"}


def before(operation: int, folder: str, act: Callable[[], None]) -> None:
    """Do `act` before the so-manyth operation on what lies in `folder`."""
    done = 0

    def look(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in CHANGES and (event == "fcntl.flock" or str(arguments[0]).startswith(folder)):
            done += 1
            if done == operation:
                act()

    sys.addaudithook(look)


def limit(sizes: dict[str, int]) -> None:
    """Of memory, so much more than there is in use; else so much."""
    for name, size in sizes.items():
        if name == "RLIMIT_AS":
            size += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, name), (size, size))


def obey(order: dict) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["train.py", *order["arguments"]]
            acts = {
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "delete": lambda: shutil.rmtree(order["folder"]),
                "limit": lambda: limit(order["limits"]),
            }
            if "at" in order:
                before(order["at"], order["folder"], acts[order.get("act", "kill")])
            os._exit(guarded(train.main))
        if "after" in order:
            time.sleep(order["after"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


assert minibert.training.loop  # all that a run imports is there before the first fork
for line in sys.stdin:
    print(json.dumps(obey(json.loads(line))), flush=True)
