"""Values that CSV carries in another form than Arrow has them: bytes, UUIDs, vectors and arrays, as Postgres writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np

from .columns import TierColumn, arrow_type

_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,{}]+)')
"""One element of an array's text: quoted, or as it is."""


def as_text(schema: Any, columns: Sequence[TierColumn]) -> Any:
    """The schema with text in the place of such columns."""
    import pyarrow as pa

    odd = {c.name for c in columns if _form(c) is not None}
    return pa.schema([pa.field(f.name, pa.string()) if f.name in odd else f for f in schema])


def decoded(rows: Any, columns: Sequence[TierColumn]) -> Any:
    """Rows of such text, in the types of their columns."""
    import pyarrow as pa

    for column in columns:
        if (form := _form(column)) is not None:
            type_ = arrow_type(pa, column)
            values = form[0](rows.column(column.name).combine_chunks(), type_)
            rows = rows.set_column(rows.schema.get_field_index(column.name), pa.field(column.name, type_), values)
    return rows


def encoded(rows: Any, columns: Sequence[TierColumn]) -> Any:
    """Rows with such text."""
    for column in columns:
        if (form := _form(column)) is not None:
            values = form[1](rows.column(column.name).combine_chunks())
            rows = rows.set_column(rows.schema.get_field_index(column.name), column.name, values)
    return rows


def shown(column: Any) -> Any:
    """A column of any type that rows may be grouped by, as text."""
    import pyarrow as pa

    fixed = pa.types.is_fixed_size_binary(column.type)
    return _uuid_texts(column.combine_chunks()) if fixed else column.cast(pa.string())


def stored(value: Any) -> Any:
    """A key's value as Arrow has it."""
    return value.bytes if isinstance(value, UUID) else value


Form = tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]


def _form(column: TierColumn) -> Form | None:
    """How a column's text is read, and made; ``None`` for types that CSV carries as they are."""
    if column.element is not None:
        return _arrays, _braces
    return {"bytea": (_bytes, _hex), "uuid": (_uuids, _uuid_texts), "vector": (_vectors, _brackets)}.get(column.type)


def _bytes(texts: Any, type_: Any) -> Any:
    import pyarrow as pa

    return pa.array([None if text is None else bytes.fromhex(text[2:]) for text in texts.to_pylist()], type_)


def _hex(column: Any) -> Any:
    import pyarrow as pa

    return pa.array([None if data is None else f"\\x{data.hex()}" for data in column.to_pylist()], pa.string())


def _uuids(texts: Any, type_: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pc.fill_null(texts, "0" * 32).to_pylist()
    data = bytes.fromhex("".join(whole).replace("-", ""))
    return pa.Array.from_buffers(type_, len(whole), [_valid(texts), pa.py_buffer(data)])


def _uuid_texts(column: Any) -> Any:
    import pyarrow as pa

    count = len(column)
    zeros = b"\0" * 16
    data = b"".join(zeros if value is None else value for value in column.to_pylist()).hex()
    digits = np.frombuffer(data.encode(), "S1").reshape(count, 32)
    text = np.full((count, 36), b"-", "S1")
    for start, end, at in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
        text[:, at : at + end - start] = digits[:, start:end]
    offsets = pa.array(np.arange(count + 1) * 36, pa.int32())
    return pa.Array.from_buffers(
        pa.string(), count, [_valid(column), offsets.buffers()[1], pa.py_buffer(text.tobytes())]
    )


def _valid(array: Any) -> Any:
    """Which values are there, as a bitmap."""
    import pyarrow as pa

    return pa.array(array.is_valid()).buffers()[1]


def _vectors(texts: Any, type_: Any) -> Any:
    """``[1,2.5]``, …; Arrow does it, as there are many numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), ",")
    return _lists(parts, parts.flatten().cast(pa.float32())).cast(type_)


def _brackets(lists: Any) -> Any:
    return _joined(lists, _string_of(lists.flatten()), "[", "]")


def _arrays(texts: Any, type_: Any) -> Any:
    """``{1,NULL}``, ``{"a b",c}``, …; the quick way, if nothing is quoted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # What has no element would be split into one.
    if pc.any(pc.or_(pc.match_substring(texts, '"'), pc.equal(texts, "{}"))).as_py():
        made = [None if text is None else _elements(text) for text in texts.to_pylist()]
        parts = pa.array(made, pa.list_(pa.string()))
        values = parts.flatten()
    else:
        parts = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), ",")
        values = parts.flatten()
        values = pc.if_else(pc.equal(values, "NULL"), pa.scalar(None, pa.string()), values)
    return _lists(parts, _typed(values, type_.value_type)).cast(type_)


def _elements(text: str) -> list[str | None]:
    """The elements of an array's text."""
    found: list[str | None] = []
    for match in _ELEMENT.finditer(text[1:-1]):
        if match[1] is not None:
            found.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
        else:
            found.append(None if match[2] == "NULL" else match[2])
    return found


def _typed(values: Any, type_: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(type_):
        return pc.equal(values, "t")
    return values.cast(type_)


def _braces(lists: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = lists.flatten()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        escaped = pc.replace_substring(pc.replace_substring(values.cast(pa.string()), "\\", "\\\\"), '"', '\\"')
        values = pc.binary_join_element_wise('"', escaped, '"', "")
    return _joined(lists, pc.fill_null(_string_of(values), "NULL"), "{", "}")


def _string_of(values: Any) -> Any:
    import pyarrow as pa

    return values.cast(pa.string())


def _joined(lists: Any, values: Any, before: str, after: str) -> Any:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(before, pc.binary_join(_lists(lists, values), ","), after, "")


def _lists(like: Any, values: Any) -> Any:
    """Other values in the same lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(like), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=like.is_null())
