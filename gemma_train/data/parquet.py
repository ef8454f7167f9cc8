"""Columns of Parquet files, a few rows in memory at a time."""

from collections.abc import Iterator
from typing import IO, Any

from gemma_train.data.document import check_field


def rows(stream: IO[bytes], columns: tuple[str, ...], *, together: int) -> Iterator[tuple]:
    """The values of these columns, row by row; text as bytes, so that each is judged by itself.

    Raises `ValueError` where a column is missing or the file cannot be read.
    """
    import pyarrow  # here, since it takes a moment to load and most recipes need none
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream)
        for name in columns:
            check_field(name, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=together, columns=list(dict.fromkeys(columns))):
            values = [_values(batch.column(name)) for name in columns]
            yield from zip(*values, strict=True)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def _values(column: Any) -> list:
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    return column.to_pylist()
