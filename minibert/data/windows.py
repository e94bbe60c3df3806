"""Windows of sensor data, and how a window becomes a text.

A window is (steps, channels). First each channel is averaged down to `--steps` values, then it is written as

    levels     each value a whole number from 0 to 99 over the channel's range, channel after channel:
               "52 53 51 ... 40 41 ..."; each number is one word of BERT's vocabulary
    grid       one number a step: the cell of a grid over all chosen channels together, `--grid-cells` in all
    decimals   each value in its own unit, channel after channel: "0.98 1.02 ... -0.11 ..."
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibert.config import ENCODINGS, MOST_CELLS, TrainConfig, is_whole
from minibert.data.table import Table, natural
from minibert.errors import InputError
from minibert.files import sha256

ARRAYS = ("x", "y", "group", "split", "channels")  # of an .npz of one's own
MOST_BYTES = 4 * 2**30  # of an .npz, unpacked: zeros pack a thousandfold
MOTION = Path(__file__).parent / "motion" / "hapt.npz"
ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying")
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")  # g and rad/s
RANGES = ((-2.0, 2.0),) * 3 + ((-5.0, 5.0),) * 3
TEST_PEOPLE, VAL_PEOPLE = (2, 4, 9, 10, 12), (13, 18, 20, 24)  # all from the data set's own nine test people


def read_motion(overlap: bool = False) -> Table:
    """The bundled windows of six activities (motion/README.md), without the postural transitions.

    Args:
        overlap: also the windows that start in the middle of another.
    """
    with np.load(MOTION, allow_pickle=False) as file:
        x, y, window, person = (file[name] for name in "xywu")
    keep = (y <= len(ACTIVITIES)) & (overlap | (window % 2 == 0))
    person = person[keep]
    splits = np.where(np.isin(person, TEST_PEOPLE), "test", np.where(np.isin(person, VAL_PEOPLE), "val", "train"))
    return Table(
        name="motion-overlap" if overlap else "motion",
        labels=[ACTIVITIES[i - 1] for i in y[keep]],
        sha256=hashlib.sha256(MOTION.read_bytes()).hexdigest(),
        windows=x[keep].astype(np.float32) / 1000,  # the file holds thousandths
        channels=list(CHANNELS),
        groups=[str(i) for i in person],
        splits=splits.tolist(),
        label_order=ACTIVITIES.index,
        ranges=np.array(RANGES),
    )


def read_windows(path: Path) -> Table:
    """An .npz of your own: x (n, steps, channels) numbers, y (n,) labels; if wanted group (n,), split (n,), and
    channels, the channels' names.

    Raises:
        InputError: no such file, an array missing, ragged, of the wrong shape, or with NaN in it.
    """
    arrays = read_npz(path, ("x", "y"))
    return table_of_arrays(path.name, str(path), sha256(path), arrays)


def read_npz(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz that mean something here; any others are not opened.

    Raises:
        InputError: no such file, not an .npz, ragged, one that is needed is not there.
    """
    if not path.is_file():
        raise InputError(f"--data {path}: no such file")
    try:
        with open(path, "rb") as handle:  # numpy leaves a file open that it cannot read
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            entries = [entry for entry in file.zip.infolist() if entry.filename.removesuffix(".npy") in ARRAYS]
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MOST_BYTES:
                raise InputError(f"{path}: its arrays have {unpacked:,} bytes unpacked; {MOST_BYTES:,} are the most")
            for name in needed:
                if name not in file.files:
                    raise InputError(f"{path}: no array {name!r}; found {', '.join(file.files) or 'nothing'}")
            return {name: read_array(file, name, path) for name in ARRAYS if name in file.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, numpy: a spoiled file makes each raise its own
        raise InputError(f"{path} is not a readable .npz ({error})") from None


def table_of_arrays(name: str, where: str, digest: str, arrays: dict[str, np.ndarray]) -> Table:
    """The arrays that an .npz has as a table.

    Args:
        where: what to call them in messages.

    Raises:
        InputError: as read_windows.
    """
    y = arrays["y"]
    windows, channels = checked_windows(where, arrays)
    for array in ("y", "group", "split"):
        if array in arrays and arrays[array].shape != windows.shape[:1]:
            raise InputError(
                f"{where}: {array} has shape {arrays[array].shape}; with {len(windows)} windows it must be"
                f" ({len(windows)},)"
            )
    for array in ("y", "group", "split"):
        if any(str(name).strip() in ("", "nan") for name in arrays.get(array, [])):
            raise InputError(f"{where}: {array} has an empty name or NaN in it; fill it or drop the window")
    return Table(
        name=name,
        labels=[str(label).strip() for label in y],
        sha256=digest,
        windows=windows,
        channels=channels,
        groups=[str(group).strip() for group in arrays["group"]] if "group" in arrays else None,
        splits=[str(split) for split in arrays["split"]] if "split" in arrays else None,
        label_order=natural,
    )


def checked_windows(where: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """The windows (n, steps, channels) and the channels' names. As float32, or as float64 where the numbers came with
    more digits: around a million float32 tells steps of 0.06 apart.

    Raises:
        InputError: not numbers, not of that shape, NaN in it or larger than float32 can be, or names that do not fit.
    """
    x = arrays["x"]
    if x.ndim != 3 or not x.size or x.dtype.kind not in "fiu":
        raise InputError(f"{where}: x is {x.dtype} of shape {x.shape}; it must be numbers (windows, steps, channels)")
    with np.errstate(over="ignore"):
        windows = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64)
    good = np.abs(windows) <= np.finfo(np.float32).max  # of NaN, this is not
    if not good.all():
        window, step, channel = np.argwhere(~good)[0]
        raise InputError(
            f"{where}: x[{window}, {step}, {channel}] is {x[window, step, channel]}; mend or drop the window"
        )
    channels = [str(name) for name in np.ravel(arrays.get("channels", [f"channel-{i + 1}" for i in range(x.shape[2])]))]
    if len(channels) != x.shape[2] or len(set(channels)) != len(channels):
        raise InputError(f"{where}: channels must be {x.shape[2]} different names; got {', '.join(channels)}")
    return windows, channels


def read_array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        array = file[name]
    except ValueError as error:
        if "Object arrays" not in str(error):  # which only a pickle can hold
            raise
        raise InputError(
            f"{path}: {name} is ragged or holds objects; make it one array of numbers"
            + (", all windows of the same length" if name == "x" else " or strings")
        ) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    if array.dtype.kind == "U" and name != "x":
        for text in array.ravel().tolist():  # numpy accepts any 32 bits as a character
            text.encode()
    return array


def choose_channels(wanted: str | None, table: Table) -> list[int]:
    """`--channels` -> places. A name, or what stands before the dash: `acc` is acc-x, acc-y and acc-z.

    Raises:
        InputError: no such channel, or one named twice.
    """
    wanted = wanted or ("acc" if table.ranges is not None else "all")
    places: list[int] = []
    for name in [part.strip() for part in wanted.split(",")]:
        match = [
            i for i, channel in enumerate(table.channels) if name in ("all", channel) or channel.startswith(f"{name}-")
        ]
        if not match:
            raise InputError(f"--channels {wanted}: no channel {name!r}; {table.name} has {', '.join(table.channels)}")
        places += match
    if len(set(places)) < len(places):
        raise InputError(f"--channels {wanted}: a channel is named twice")
    return places


@dataclass(frozen=True)
class Encoding:
    """How windows are written. Fitted on the training rows alone, so that nothing of the others leaks in."""

    kind: str
    steps: int
    places: list[int]
    names: list[str]
    ranges: np.ndarray  # (chosen channels, 2): lowest and highest value
    bins: int  # cells along each channel, for grid
    channels: list[str]  # all that the data have

    @classmethod
    def fit(cls, config: TrainConfig, table: Table, train: np.ndarray) -> Encoding:
        """
        Raises:
            InputError: an unknown channel, more steps than the windows have, a grid without two cells a side.
        """
        places = choose_channels(config.channels, table)
        length = table.windows.shape[1]
        if config.steps > length:
            raise InputError(f"--steps {config.steps}: the windows of {table.name} have {length} steps")
        bins = int(config.grid_cells ** (1 / len(places)) + 1e-9)
        if config.encoding == "grid" and bins < 2:
            raise InputError(
                f"--grid-cells {config.grid_cells}: {len(places)} channels need at least {2 ** len(places)};"
                " choose more cells or fewer channels"
            )
        if table.ranges is not None:
            ranges = table.ranges[places]
        else:
            values = table.windows[train][:, :, places]
            ranges = np.stack([values.min(axis=(0, 1)), values.max(axis=(0, 1))], axis=1).astype(np.float64)
        names = [table.channels[i] for i in places]
        return cls(config.encoding, config.steps, places, names, ranges, bins, table.channels)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which keeps every float64 as it is."""
        return asdict(self) | {"ranges": self.ranges.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Encoding:
        """
        Raises:
            InputError: a field is missing, one too many, or of another kind than `fit` makes.
        """
        try:
            made = cls(**content)
            made = replace(made, ranges=np.array(made.ranges, dtype=np.float64))
            names = [made.channels[place] for place in made.places]
            good = (
                isinstance(made.channels, list) and made.kind in ENCODINGS
                and is_whole(made.steps) and made.steps >= 1 and min(made.places) >= 0
                and made.names == names and made.ranges.shape == (len(names), 2) and np.isfinite(made.ranges).all()
                and is_whole(made.bins) and made.bins >= 1 and made.bins ** len(names) <= MOST_CELLS
            )  # fmt: skip
        except (TypeError, ValueError, LookupError, OverflowError):
            good = False
        if not good:
            raise InputError(f"an encoding of windows that no run has: {content!r:.200}")
        return made

    def check(self, windows: np.ndarray, where: str) -> None:
        """
        Raises:
            InputError: these windows are not (n, steps, channels) like those that it was fitted on.
        """
        _, length, count = windows.shape
        if count != len(self.channels):
            raise InputError(
                f"{where}: windows of {count} channels; the run was trained on {len(self.channels)},"
                f" {', '.join(self.channels)}"
            )
        if length < self.steps:
            raise InputError(f"{where}: windows of {length} steps; the run needs at least {self.steps}")

    def describe(self) -> str:
        cells = f" of {self.bins ** len(self.places):,} cells" if self.kind == "grid" else ""
        return f"{','.join(self.names)} as {self.kind}{cells}, {self.steps} steps"

    def numbers(self, windows: np.ndarray) -> np.ndarray:
        """(n, steps, channels) -> (n, self.steps, C), in the units of the data: what is written as text."""
        return shorten(windows[:, :, self.places].astype(np.float64), self.steps)

    def texts(self, windows: np.ndarray) -> list[str]:
        """(n, steps, channels) -> n texts."""
        x = self.numbers(windows)
        if self.kind == "decimals":
            # As many decimals as tell about a hundredth of the range apart.
            span = self.ranges[:, 1] - self.ranges[:, 0]
            span = np.where(span > 0, span, 1.0)
            digits = [max(0, 2 - math.floor(math.log10(width))) for width in span]
            return [" ".join(f"{v:.{d}f}" for column, d in zip(row.T, digits) for v in column) for row in x]
        bins = 100 if self.kind == "levels" else self.bins
        low, high = self.ranges[:, 0], self.ranges[:, 1]
        place = (x - low) / np.where(high > low, high - low, 1.0) * bins
        place = np.clip(np.floor(place), 0, bins - 1).astype(np.int64)
        if self.kind == "levels":
            return [" ".join(map(str, row.T.ravel())) for row in place]
        cells = place @ bins ** np.arange(len(self.places))  # (n, steps): the first channel counts fastest
        return [" ".join(map(str, row)) for row in cells]


def shorten(x: np.ndarray, steps: int) -> np.ndarray:
    """(n, T, C) -> (n, steps, C): means of neighbouring values; where T is no multiple, of runs as even as can be."""
    edges = np.arange(steps + 1) * x.shape[1] // steps
    return np.add.reduceat(x, edges[:-1], axis=1) / np.diff(edges)[:, None]
