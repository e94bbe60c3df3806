"""minibert/files.py: a file is the old one or the new one, never half of either."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from minibert.errors import InputError
from minibert.files import check_output, read_json, replace_file, sha256, write_json, write_output


def test_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    replace_file(path, lambda beside: beside.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_yet(tmp_path):
    replace_file(tmp_path / "a.txt", lambda beside: beside.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(beside):
        assert beside.parent == path.parent  # a rename inside one folder is one step
        assert beside != path
        beside.write_text("new")
        assert path.read_text() == "old"

    replace_file(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", ["old", None])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, content):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)

    def write(beside):
        beside.write_text("half of the n")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        replace_file(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == ([("a.txt", "old")] if content else [])


def test_a_writer_that_writes_nothing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_file(path, lambda beside: None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_power_cut_finds_content_behind_a_name_and_the_name_itself(tmp_path, monkeypatch):
    """No test can cut the power; what the system is asked for is: the file on the disk, its name, the folder."""
    seen, fsync, replace = [], os.fsync, os.replace

    def flush(handle):
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("name"), replace(*names)))
    replace_file(tmp_path / "a.txt", lambda beside: beside.write_text("new"))
    assert seen == ["3 bytes", "name", "folder"]


def test_json_round_trip(tmp_path):
    content = {"labels": ["日本", "é"], "n": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "日本" in text
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_read_json_says_which_file_is_missing_and_where(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json in .*"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"a: 1", b'{"a": "\xff"}'])
def test_read_json_says_which_file_is_not_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        read_json(tmp_path / "config.json")


def test_sha256_of_known_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "nothing").write_bytes(b"")
    assert sha256(tmp_path / "nothing") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_rights_that_new_files_have(tmp_path, mask):
    before = os.umask(mask)
    try:
        replace_file(tmp_path / "a", lambda beside: save_file({"a": np.zeros(1)}, beside))
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_a_full_disk_is_an_os_error(tmp_path):
    def write(beside):
        raise SafetensorError("No space left on device")

    with pytest.raises(OSError, match="a cannot be written: No space left"):
        replace_file(tmp_path / "a", write)


# What a user names: a file, a link, a pipe, a device


def test_output_goes_through_a_link_and_leaves_it(tmp_path):
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "a.csv", tmp_path / "link.csv"
    for content in (None, "old"):  # a link to nothing is a link, too
        if content is not None:
            target.write_text(content)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_output(link, lambda beside: beside.write_text("new"))
        assert link.is_symlink()
        assert target.read_text() == "new"
        assert [path.name for path in (tmp_path / "other").iterdir()] == ["a.csv"]


def test_output_goes_into_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_output(tmp_path / "pipe", lambda beside: beside.write_text("new"))
    assert reader.communicate(timeout=20)[0] == b"new"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("to", ["a pipe", "a file"])
def test_output_to_dev_stdout_stands_between_what_else_is_printed(tmp_path, to):
    program = (
        "import sys; from pathlib import Path; from minibert.files import write_output; print('before', flush=True);"
        "write_output(Path('/dev/stdout'), lambda beside: beside.write_text('new\\n')); print('behind')"
    )
    with open(tmp_path / "out", "wb") as file:
        done = subprocess.run([sys.executable, "-c", program], stdout=file if to == "a file" else -1, check=True)
    said = done.stdout if to == "a pipe" else (tmp_path / "out").read_bytes()
    assert said.decode().split() == ["before", "new", "behind"]
    assert Path("/dev/stdout").is_symlink()


def test_output_that_cannot_be_written_is_told_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"--out .*no/such/a\.csv: there is no folder .*no/such"):
        check_output(tmp_path / "no" / "such" / "a.csv", "--out")
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_output(tmp_path, "--out")
    (tmp_path / "dangling").symlink_to(tmp_path / "no" / "a.csv")
    with pytest.raises(InputError, match="there is no folder"):
        check_output(tmp_path / "dangling", "--out")
    for good in (tmp_path / "a.csv", Path("a.csv"), Path("/dev/stdout"), Path("/dev/null")):
        check_output(good, "--out")
    (tmp_path / "shut").mkdir(0o500)
    if not os.access(tmp_path / "shut", os.W_OK):  # root may write everywhere
        with pytest.raises(InputError, match="may not be written"):
            check_output(tmp_path / "shut" / "a.csv", "--out")
