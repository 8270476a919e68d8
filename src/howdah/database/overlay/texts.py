"""Bytes and vectors as Postgres writes them: the columns that CSV carries as text in another form than Arrow has them."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_text(schema: Any) -> Any:
    """The schema with text in the place of such columns."""
    import pyarrow as pa

    fields = [pa.field(f.name, pa.string()) if _binary(f.type) or _list(f.type) else f for f in schema]
    return pa.schema(fields)


def decoded(rows: Any, schema: Any) -> Any:
    """Rows of such text, as the schema says."""
    for number, field in enumerate(schema):
        if _binary(field.type):
            rows = rows.set_column(number, field, _bytes(rows.column(number), field.type))
        elif _list(field.type):
            rows = rows.set_column(number, field, _vectors(rows.column(number), field.type))
    return rows


def encoded(rows: Any) -> Any:
    """Rows with such text."""
    for number, field in enumerate(rows.schema):
        if _binary(field.type):
            rows = rows.set_column(number, field.name, _hex(rows.column(number)))
        elif _list(field.type):
            rows = rows.set_column(number, field.name, _brackets(rows.column(number)))
    return rows


def _binary(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _list(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _bytes(column: Any, type_: Any) -> Any:
    import pyarrow as pa

    return pa.array([None if text is None else bytes.fromhex(text[2:]) for text in column.to_pylist()], type_)


def _hex(column: Any) -> Any:
    import pyarrow as pa

    return pa.array([None if data is None else f"\\x{data.hex()}" for data in column.to_pylist()], pa.string())


def _vectors(column: Any, type_: Any) -> Any:
    """``[1,2.5]``, …; Arrow does it, as there are many numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = column.combine_chunks()
    parts = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), ",")
    return _lists(parts, parts.flatten().cast(pa.float32())).cast(type_)


def _brackets(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    inner = pc.binary_join(_lists(lists, lists.flatten().cast(pa.string())), ",")
    return pc.binary_join_element_wise("[", inner, "]", "")


def _lists(like: Any, values: Any) -> Any:
    """Other values in the same lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(like), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=like.is_null())
