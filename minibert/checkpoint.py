"""Checkpoints: published names in the file, ours in the model, one table between.

A checkpoint is a folder with config.json and model.safetensors. Published files differ: with or without
the prefix `bert.`, LayerNorm's tensors called gamma/beta or weight/bias, float32, float16 or bfloat16.
All of them load; everything is float32 in memory. What a file lacks, has too much, or holds in another
shape is an error that names it; what is known and not needed (`cls.*`, `position_ids`) is listed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minibert import sources
from minibert.errors import InputError
from minibert.files import read_json, replace_file, write_json
from minibert.heads import HEADS, name_of
from minibert.model import Bert, BertClassifier, BertConfig, ClassificationHead

log = logging.getLogger("minibert")

# Ours -> published, each with .weight and .bias where it has them; {i} is the layer. Several published
# names: concatenated along the first dimension.
NAMES = {
    "embeddings.word": ["embeddings.word_embeddings"],
    "embeddings.position": ["embeddings.position_embeddings"],
    "embeddings.token_type": ["embeddings.token_type_embeddings"],
    "embeddings.norm": ["embeddings.LayerNorm"],
    "layers.{i}.attention.qkv": [
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ],
    "layers.{i}.attention.output": ["encoder.layer.{i}.attention.output.dense"],
    "layers.{i}.attention_norm": ["encoder.layer.{i}.attention.output.LayerNorm"],
    "layers.{i}.feed_forward.input": ["encoder.layer.{i}.intermediate.dense"],
    "layers.{i}.feed_forward.output": ["encoder.layer.{i}.output.dense"],
    "layers.{i}.feed_forward_norm": ["encoder.layer.{i}.output.LayerNorm"],
    "pooler.dense": ["pooler.dense"],
    # Not BERT's: the gates and the last LayerNorm of other layers (model.py). No published file has them.
    "layers.{i}.attention_gate": ["encoder.layer.{i}.attention.output.gate"],
    "layers.{i}.feed_forward_gate": ["encoder.layer.{i}.output.gate"],
    "norm": ["encoder.LayerNorm"],
}

FLOATS = ("F32", "F16", "BF16", "F64")  # as a safetensors file calls the types that weights may have

# What a config.json may ask for: 8.6 GB in float32, four times that while it trains. BERT-large has 335 million.
MOST_WEIGHTS, MOST_LAYERS, MOST_CLASSES = 2**31, 1024, 4096

# Published tensors that a classifier has no use for: the pretraining heads, a list of 0..511, and the
# pooler where pool="mean" or "tokens" has none.
UNUSED = re.compile(r"cls\..*|embeddings\.position_ids|pooler\.dense\.(weight|bias)")


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors: published names not used, our names not in the file."""

    unused: tuple[str, ...]
    drawn: tuple[str, ...]


def published_names(model: Bert | BertClassifier) -> dict[str, list[str]]:
    """All of the model's names, each with its published names, without prefix.

    `layers.0.attention.qkv.bias` has three. The head's are `classifier.*`: of the default head `classifier.weight` and
    `classifier.bias`, as BERT's; of any other what it calls them itself, so that no two of them fall together.
    """
    own_head = has_own_head(model)
    names = {}
    for ours in model.state_dict():
        if ours.startswith("head."):
            names[ours] = ["classifier." + ours.removeprefix("head." if own_head else "head.linear.")]
            continue
        stem, _, leaf = ours.removeprefix("bert.").rpartition(".")
        layer = re.match(r"layers\.(\d+)\.", stem)
        key = stem if layer is None else stem.replace(layer[0], "layers.{i}.", 1)
        names[ours] = [f"{name.format(i=layer and layer[1])}.{leaf}" for name in NAMES[key]]
    return names


def has_own_head(model: Bert | BertClassifier) -> bool:
    """Whether there is a head, and another than the default one."""
    return isinstance(model, BertClassifier) and type(model.head) is not ClassificationHead


def normal_name(name: str) -> str:
    """A name as some file spells it -> the table's spelling: no prefix, weight and bias for gamma and beta."""
    if name.startswith("classifier."):  # a head's own names, whatever they are
        return name
    name = name.removeprefix("bert.")
    return re.sub(r"(LayerNorm\.)(gamma|beta)$", lambda m: m[1] + {"gamma": "weight", "beta": "bias"}[m[2]], name)


