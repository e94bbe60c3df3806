"""Rows of Parquet and Arrow files, some at a time. Needs the extra `data`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

from minibert.errors import InputError

ROWS = 1024  # that are unpacked at a time
MOST_BYTES = 2**32  # of a group of rows, unpacked, all columns together


def columns(path: Path, file: BinaryIO, names: Collection[str]) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """All columns' names, without blanks around them, and the rows of those in `names` that are there.

    A cell without a value is an empty one. `file` moves on with the rows, as far as what is read goes.

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
        source = open_files.enter_context(native(path, file))
        if path.suffix.lower() == ".parquet":
            table = open_files.enter_context(parquet.ParquetFile(source))
            schema, groups = table.schema_arrow, [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        else:
            start = file.read(6)
            file.seek(0)
            table = open_files.enter_context(ipc.open_file(source) if start == b"ARROW1" else ipc.open_stream(source))
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
        number = sum(-(-group.num_rows // ROWS) for group in groups)
    elif start == b"ARROW1":
        number = table.num_record_batches
        batches = (table.get_batch(place) for place in range(number))
    else:
        batches, number = table, 0  # nobody knows how many

    def rows() -> Iterator[dict[str, Any]]:
        size = file.seek(0, SEEK_END)
        try:
            with open_files:
                for place, batch in enumerate(batches, 1):
                    file.seek(size * place // number if number else source.tell())
                    batch.validate(full=True)  # else offsets beyond the end of a hostile file would be followed
                    for first in range(0, batch.num_rows, ROWS):
                        some = batch.slice(first, ROWS)
                        values = [some.column(place).to_pylist() for place in places]
                        for row in zip(*values):
                            yield {name: "" if value is None else value for name, value in zip(wanted, row)}
        except damaged as error:
            raise refused(error) from None

    return every, rows()


def native(path: Path, file: BinaryIO) -> Any:
    """The file that is open, as pyarrow reads it without Python. Its threads may still hold the file when Python ends:
    a Python file then aborts the process in place of the error that was to be said.
    """
    import pyarrow as pa

    there = Path(f"/proc/self/fd/{file.fileno()}")
    return pa.OSFile(str(there if there.exists() else path))


def check_type(path: Path, name: str, kind: Any) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating,
             types.is_boolean, types.is_null)  # fmt: skip
    if not any(fits(kind) for fits in known):
        raise InputError(f"{path}: {name!r} is of type {kind}; it must be of texts, numbers, or true and false")
