"""Rows of Parquet and Arrow files, some at a time. Needs the extra `data`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from minibert.errors import InputError

ROWS = 1024  # that are unpacked at a time
MOST_BYTES = 2**32  # of a group of rows, unpacked, all columns together


def columns(path: Path, file: BinaryIO, names: Collection[str]) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """All columns' names, without blanks around them, and the rows of those in `names` that are there.

    A cell without a value is an empty one.

    Raises:
        InputError: pyarrow is not there, the file is damaged, or a column is of another type than texts and numbers.
    """
    try:
        import pyarrow as pa
        from pyarrow import ipc, parquet
    except ImportError:
        raise InputError(f"{path} needs a package: pip install -e '.[data]'") from None

    def refused(error: Exception) -> InputError:
        why = "a batch of rows asks for more memory than there is" if isinstance(error, MemoryError) else str(error)
        return InputError(f"{path} cannot be read: {(why or type(error).__name__).splitlines()[0]}")

    # As pyarrow tells it.
    damaged = (pa.ArrowException, OSError, ValueError, OverflowError, RuntimeError, MemoryError)
    open_files = ExitStack()
    try:
        batches: Iterable[Any]
        if path.suffix.lower() == ".parquet":
            table = open_files.enter_context(parquet.ParquetFile(file))
            schema, groups = table.schema_arrow, [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        else:
            start = file.read(6)
            file.seek(0)
            table = open_files.enter_context(ipc.open_file(file) if start == b"ARROW1" else ipc.open_stream(file))
            schema = table.schema
        every = [name.strip() for name in schema.names]
    except damaged as error:
        raise refused(error) from None
    places = [place for place, name in enumerate(every) if name in names]
    for place in places:
        check_type(path, every[place], schema.types[place])
    wanted, own = [every[place] for place in places], [schema.names[place] for place in places]
    if path.suffix.lower() == ".parquet":
        for group in groups:
            size = group.total_byte_size  # asking a damaged column for its own size aborts the process
            if size > MOST_BYTES:
                raise InputError(
                    f"{path} has {size:,} bytes in one group of rows; {MOST_BYTES:,} are the most: write the file with"
                    " smaller groups, or without the columns that are not needed"
                )
        batches, places = table.iter_batches(ROWS, columns=own), [*range(len(own))]
    elif start == b"ARROW1":
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        batches = table

    def rows() -> Iterator[dict[str, Any]]:
        try:
            with open_files:
                for batch in batches:
                    batch.validate(full=True)  # else offsets beyond the end of a hostile file would be followed
                    for first in range(0, batch.num_rows, ROWS):
                        some = batch.slice(first, ROWS)
                        values = [some.column(place).to_pylist() for place in places]
                        for row in zip(*values):
                            yield {name: "" if value is None else value for name, value in zip(wanted, row)}
        except damaged as error:
            raise refused(error) from None

    return every, rows()


def check_type(path: Path, name: str, kind: Any) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating,
             types.is_boolean, types.is_null)  # fmt: skip
    if not any(fits(kind) for fits in known):
        raise InputError(f"{path}: {name!r} is of type {kind}; it must be of texts, numbers, or true and false")
