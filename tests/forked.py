"""Commands as processes of their own that need not import torch: they are forked from a server that has."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["minibert.classifier", "minibert.lab.probe"])


def run(*words, input=b"", env=None, timeout=120):
    """What `python WORDS` prints, and how it ends, started in the checkout. WORDS: a file or -m and a module, and what
    these are given.
    """
    environment = dict(os.environ if env is None else env)
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("in", "out", "err")]
        Path(files[0]).write_bytes(input)
        process = CONTEXT.Process(target=begin, args=([str(word) for word in words], environment, files))
        process.start()
        process.join(timeout)
        late = process.is_alive()
        process.kill()
        out, err = (Path(file).read_bytes().decode() for file in files[1:])
    assert not late, (words, out, err)
    return CompletedProcess(words, process.exitcode, out, err)


def begin(words, environment, files):
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
