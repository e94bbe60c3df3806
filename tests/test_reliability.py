"""What a file can do to the one who reads it: nothing in it is executed, and it takes no more memory than is stated."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

SOURCES = [*sorted((ROOT / "minibert").rglob("*.py")), ROOT / "train.py", ROOT / "eval.py"]
# Modules that execute what they read, or hold pickles. build_motion, which nothing imports, made the bundled data of a
# package that has one: every name in it but numpy's and stubs is refused.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "pandas", "runpy", "code"}
EXCEPTION = "build_motion.py"
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "numpy.fromfile"}


def unsafe(text):
    """What of a source could execute a file that it reads."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in UNSAFE)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS | METHODS:
                yield name
            if name in ("np.load", "numpy.load") and "allow_pickle=False" not in ast.unparse(node):
                yield name


def test_nothing_in_the_package_reads_a_pickle_or_runs_what_it_reads():
    found = {(path.name, what) for path in SOURCES for what in unsafe(path.read_text(encoding="utf-8"))}
    assert found == {(EXCEPTION, "import pickle")}
    importers = [path for path in SOURCES if "build_motion" in path.read_text() and path.name != EXCEPTION]
    assert importers == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)",
     "eval('1')", "exec(text)", "import yaml, os"],
)  # fmt: skip
def test_the_search_sees(line):
    assert list(unsafe(line))


def test_the_search_leaves_alone():
    assert not list(unsafe("model.eval(); np.load(p, allow_pickle=False); re.compile('x'); import json"))


MEMORY = """
import json, os, resource, struct, sys, zipfile
from pathlib import Path
import numpy as np, torch
from minibert.checkpoint import load_encoder, read_config
from minibert.data.table import read_texts
from minibert.data.windows import read_windows
from minibert.errors import InputError
from minibert.tokenizer import Tokenizer

folder, tiny = Path(sys.argv[1]), Path(sys.argv[2])
os.chdir(folder)
load_encoder(tiny)  # what is imported late is imported now
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)
good = json.loads((tiny / "config.json").read_text())

def config(**changes):
    Path("config.json").write_text(json.dumps(good | changes))
    Path("model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    return load_encoder

def weights(length, header=b"{}"):
    config()
    Path("model.safetensors").write_bytes(struct.pack("<Q", length) + header.ljust(20_000))
    return load_encoder

def array(header):
    with zipfile.ZipFile("a.npz", "w") as file:
        text = header.encode() + b"\\n"
        for name in "xy":
            file.writestr(f"{name}.npy", b"\\x93NUMPY\\x01\\0" + struct.pack("<H", len(text)) + text + bytes(64))
    return lambda folder: read_windows(folder / "a.npz")

def bomb():
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", bytes(2**20))
        file.infolist()[0].file_size = 5 * 2**30  # what it says, and what numpy would make room for
    return lambda folder: read_windows(folder / "a.npz")

def words(**changes):
    tokenizer = json.loads(Tokenizer.load(tiny).to_json()) | changes
    Path("tokenizer.json").write_text(json.dumps(tokenizer))
    return lambda folder: Tokenizer.load(folder).encode(["a" * 64])

def lines(text):
    Path("a.jsonl").write_text(text)
    return lambda folder: read_texts(folder / "a.jsonl")

grow = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60}
CASES = {
    "wide": lambda: config(hidden_size=2**24), "deep": lambda: config(num_hidden_layers=10**7),
    "many words": lambda: config(vocab_size=10**9), "long": lambda: config(max_position_embeddings=10**12),
    "more than its file": lambda: config(vocab_size=10**7), "beyond 64 bits": lambda: config(intermediate_size=10**30),
    "a header of 2 ** 62 bytes": lambda: weights(2**62), "of 90 MB": lambda: weights(90_000_000),
    "a tensor of 2 ** 60": lambda: weights(19_992, json.dumps({"embeddings.word_embeddings.weight": {
        "dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}}).encode()),
    "an array of 8 TB": lambda: array("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12, 1, 1), }"),
    "of 2 GB": lambda: array("{'descr': '<f8', 'fortran_order': False, 'shape': (250000000, 1, 1), }"),
    "a packed 5 GB": bomb, "a tokenizer that doubles": lambda: words(normalizer=grow),
    "brackets": lambda: lines("[" * 10**6),
}
for name in CASES:
    try:
        CASES[name]()(folder)
        print("READ", name)
    except InputError as error:
        assert len(str(error)) < 2000, name
    except BaseException as error:
        print("BROKE", name, type(error).__name__, error)
print("done", len(CASES), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory is used")
def test_hostile_files_take_little_memory(tiny, tmp_path):
    """Each is refused in one InputError with 256 MB to take and no more, before memory is asked for or when it is."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), str(tiny)], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert (done.stdout, done.stderr.splitlines()[-1:]) == ("", ["done 14"])