def read_config(path: str | Path) -> BertConfig:
    """The network's numbers from PATH/config.json.

    Raises:
        InputError: no such folder or file, not JSON, or a network that is not this BERT.
    """
    if not Path(path).is_dir():
        raise InputError(f"{path} is not a folder; a checkpoint is a folder with config.json and model.safetensors")
    file_path = Path(path) / "config.json"
    published = read_json(file_path)
    if not isinstance(published, dict):
        raise InputError(f"{file_path} is no object with the network's numbers")
    try:
        config = BertConfig.from_dict(published)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file_path}: {error}") from None
    for name, value, most in (
        ("layers", config.num_hidden_layers, MOST_LAYERS),
        ("weights", config.num_weights, MOST_WEIGHTS),
        ("classes", config.num_labels, MOST_CLASSES),
    ):
        if value > most:
            raise InputError(f"{file_path} asks for {value:,} {name}; {most:,} are the most")
    return config


def check_room(config: BertConfig, path: str | Path) -> None:
    """To be asked before a network is built whose weights come from PATH/model.safetensors.

    Raises:
        InputError: the file is smaller than one byte a weight.
    """
    file_path = Path(path) / "model.safetensors"
    if file_path.is_file() and file_path.stat().st_size < config.num_weights:
        raise InputError(
            f"{file_path} is not a whole safetensors file: it has {file_path.stat().st_size:,} bytes for the"
            f" {config.num_weights:,} weights that its config.json asks for; fetch or copy it again"
        )


def load_encoder(path: str | Path, pool: str = "cls") -> Bert:
    """A checkpoint -> `Bert`, in eval mode.

    Args:
        path: a folder with config.json and model.safetensors, or a name, as --model takes it.

    Raises:
        InputError: it cannot be had, is truncated, or does not hold exactly this network's tensors.
    """
    path = sources.folder_of(path)
    config = read_config(path)
    check_room(config, path)
    model = Bert(replace(config, pool=pool))
    load_weights(model, path)
    return model.eval()


def load_classifier(path: str | Path, head: nn.Module | None = None, pool: str | None = None) -> BertClassifier:
    """As `load_encoder`, with a head: the file's own where it has one, else newly drawn, which is logged once.

    Args:
        head: a module to (B, C) to load `classifier.*` into; None: the one of heads.py that the folder's config.json
            names, else the default head.
        pool: "cls" or "mean"; None: as the folder's config.json says, else "cls".

    Raises:
        InputError: as `load_encoder`; the folder holds a head of one's own, and `head` is None; `pool`, or the
            folder's, is not what the head reads.
    """
    path = sources.folder_of(path)
    config = read_config(path)
    check_room(config, path)
    saved = read_json(Path(path) / "config.json").get("head")
    if head is None and saved is not None:
        if saved not in list(HEADS):
            raise InputError(f"{path} holds a head of its own kind, {saved}: make one, and pass it as head=")
        head = HEADS[saved](config)
    try:
        model = BertClassifier(config, head=head, pool=pool)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    report = load_weights(model, path)
    if report.drawn:
        log.warning("newly drawn, since %s has no such tensors: %s", path, ", ".join(report.drawn))
    return model.eval()


