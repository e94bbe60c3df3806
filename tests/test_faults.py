"""What the system does to a run: one line, exit code 2, and the last good snapshot stands."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from runs import end_of, next_command


@pytest.fixture(scope="module")
def whole(flags, obey, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert obey([*flags, "--out", str(path)], path)[0] == 0
    return end_of(path)


def is_one_line(code, said, *words):
    lines = [line for line in said.splitlines() if line.strip()]
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("train.py: error: ")
    for word in words:
        assert word in lines[0]


def begun(flags, obey, path):
    """A run that was killed behind a snapshot."""
    obey([*flags, "--out", str(path)], path, at=75)
    return (path / "state" / "state.safetensors").read_bytes()


@pytest.mark.parametrize("size", [100, 10_000, 100_000])
def test_a_disk_that_takes_no_more(flags, obey, whole, tmp_path, size):
    """The system refuses to let a file grow beyond `size`: that of config.json, of the tokenizer, of weights."""
    path = tmp_path / "run"
    code, said = obey([*flags, "--out", str(path)], path, at=1, act="limit", limits={"RLIMIT_FSIZE": size})
    is_one_line(code, said, "File too large", *["goes on from its last snapshot"] * (size > 100))
    assert obey(next_command(flags, path), path)[0] == 0
    assert end_of(path) == whole


def test_a_disk_that_takes_no_more_later_on(flags, obey, whole, tmp_path):
    path = tmp_path / "run"
    before = begun(flags, obey, path)
    code, said = obey(next_command(flags, path), path, at=1, act="limit", limits={"RLIMIT_FSIZE": 100_000})
    is_one_line(code, said, "File too large", f"python train.py --resume {path} goes on from its last snapshot")
    assert (path / "state" / "state.safetensors").read_bytes() == before
    assert obey(next_command(flags, path), path)[0] == 0
    assert end_of(path) == whole


@contextmanager
def small_disk(path, size):
    """A file system of its own, of `size` bytes."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"nothing may be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
def test_a_full_disk(flags, obey, whole, tmp_path):
    """Of every size, until there is room for the whole run."""
    sizes, disk = 0, tmp_path / "disk"
    for kilobytes in range(16, 2000, 48):
        with small_disk(disk, kilobytes << 10):
            path = disk / "run"
            code, said = obey([*flags, "--out", str(path)], path)
            if code:
                is_one_line(code, said, "No space left on device")
                subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
                assert obey(next_command(flags, path), path)[0] == 0
            assert end_of(path) == whole
            sizes += 1
        disk.rmdir()
        if not code:
            break
    print(f"{sizes} sizes, up to {kilobytes} kB")
    assert sizes > 5


@contextmanager
def read_only(path):
    """Root writes whatever the mode says, but not what is immutable."""
    if os.geteuid():
        path.chmod(0o555)
    elif shutil.which("chattr") is None or subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable folders")
    try:
        yield
    finally:
        _ = path.chmod(0o755) if os.geteuid() else subprocess.run(["chattr", "-i", path], check=True)


def test_a_folder_that_may_not_be_written(flags, obey, whole, tmp_path):
    parent = tmp_path / "locked"
    parent.mkdir()
    with read_only(parent):
        is_one_line(*obey([*flags, "--out", str(parent / "run")], parent / "run"), str(parent / "run"))
    path = tmp_path / "run"
    before = begun(flags, obey, path)
    with read_only(path), read_only(path / "state"):
        is_one_line(*obey(next_command(flags, path), path), "goes on from its last snapshot")
        assert (path / "state" / "state.safetensors").read_bytes() == before
    assert obey(next_command(flags, path), path)[0] == 0
    assert end_of(path) == whole


@pytest.mark.parametrize("at", [60, 75, 90])
def test_a_folder_that_is_deleted_meanwhile(flags, obey, tmp_path, at):
    path = tmp_path / "run"
    is_one_line(*obey([*flags, "--out", str(path)], path, at=at, act="delete"), f"{path} is gone: deleted or moved")
    assert not (path / "config.json").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says how much memory is in use")
def test_too_little_memory(flags, obey, whole, tmp_path):
    """The system gives no more than 128 MB: texts of 64 tokens, 480 at a time, take more.

    In float32: of bf16 torch may first warn that it tries another product.
    """
    data, path = tmp_path / "long.csv", tmp_path / "run"
    data.write_text("text,label\n" + "".join(f"{'1 2 ' * 40},{i % 2}\n" for i in range(600)))
    more = ["--data", str(data), "--batch-size", "480", "--epochs", "1", "--precision", "fp32"]
    code, said = obey([*flags, *more, "--out", str(path)], path, at=1, act="limit", limits={"RLIMIT_AS": 128 << 20})
    is_one_line(code, said, "out of memory with 480 examples of up to 64 tokens a pass", "lower --batch-size")


def test_two_processes_on_one_folder(flags, obey, whole, tmp_path):
    """A run that was killed leaves a lock that nobody holds; one that is held keeps others out."""
    from minibert.files import locked

    path = tmp_path / "run"
    begun(flags, obey, path)
    assert (path / "lock").exists()
    with locked(path / "lock"):
        is_one_line(*obey(next_command(flags, path), path), "another process is training", "wait for it, or stop it")
        is_one_line(*obey([*flags, "--out", str(path)], path), "already holds a run", f"--resume {path}")
    assert obey(next_command(flags, path), path)[0] == 0
    assert end_of(path) == whole
