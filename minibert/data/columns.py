"""Columns of very many rows as numbers, so that no row is an object of Python's: names, and texts of token ids."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np

PIECE = 8192  # texts that are gathered at a time


class Names(Sequence[str]):
    """n names (of classes, groups, splits), each a place among the different ones.

    Attributes:
        names: the different ones, sorted; some may occur in no row.
        codes: (n,) whole numbers, places in `names`.
    """

    def __init__(self, names: list[str], codes: np.ndarray) -> None:
        self.names, self.codes = names, codes

    @classmethod
    def of(cls, values: Iterable[str]) -> Names:
        """The same names so; what is so already is given back."""
        if isinstance(values, Names):
            return values
        coder = Coder()
        coder.add(values)
        return coder.names()

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: Any) -> Any:
        """One name, or those of a slice or an array of places, as Names."""
        codes = self.codes[place]
        return Names(self.names, codes) if isinstance(codes, np.ndarray) else self.names[codes]

    def __iter__(self) -> Iterator[str]:
        return map(self.names.__getitem__, map(int, self.codes))


class Coder:
    """Makes Names of names that come one after another."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.codes = array("i")

    def add(self, values: Iterable[str]) -> None:
        places = self.places
        self.codes.extend([places.setdefault(value, len(places)) for value in values])

    def names(self) -> Names:
        names = sorted(self.places)
        sorted_place = np.empty(len(names), np.min_scalar_type(max(0, len(names) - 1)))
        sorted_place[[self.places[name] for name in names]] = np.arange(len(names))
        return Names(names, sorted_place[np.frombuffer(self.codes, np.intc)])


class Part(NamedTuple):
    """Texts end to end: that at `place` is flat[starts[place] : starts[place + 1]]."""

    flat: np.ndarray
    starts: np.ndarray  # (texts + 1,)

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> Part:
        starts = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
        return cls(np.concatenate(texts) if len(texts) else np.zeros(0, np.int32), starts)


class Texts(Sequence[np.ndarray]):
    """n texts of token ids (or of token types), in memory or in files mapped into it: only what is asked for is read.

    Args:
        parts: of `size` texts each; the last may have fewer.
        rows: (n,) which of the texts these are; None: all.
        numbers: what stands for each id; None: itself.
    """

    def __init__(
        self, parts: Sequence[Part], size: int, rows: np.ndarray | None = None, numbers: np.ndarray | None = None
    ) -> None:
        self.parts, self.size, self.numbers = parts, size, numbers
        self.rows = range(sum(len(part.starts) - 1 for part in parts)) if rows is None else rows

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> Texts:
        """The same texts so; what is so already is given back."""
        return texts if isinstance(texts, Texts) else cls([Part.of(texts)], max(1, len(texts)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice | np.ndarray) -> Texts: ...
    def __getitem__(self, place: Any) -> Any:
        """One text, or those of a slice or an array of places, as Texts."""
        if isinstance(place, np.ndarray):  # of all texts, the very places: ten million are 40 MB
            rows = place if isinstance(self.rows, range) else self.rows[place]
            return Texts(self.parts, self.size, rows, self.numbers)
        if isinstance(place, slice):
            return Texts(self.parts, self.size, np.asarray(self.rows[place]), self.numbers)
        number, row = divmod(int(self.rows[place]), self.size)
        flat, starts = self.parts[number]
        text = flat[starts[row] : starts[row + 1]]
        return text if self.numbers is None else self.numbers[text]

    def renumbered(self, numbers: np.ndarray) -> Texts:
        """The same texts with numbers[id] for each id."""
        return Texts(self.parts, self.size, self.rows, numbers)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int32, tokens of each."""
        out = np.empty(len(self), np.int32)
        for place, part, rows in self._runs():
            out[place] = part.starts[rows + 1] - part.starts[rows]
        return out

    def pieces(self) -> Iterator[np.ndarray]:
        """All tokens, text after text, in pieces."""
        for _, part, rows in self._runs():
            first, lengths = part.starts[rows].astype(np.int64), (part.starts[rows + 1] - part.starts[rows])
            shift = np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
            tokens = part.flat[shift + np.arange(len(shift))]
            yield tokens if self.numbers is None else self.numbers[tokens]

    def occurring(self) -> np.ndarray:
        """The different ids, ascending."""
        seen = np.zeros(0, bool)
        for piece in self.pieces():
            most = int(piece.max(initial=0)) + 1
            if most > len(seen):
                seen = np.concatenate([seen, np.zeros(most - len(seen), bool)])
            seen[piece] = True
        return np.flatnonzero(seen)

    def _runs(self) -> Iterator[tuple[slice, Part, np.ndarray]]:
        """Neighbours here that stand in one part, PIECE at most: their places here, the part, their places there."""
        for start in range(0, len(self), PIECE):
            rows = np.asarray(self.rows[start : start + PIECE])
            numbers, inside = rows // self.size, rows % self.size
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
            for first, last in pairwise(cuts):
                yield slice(start + first, start + last), self.parts[int(numbers[first])], inside[first:last]
