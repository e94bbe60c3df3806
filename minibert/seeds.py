"""Five seeds, and apart: the encoder's weights, the head's weights, the order of the data, dropout, and which of the
training examples are used where not all are.

Dodge et al. 2020 (arXiv:2002.06305) found that weights and data order each move a fine-tuning result as
much as the other: who compares starts must be able to hold one still while the other changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

from minibert.errors import InputError


@dataclass(frozen=True)
class Seeds:
    encoder: int = 0
    head: int = 0
    order: int = 0
    dropout: int = 0
    subset: int = 0
    split: int = 0  # not set by the plain number: other seeds must still be tested on the same examples

    @classmethod
    def parse(cls, text: str) -> Seeds:
        """`7` sets all but `split`; `7,order=3` sets one of them apart; `order=3` leaves the others at 0.

        Raises:
            InputError: an unknown name, or something that is no whole number from 0 on.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, int] = {}
        set_apart: set[str] = set()
        for position, part in enumerate(text.split(",")):
            name, equals, number = (piece.strip() for piece in part.rpartition("="))
            allowed = name in known if equals else position == 0
            if not allowed or name in set_apart or not number.isdecimal() or len(number) > 100:
                raise InputError(
                    f"--seed {text!r}: write a whole number, or NUMBER,NAME=NUMBER with {', '.join(known)}, each once"
                )
            set_apart.add(name)
            values.update({name: int(number)} if name else dict.fromkeys(known[:-1], int(number)))
        return cls(**values)


def derive(seed: int, *purpose: object) -> int:
    """A seed for one purpose. Streams of different purposes share nothing, even under one seed."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "little")  # below 2**63, as torch wants it
