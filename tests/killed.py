"""train.py, killed at a chosen moment: python tests/killed.py, with orders on standard input.

An order is a line of JSON: `arguments` of train.py, the run's `folder`, and the moment. A fork, which has imported
torch already, obeys it. It dies before operation `at` on the files inside the folder, or `after` seconds (null: never).
The reply is its exit code and what it wrote to standard error.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import minibert.training.loop
import train
from minibert.commands import guarded

CHANGES = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "fcntl.flock"}


def kill_before(operation: int, folder: str) -> None:
    """SIGKILL before the so-manyth operation on what lies in `folder`."""
    done = 0

    def look(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in CHANGES and (event == "fcntl.flock" or str(arguments[0]).startswith(folder)):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def obey(order: dict) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            if order["at"] is not None:
                kill_before(order["at"], order["folder"])
            sys.argv = ["train.py", *order["arguments"]]
            os._exit(guarded(train.main))
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


assert minibert.training.loop  # all that a run imports is there before the first fork
for line in sys.stdin:
    print(json.dumps(obey(json.loads(line))), flush=True)
