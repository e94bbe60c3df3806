"""train.py, eval.py and python -m minibert as a user runs them: whole processes, their output and exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
from conftest import ROOT

import minibert
import train
from minibert.__main__ import main
from minibert.config import TrainConfig
from minibert.training import folder as run_folder
from minibert.training import run as running


def run(*words, check=True, **more):
    done = forked.run(*words, **more)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_anew(*words, check=True, **more):
    """With an interpreter of its own."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, **more)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    lines = [f"{i % 50 + 50 * (i % 2)} {(3 * i) % 50 + 50 * (i % 2)},{'odd' if i % 2 else 'even'}" for i in range(100)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def test_help_does_not_wait_for_torch():
    start = time.monotonic()
    shown = run_anew("-X", "importtime", "train.py", "--help")
    assert time.monotonic() - start < 2  # half a second, on a machine that does something else besides
    assert "torch" not in shown.stderr
    flags = set(re.findall(r"^  (--[a-z-]+)", shown.stdout, re.MULTILINE))
    assert {"--init", "--lr", "--warmup", "--resume"} <= flags
    assert len(flags) <= 45


def test_without_a_verb_all_are_listed():
    shown = run("-m", "minibert", check=False)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert all(f"\n    {verb} " in shown.stderr for verb in ("predict", "ablate", "report", "fetch"))
    assert all(len(line) <= 80 for line in shown.stderr.splitlines())
    assert run("-m", "minibert", "--version").stdout == f"minibert {minibert.__version__}\n"


