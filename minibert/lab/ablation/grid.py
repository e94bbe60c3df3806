"""What a grid consists of: products of settings, times seeds; each run is named by what it is.

A grid file is TOML:

    title = "one line"
    question = "one sentence"
    baseline = "random"            # the start that the others are compared with
    seeds = 6                      # 0 to 5, the same for all settings, so that runs are paired
    claims = false                 # whether the report judges the notebook's claims on it
    [settings]                     # of every run
    batch_size = 8
    [[product]]                    # one or more; any field of TrainConfig, one value or a list
    name = "starts"
    init = ["pretrained", "random"]
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from minibert.config import ALONE, TrainConfig, flag
from minibert.errors import InputError

PRESETS = Path(__file__).parent / "presets"
FIELDS = {entry.name: entry for entry in fields(TrainConfig) if entry.name not in ALONE}
TYPES: dict[str, tuple[Callable[[Any], Any], type | tuple[type, ...]]] = {
    "int": (int, int), "float": (float, (int, float)), "bool": (bool, bool), "str": (str, (str, int)),
    "str | None": (str, str),
}  # fmt: skip
DEFAULTS = asdict(TrainConfig())
FORMAT = 1  # of grid.json
MOST = 10_000  # runs; more is a slip of the hand

Values = dict[str, list[Any]]  # settings with the values that each takes


@dataclass(frozen=True)
class Product:
    """All combinations of `values`."""

    values: Values
    name: str = ""
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A question and the products of settings that answer it.

    Attributes:
        baseline: the start that others are compared with; None: it is chosen by who compares.
        seeds: how many each setting gets, from 0 on; settings that name `seed` have those.
        claims: the notebook's are judged on it.
    """

    products: list[Product]
    title: str = ""
    question: str = ""
    baseline: str | None = None
    seeds: int = 1
    claims: bool = False

    def override(self, values: Values) -> Grid:
        """The same with other values for some settings, in every product."""
        return replace(self, products=[replace(part, values=part.values | values) for part in self.products])

    def configs(self) -> list[TrainConfig]:
        """The settings of every run, each once: all starts of the first seed, then of the next.

        Raises:
            InputError: a value that is not allowed; too many runs.
        """
        count = sum(math.prod(map(len, part.values.values())) for part in self.products) * self.seeds
        if count > MOST:
            raise InputError(f"the grid has {count:,} runs; take fewer values, {MOST:,} runs are the most")
        waves: dict[str, list[TrainConfig]] = {}
        for part in self.products:
            values = part.values if "seed" in part.values else part.values | {"seed": list(map(str, range(self.seeds)))}
            for chosen in product(*values.values()):
                config = TrainConfig(**dict(zip(values, chosen)))
                waves.setdefault(config.seed, []).append(config)
        return list(dict.fromkeys(config for wave in waves.values() for config in wave))


def read_grid_file(path: Path) -> Grid:
    """
    Raises:
        InputError: no such file, not TOML, an unknown key, a value of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no grid file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    known = {
        "title": str, "question": str, "baseline": str, "seeds": int, "claims": bool, "settings": dict, "product": list,
    }  # fmt: skip
    for key, value in content.items():
        if key not in known or type(value) is not known[key]:
            kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in known.items())
            raise InputError(f"{path}: {key} = {value!r}; a grid file has {kinds}")
    common = values_of(path, "settings", content.get("settings", {}))
    products = []
    for number, entry in enumerate(content.get("product", [{}]), 1):
        where = f"product {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {where} is {entry!r}; write [[product]] and settings under it")
        texts = {name: entry.pop(name, "") for name in ("name", "note")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise InputError(f"{path}: {where}: name and note are strings")
        products.append(Product(common | values_of(path, where, entry), **texts))
    seeds = content.get("seeds", 1)
    check_seeds(seeds)
    texts = (content.get(key, "") for key in ("title", "question"))
    return Grid(products, *texts, content.get("baseline"), seeds, content.get("claims", False))


def preset(name: str) -> Grid:
    """A grid that comes with the project.

    Raises:
        InputError: there is none of that name.
    """
    names = sorted(path.stem for path in PRESETS.glob("*.toml"))
    if name not in names:
        raise InputError(f"--preset {name}: it must be one of {', '.join(names)}")
    return read_grid_file(PRESETS / f"{name}.toml")


def values_of(path: Path, where: str, entry: Mapping[str, Any]) -> Values:
    """One value or a list of them for each setting, as TrainConfig takes them."""
    out: Values = {}
    for name, given in entry.items():
        if name not in FIELDS:
            raise InputError(f"{path}: {where}: {name} is no setting; known: {', '.join(FIELDS)}")
        make, allowed = TYPES[str(FIELDS[name].type)]
        values = given if isinstance(given, list) else [given]
        for value in values:
            if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
                raise InputError(f"{path}: {where}: {name} = {value!r}; it must be {FIELDS[name].type}")
        if not values:
            raise InputError(f"{path}: {where}: {name} has no value; give one or leave it out")
        out[name] = [make(value) for value in values]
    return out


def check_seeds(seeds: int) -> None:
    if not 1 <= seeds <= 1000:
        raise InputError(f"--seeds {seeds}: it must be a whole number from 1 to 1000")


def name_of(settings: Mapping[str, Any]) -> str:
    """START-HASH: the same for the same settings, whatever their order.

    Hashed is what differs from TrainConfig's defaults, so that a new setting leaves the names of old runs as they are.
    """
    told = {name: value for name, value in sorted(settings.items()) if name != "out" and value != DEFAULTS[name]}
    text = json.dumps(told)
    start = re.sub(r"[^A-Za-z0-9.]+", "-", str(settings["init"]))[:100]
    return f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings but the folder."""
    return {name: getattr(config, name) for name in DEFAULTS if name != "out"}


def varying(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that differ between runs, in the order of TrainConfig, `init` and `seed` among them if they do."""
    return [name for name in FIELDS if any(run.get(name) != runs[0].get(name) for run in runs)]


def usual(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of each setting that varies, the value that more than half of the runs have, alone in a list; else none."""
    most = {}
    for name in varying(runs):
        value, count = Counter(json.dumps(run.get(name)) for run in runs).most_common(1)[0]
        most[name] = [json.loads(value)] * (2 * count > len(runs))
    return most


def label_of(settings: Mapping[str, Any], usual: Mapping[str, list[Any]]) -> str:
    """A run in a few words: its start, then what else varies and is not as `usual`."""
    rest = [
        f"{flag(name)[2:]} {shown(settings[name])}"
        for name, most in usual.items()
        if name != "init" and settings[name] not in most
    ]
    return " ".join([str(settings["init"]), *rest])


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_content(file: Path, content: dict[str, Any]) -> None:
    """
    Raises:
        InputError: the content of a grid.json with parts of another kind than `ablate` writes, or a run whose name
            would lead out of the grid's folder.
    """
    kinds = {"title": str, "question": str, "baseline": str, "settled": dict, "data": dict, "commands": list}
    bad = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind | None)]
    if not bad and not all(isinstance(command, str) for command in content.get("commands") or ()):
        bad = ["commands"]
    if bad:
        raise InputError(f"{file}: {bad[0]!r} is not what python -m minibert ablate writes there")
    for name, settings in content["runs"].items():
        if not re.fullmatch(r"\w[\w.-]{0,127}", name, re.ASCII):
            raise InputError(f"{file}: a run is called {name!r}; names are up to 128 letters, digits, - and .")
        values = settings.values() if isinstance(settings, dict) else [[]]
        if not all(isinstance(value, str | int | float | None) for value in values):
            raise InputError(f"{file}: run {name} has settings that are no settings")
