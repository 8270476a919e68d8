"""A whole store as a file: between any two engines, and back to the very same bytes."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import numpy as np
import pydantic
import pytest

import howdah
from howdah import Auto, Conflict, Corrupt, Store, Vector
from tests.conftest import open_store


class Everything(pydantic.BaseModel):
    id: Annotated[int | None, Auto] = None
    text: str
    number: float
    flag: bool
    at: datetime
    uuid: UUID
    money: Decimal
    data: bytes
    any: Any = None
    tags: list[str] = []
    note: str | None = None


def fill(store: Store) -> None:
    table = store.table(Everything, key="id", indexes=["flag"], unique=["uuid"], text={"text": 2})
    table.put_many(
        Everything(
            text=f"word{i % 7} é\u2028 {'x' * (i % 50)}",
            number=[0.0, -0.0, 1e16, 5e-324, math.pi, -1.5][i % 6],
            flag=bool(i % 2),
            at=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=i),
            uuid=UUID(int=i),
            money=Decimal(f"{i}.50"),
            data=bytes([i % 256, 0]),
            any=[None, {"b": 1, "a": [1.0, 1e16, -0.0]}, "x", False][i % 4],
            tags=["a"] * (i % 3),
        )
        for i in range(2345)
    )
    store.kv("k").put_many({"none": None, "zero": 0, "": {"x": 1e16}, "é": [1, 1.0, -0.0, True]})
    store.kv("k").put("ttl", 1, ttl=1000)
    store.kv("ints", key=int).put(-5, "x")
    store.records("r").put("a", {"n": None})
    vectors = store.vectors("v", dim=3, sparse_dim=9, text={"content": 1}, model="some-model")
    vectors.put(Vector("a", dense=[1, 2, 3], sparse=([1, 4], [0.5, -1]), metadata={"k": 1}, content="hello world"))
    store.vectors("half", dim=2, dtype="float16").put(Vector("h", dense=[0.1, 2]))
    store.blobs("b").put("dir/file", bytes(range(256)) * 3000, metadata={"w": 1})
    queue = store.queue("q", scope={"tenant": "t"})
    queue.add_many([None, 1, {"a": 1}])
    queue.schedule("0 0 * * *", "nightly", id="n")
    claim = queue.claim("w")
    assert claim is not None
    claim.ack([1])


def look(store: Store) -> None:
    table = store.table(Everything, key="id", indexes=["flag"], unique=["uuid"], text={"text": 2})
    assert table.count() == 2345
    row = table.get(2)
    assert row is not None
    assert math.copysign(1, row.number) == -1
    assert row.any == {"b": 1, "a": [1.0, 1e16, -0.0]}
    assert row.money == Decimal("1.50")
    assert len(table.search(text="word3", limit=300)) >= 300
    assert table.put(row.model_copy(update={"id": None, "uuid": UUID(int=10**6)})).id > 2345
    table.delete(table.query(order_by="-id").first().id)  # type: ignore[union-attr]  # it is there
    kv = store.kv("k")
    assert kv.get("none", default="absent") is None
    assert kv.has("none")
    assert repr(kv.get("é")) == "[1, 1.0, -0.0, True]"
    assert kv.get_versioned("ttl").expires_at is not None
    vectors = store.vectors("v", dim=3, sparse_dim=9, text={"content": 1}, model="some-model")
    hit = vectors.search([1, 2, 3], sparse=([1], [1]), text="hello")[0]
    assert hit.key == "a"
    with pytest.raises(howdah.EmbeddingMismatch):
        store.vectors("v", dim=3, sparse_dim=9, text={"content": 1}, model="other").count()
    found = store.vectors("half", dim=2, dtype="float16").get("h")
    assert found is not None
    assert np.array_equal(found.dense, np.array([0.1, 2], np.float16))
    assert store.blobs("b").get("dir/file") == bytes(range(256)) * 3000
    queue = store.queue("q", scope={"tenant": "t"})
    assert queue.output_for(None) == [1]
    assert len(queue.claim_many("w", limit=9)) == 2


@pytest.mark.parametrize("other", ["sqlite", "pg", "memory"])
@pytest.mark.parametrize("engine", ["sqlite", "pg"], indirect=True)
def test_there_and_back_again(
    engine: str, other: str, store: Store, url_for: Callable[[str], str], clock: Any, tmp_path: Path
) -> None:
    fill(store)
    seen: list[tuple[str, int]] = []
    made = store.export(tmp_path / "one.howdah", on_progress=lambda name, rows: seen.append((name, rows)))
    assert ("everything", 2345) in seen
    assert made.tables > 8
    assert not (tmp_path / "one.howdah.part").exists()
    with open_store(other, url_for(other), clock=clock) as second:
        assert second.import_from(tmp_path / "one.howdah") == made
        assert second.export(tmp_path / "two.howdah") == made
        assert (tmp_path / "one.howdah").read_bytes() == (tmp_path / "two.howdah").read_bytes()
        with open_store(engine, url_for(engine), clock=clock) as third:
            third.import_from(tmp_path / "two.howdah")
            third.export(tmp_path / "three.howdah.gz")
            with gzip.open(tmp_path / "three.howdah.gz") as packed:
                assert packed.read() == (tmp_path / "one.howdah").read_bytes()
        look(second)


def test_damaged_files_are_refused_before_anything_is_written(store: Store, tmp_path: Path, engine: str) -> None:
    store.kv("k").put_many({str(i): i for i in range(100)})
    path = tmp_path / "x.howdah"
    store.export(path)
    whole = path.read_bytes()
    store.kv("k").clear()
    lines = whole.splitlines(keepends=True)
    for bad in (
        whole[:-20],
        whole[:500],
        whole.replace(b"57", b"58", 1),
        b"".join(lines[:-1]),
        b"".join(lines[:5] + lines[6:]),
    ):
        path.write_bytes(bad)
        with pytest.raises(Corrupt):
            store.import_from(path)
    for bad in (b"{}\n", b'{"howdah":99}\n'):
        path.write_bytes(bad)
        with pytest.raises(howdah.InvalidInput):
            store.import_from(path)
    with pytest.raises(howdah.NotFound):
        store.import_from(tmp_path / "missing")
    with pytest.raises(howdah.BackendError):
        store.export(tmp_path / "no" / "such" / "folder")
    assert store.kv("k").count() == 0
    path.write_bytes(whole)
    store.import_from(path)
    assert store.kv("k").count() == 100
    with pytest.raises(Conflict):
        store.import_from(path)
    with store.transaction(), pytest.raises(howdah.TransactionError):
        store.export(path)


def test_an_import_goes_on_where_it_stopped(
    store: Store, engine: str, url_for: Callable[[str], str], tmp_path: Path
) -> None:
    store.kv("a").put_many({str(i): i for i in range(3500)})
    store.kv("b").put_many({str(i): i for i in range(3500)})
    made = store.export(tmp_path / "x")

    class Stop(Exception):
        pass

    def stop(name: str, rows: int) -> None:
        if name.endswith("b") and rows >= 2000:
            raise Stop

    with open_store(engine, url_for(engine)) as second:
        with pytest.raises(Stop):
            second.import_from(tmp_path / "x", on_progress=stop)
        assert 0 < second.kv("b").count() < 3500
        assert second.import_from(tmp_path / "x") == made
        assert second.kv("b").count() == second.kv("a").count() == 3500
        assert second.export(tmp_path / "y") == made
