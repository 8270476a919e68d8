"""How values travel: JSON as Python values, vectors as lists or NumPy arrays in and as arrays out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from ..values import encode_json, json_for_jsonb, json_from_jsonb

# jsonb's binary form is a version, 1, and the text; pgvector's u16 length, u16 zero, and big-endian numbers.
_VERSION = b"\x01"
_HEAD = 4


def _json_out(value: Any) -> bytes:
    return json_for_jsonb(encode_json(value, "a JSON parameter")).encode()


def _vector_out(dtype: str) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, (bytes, bytearray)) or value is None:
            raise ValueError("expected a list of numbers, a NumPy array or text such as [1,2,3]")
        numbers = np.asarray(value, dtype=dtype)
        if numbers.ndim != 1:
            raise ValueError(f"expected a list of numbers or an array of one dimension, got {numbers.ndim}")
        return len(numbers).to_bytes(2, "big") + b"\0\0" + numbers.tobytes()

    return encode


def _parsed(text: str) -> Any:
    """The numbers of a vector's text; ``None`` if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def _vector_in(dtype: str, native: Any) -> Callable[[bytes], np.ndarray]:
    return lambda data: np.frombuffer(data, dtype, offset=_HEAD).astype(native)


async def prepare(connection: Any) -> None:
    """Give a connection these forms; vectors only where the server has pgvector."""
    forms: list[tuple[str, str, Callable[[Any], bytes], Callable[[bytes], Any]]] = [
        ("json", "pg_catalog", _json_out, lambda data: json_from_jsonb(data.decode())),
        (
            "jsonb",
            "pg_catalog",
            lambda value: _VERSION + _json_out(value),
            lambda data: json_from_jsonb(data[1:].decode()),
        ),
    ]
    where = await connection.fetchval(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    if where is not None:
        forms += [
            ("vector", where, _vector_out(">f4"), _vector_in(">f4", np.float32)),
            ("halfvec", where, _vector_out(">f2"), _vector_in(">f2", np.float16)),
        ]
        # A scan goes on until it has as many rows as were asked, whatever a filter leaves out.
        await connection.execute(
            "SET hnsw.iterative_scan = strict_order; SET hnsw.max_scan_tuples = 2147483647;"
            " SET hnsw.scan_mem_multiplier = 1000; SET ivfflat.iterative_scan = relaxed_order"
        )
    for name, schema, encoder, decoder in forms:
        await connection.set_type_codec(name, schema=schema, encoder=encoder, decoder=decoder, format="binary")