@pytest.mark.parametrize(
    "verb", ["predict", "explain", "ablate", "fetch", "parity", "probe", "plot", "bench", "report"]
)
def test_help_fits_80_columns(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    presets = sorted(path.stem for path in (ROOT / "minibert/lab/ablation/presets").glob("*.toml"))
    assert verb != "ablate" or all(re.search(rf"\b{preset}\b", shown) for preset in presets)


def test_lines_reach_a_pipe_at_once():
    program = "import sys; from minibert.commands import guarded; guarded(lambda _: print(sys.stdout.line_buffering))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert run_anew("-c", program, env=environment).stdout == "True\n"


def test_from_training_to_the_report(tiny, texts, tmp_path):
    out = str(tmp_path / "run")
    trained = run(
        "train.py", "--data", str(texts), "--model", str(tiny), "--epochs", "2", "--lr", "3e-3", "--batch-size", "4",
        "--out", out,
    )  # fmt: skip
    assert " ".join(trained.stdout.split()).endswith(f"next: python eval.py {out}")  # folded, where the path is long
    assert len(re.findall(r"^ +[12] +\d\.\d{3} +\d\.\d{3} ", trained.stdout, re.MULTILINE)) == 2
    shown = run("eval.py", out, "--predictions", str(tmp_path / "p.csv")).stdout
    # A path has no place to be folded at.
    assert all(len(line) <= 80 or "/" in line for line in (trained.stdout + shown).splitlines())
    assert re.search(r"^test +accuracy \d\.\d{3}", shown, re.MULTILINE)
    assert len(re.findall("^  (learning|not yet): the best constant answer has loss 0.693", shown, re.MULTILINE)) == 2
    as_json = json.loads(run("eval.py", out, "--json").stdout)
    assert set(as_json) == {"val", "test"}
    assert {"accuracy", "loss", "macro_f1", "majority", "verdict"} <= set(as_json["test"])
    assert (tmp_path / "p.csv").read_text().count("\n") == 21
    lost = run("eval.py", out, "--predictions", str(tmp_path / "no" / "p.csv"), check=False)
    assert (lost.returncode, lost.stdout) == (2, "")  # before it evaluates
    assert "there is no folder" in lost.stderr
    again = run("train.py", "--data", str(texts), "--model", str(tiny), "--out", out, check=False)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr


def test_quiet_says_the_last_lines_alone(tiny, texts, tmp_path, capsys, monkeypatch):
    flags = ["--data", str(texts), "--model", str(tiny), "--max-examples", "20", "--batch-size", "8", "--quiet"]
    train.main([*flags, "--out", str(tmp_path / "run"), "--epochs", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("best: epoch ")
    assert "next: python eval.py" in " ".join(lines[1:])
    assert not any("minibert on" in line or "epochs of" in line for line in lines)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "end", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            train.main([*flags, "--out", str(tmp_path / "stopped"), "--epochs", "1"])
    capsys.readouterr()
    train.main(["--resume", str(tmp_path / "stopped"), "--quiet"])
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].startswith("best: epoch 1, ")
    assert not shown.err


def test_ctrl_c_says_how_to_go_on_and_nothing_else(tiny, texts, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--data", str(texts), "--model", str(tiny), "--epochs", "999", "--out", str(out)],
        cwd=ROOT, stdout=-1, stderr=-1, text=True,
    )  # fmt: skip
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 100
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].strip().splitlines()[-1:]
    assert process.returncode == 130
    # in the midst of a save, it is the last snapshot
    assert re.fullmatch(
        rf"train.py: stopped; python train.py --resume {out} goes on (behind this step|from its last snapshot)", said[0]
    )


def test_ctrl_c_inside_an_import_ends_the_process_at_once(tmp_path):
    """numpy and torch make other errors of it, or none."""
    (tmp_path / "slow.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    program = "import sys; from minibert.commands import guarded; sys.exit(guarded(lambda _: __import__('slow')))"
    done = run_anew("-c", program, check=False, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    assert (done.returncode, done.stderr) == (130, "\n-c: stopped\n")


@pytest.mark.parametrize("command", [["train.py"], ["eval.py"], ["-m", "minibert"]])
def test_ctrl_c_before_the_first_import_of_a_command_is_no_traceback(tmp_path, command):
    (tmp_path / "argparse.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = run_anew(*command, check=False, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_reader_that_leaves_a_run_is_told_how_it_goes_on(tiny, texts, tmp_path):
    out = tmp_path / "a run"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--data", str(texts), "--model", str(tiny), "--epochs", "99", "--out", str(out)],
        cwd=ROOT, stdout=-1, stderr=-1, text=True,
    )  # fmt: skip
    while not process.stdout.readline().startswith("epoch"):
        pass
    process.stdout.close()
    said = process.stderr.read().strip()
    assert process.wait() == 141
    assert said == (
        "train.py: stopped; nobody reads the output any more; python train.py --resume"
        f" {shlex.quote(str(out))} goes on from its last snapshot"
    )


def test_a_reader_that_leaves_ends_a_command_without_a_word():
    program = "import sys; from minibert.commands import guarded; sys.exit(guarded(lambda _: print('x\\n' * 99999)))"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_errors_hold_nothing_that_moves_a_cursor():
    done = run("eval.py", "runs/\x1b[2J\nnowhere", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(r"eval.py: error: runs/\x1b[2J\nnowhere: no such folder")


def test_names_that_a_terminal_lacks_are_escaped(tiny, tmp_path):
    data = tmp_path / "t.csv"
    names = ("bébé", "步行")
    data.write_text("text,label\n" + "".join(f"{i},{names[i % 2]}\n" for i in range(40)), encoding="utf-8")
    path = running.train(TrainConfig(data=str(data), model=str(tiny), epochs=1, out=str(tmp_path / "run")), str)
    ascii = {"env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    assert r"b\xe9b\xe9" in run("eval.py", str(path), **ascii).stdout
    as_json = json.loads(run("eval.py", str(path), "--json", **ascii).stdout)
    assert set(as_json["test"]["classes"]) == set(names)


def test_motion_trains_from_either_start(tiny, tmp_path):
    for init in ("pretrained", "random"):
        out = str(tmp_path / init)
        shown = run(
            "train.py", "--init", init, "--model", str(tiny), "--epochs", "1", "--batch-size", "64", "--out", out
        ).stdout
        assert "3,851 / 752 / 806" in shown
        assert f"start: {init}" in shown


def test_own_windows(tiny, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 20, 2)) + np.arange(60)[:, None, None] % 3
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(60) % 3)
    for encoding in ("levels", "grid", "decimals"):
        run(
            "train.py", "--data", str(tmp_path / "mine.npz"), "--model", str(tiny), "--epochs", "1", "--steps", "5",
            "--encoding", encoding, "--batch-size", "8", "--out", str(tmp_path / encoding),
        )  # fmt: skip


def test_a_killed_process_goes_on(tiny, texts, tmp_path):
    flags = ["--data", str(texts), "--model", str(tiny), "--epochs", "15", "--batch-size", "4", "--lr", "1e-3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("train.py", *flags, "--out", str(whole))
    process = subprocess.Popen([sys.executable, "train.py", *flags, "--out", str(killed)], cwd=ROOT, stdout=-1)
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metrics.read_text().count("\n") < 15
    assert "resuming after epoch" in run("train.py", "--resume", str(killed)).stdout
    rows = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (whole, killed)
    ]
    assert [row["val_loss"] for row in rows[0]] == [row["val_loss"] for row in rows[1]]
    one, two = ((path / "model" / "model.safetensors").read_bytes() for path in (whole, killed))
    assert one == two


def test_two_processes_come_to_the_same_bits(tiny, texts, tmp_path):
    """Whatever moves from one to the next: hashes, addresses, what the cache holds, the folder."""
    ends = []
    for name in "ab":
        path = tmp_path / name
        moved = {"PYTHONHASHSEED": str(ord(name)), "MINIBERT_CACHE": str(tmp_path / f"cache-{name}")}
        flags = ["--data", str(texts), "--model", str(tiny), "--init", "random", "--epochs", "1", "--layers"]
        run_anew("train.py", *flags, "--out", str(path), env=os.environ | moved)
        row = json.loads((path / "metrics.jsonl").read_text())
        files = [(path / name).read_bytes() for name in ("model/model.safetensors", "manifest.json", "start.json")]
        ends.append((files, {key: value for key, value in row.items() if "second" not in key}))
    assert ends[0] == ends[1]


BAD = {
    "lr too high": (["--lr", "2"], "--lr 2.0: it must be a number above 0 and at most 1"),
    "lr zero": (["--lr", "0"], "--lr"),
    "lr not a number": (["--lr", "nan"], "--lr"),
    "warmup negative": (["--warmup", "-0.1"], "--warmup"),
    "warmup between": (["--warmup", "1.5"], "a fraction below 1 or a whole number"),
    "missing file": (["--data", "nowhere.csv"], "no such file"),
    "unknown channel": (["--channels", "acc-q"], "no channel 'acc-q'"),
    "unknown scheme": (["--init", "xavierr"], "known: pretrained, random"),
    "layer out of bounds": (["--init", "reinit:3"], "layers 1 to 2; write reinit:K with K from 1 to 2"),
    "epochs of self-mlm": (["--init", "self-mlm:0"], "write self-mlm:E with a whole number of epochs from 1"),
    "no such model": (["--model", "./nowhere"], "no such folder"),
    "dropout": (["--dropout", "0.1,0.2"], "HIDDEN,ATTENTION,HEAD"),
    "stop": (["--stop-on-collapse", "-1"], "--stop-on-collapse -1: it must be a whole number of at least 0"),
    "seed": (["--seed", "x"], "--seed"),
    "choice": (["--pool", "max"], "--pool max: it must be one of auto, cls, mean"),
    "resume and more": (["--resume", "runs/x", "--epochs", "3"], "leave out --epochs"),
    "force alone": (["--force"], "--force goes with --resume"),
    "nonfinite": (["--on-nonfinite", "skip:0"], "stop, skip, or skip:N with a whole number N from 1"),
    "resume nowhere": (["--resume", "runs/nowhere"], "no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_one_line_and_code_2(case, tiny, tmp_path):
    flags, words = BAD[case]
    model = [] if "--model" in flags or "--resume" in flags else ["--model", str(tiny)]
    out = [] if "--resume" in flags else ["--out", str(tmp_path / "run")]
    done = run("train.py", *model, *out, *flags, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_bad_checkpoints_are_one_line(tiny, tmp_path):
    """Of the many in test_checkpoint.py, two through the whole command."""
    import shutil

    cut, words = shutil.copytree(tiny, tmp_path / "cut"), shutil.copytree(tiny, tmp_path / "words")
    os.truncate(cut / "model.safetensors", 5000)
    (words / "vocab.txt").write_text((words / "vocab.txt").read_text() + "more\n")
    for folder, said in ((cut, "not a whole safetensors file"), (words, "the tokenizer has 170 words, the word emb")):
        done = run("train.py", "--model", str(folder), "--out", str(tmp_path / "run"), check=False)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert said in done.stderr
        assert not (tmp_path / "run").exists()


def test_eval_of_nothing():
    done = run("eval.py", "runs/nowhere", check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