@torch.no_grad()
def load_weights(
    model: Bert | BertClassifier, path: str | Path, chosen: Callable[[str], bool] = lambda name: True
) -> LoadReport:
    """Copy PATH/model.safetensors into `model`. Nothing is copied before all of it was checked.

    A file with no `classifier.*` at all leaves the head as it is. A `Bert` has no head, so it leaves the file's
    `classifier.*` aside.

    Args:
        chosen: of the model's own names, which to load; the file need not have the others, and they stay as they are.

    Raises:
        InputError: as load_encoder.
    """
    file_path = Path(path) / "model.safetensors"
    if not file_path.is_file():
        pickled = " (pytorch_model.bin is a pickle and is never opened: save the model as safetensors)"
        raise InputError(
            f"there is no model.safetensors in {path}{pickled if (Path(path) / 'pytorch_model.bin').exists() else ''}"
        )
    try:
        file = safe_open(file_path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{file_path} is not a whole safetensors file ({error}); fetch or copy it again") from None
    with file:
        there: dict[str, str] = {}
        for name in file.keys():  # noqa: SIM118
            if there.setdefault(normal_name(name), name) != name:
                raise InputError(f"{file_path}: {there[normal_name(name)]} and {name} are one tensor; leave one out")
        with_head = any(name.startswith("classifier.") for name in there)
        found: list[tuple[Tensor, list[str]]] = []
        passed_over: set[str] = set()
        drawn, missing, wrong, other = [], [], [], []
        published = published_names(model)
        for ours, tensor in model.state_dict().items():
            names = published[ours]
            if not chosen(ours):
                passed_over.update(names)
                continue
            absent = [name for name in names if name not in there]
            if absent and ours.startswith("head.") and not with_head:
                drawn.append(ours)
            elif absent:
                missing += absent
            else:
                slices = [file.get_slice(there[name]) for name in names]
                shapes = [part.get_shape() for part in slices]
                expected = [tensor.shape[0] // len(names), *tensor.shape[1:]] if tensor.dim() else []
                wrong += [f"{n} has {s}, not {expected}" for n, s in zip(names, shapes) if s != expected]
                if tensor.is_floating_point():
                    other += [f"{n} is {p.get_dtype()}" for n, p in zip(names, slices) if p.get_dtype() not in FLOATS]
                found.append((tensor, names))
        if wrong:
            raise InputError(f"{file_path}: wrong shapes for its config.json: {brief(wrong)}")
        if other:
            raise InputError(f"{file_path}: {brief(other)}; weights are {', '.join(FLOATS)}")
        if missing:
            hint = ""
            if all(name.startswith("pooler.") for name in missing):
                hint = "; pool mean needs no pooler, and --init no-pooler draws one"
            raise InputError(f"{file_path} lacks {brief(missing)}{hint}")
        left = there.keys() - {name for _, names in found for name in names}
        headless = isinstance(model, Bert)
        unused = {n for n in left if UNUSED.fullmatch(n) or (headless and n.startswith("classifier."))}
        unused |= left & passed_over
        if left - unused:
            raise InputError(f"{file_path} holds tensors this network has no place for: {brief(sorted(left - unused))}")
        for tensor, names in found:
            parts = [file.get_tensor(there[name]).to(tensor.dtype) for name in names]
            tensor.copy_(parts[0] if len(parts) == 1 else torch.cat(parts))
    return LoadReport(tuple(sorted(there[name] for name in unused)), tuple(drawn))


def save_pretrained(model: Bert | BertClassifier, path: str | Path, labels: list[str] | None = None) -> None:
    """Write `model` to PATH/config.json and PATH/model.safetensors, under the published names.

    What is not BERT throughout gets a type of its own, so that no one else runs it with a pooler or head newly drawn.

    Args:
        labels: the names of the classes, in the order of the logits; None: LABEL_0, LABEL_1, ...
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    if isinstance(model, BertClassifier):
        labels = labels or [f"LABEL_{i}" for i in range(model.config.num_labels)]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    del config["num_labels"]  # id2label says it
    own_head = has_own_head(model)
    family = "Bert" if model.config.is_bert and model.config.pool == "cls" and not own_head else "Minibert"
    config["model_type"] = family.lower()
    config["architectures"] = [family + ("ForSequenceClassification" if isinstance(model, BertClassifier) else "Model")]
    if isinstance(model, BertClassifier) and own_head:
        config["head"] = name_of(model.head)
    write_json(path / "config.json", config)
    save_weights(model, path)


def save_weights(model: Bert | BertClassifier, path: Path) -> None:
    """The tensors alone, in one step: PATH/model.safetensors is the old file or the new one, never a part."""
    prefix = "bert." if isinstance(model, BertClassifier) else ""
    tensors, published = {}, published_names(model)
    for ours, tensor in model.state_dict().items():
        names = published[ours]
        for name, part in zip(names, tensor.cpu().chunk(len(names)) if len(names) > 1 else [tensor.cpu()]):
            if ours.startswith("head."):  # two names of one tensor are a file's tensor each
                tensors[name] = part.clone(memory_format=torch.contiguous_format)
            else:
                tensors[prefix + name] = part.contiguous()
    replace_file(path / "model.safetensors", lambda beside: save_file(tensors, beside, {"format": "pt"}))


def brief(items: list[str], most: int = 4) -> str:
    """The first few of a list, and how many more."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
