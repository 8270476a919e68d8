"""Blobs on every engine, in rows and on object storage."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from howdah import InvalidInput, InvalidKey, InvalidValue, LimitExceeded, NotFound, Store, Unsupported
from tests.conftest import Clock

BIG = bytes(range(256)) * 5000


@pytest.fixture(params=["rows", "objects", "s3"])
def blobs(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Any:
    if request.param == "s3":
        return store.blobs("b", at=request.getfixturevalue("s3"))
    return store.blobs("b", at=None if request.param == "rows" else f"file://{tmp_path}/objects")


def test_put_and_get(blobs: Any) -> None:
    ref = blobs.put("images/a b%é.png", BIG, mime_type="image/png", metadata={"w": 3})
    assert ref.size == len(BIG)
    assert ref.sha256 == hashlib.sha256(BIG).hexdigest()
    assert ref.uri == "howdah-blob://b/images/a%20b%25%C3%A9.png"
    for handle in (ref, ref.uri, ref.key):
        assert blobs.get(handle) == BIG
    stat = blobs.stat(ref.uri)
    assert stat == ref
    assert stat.metadata == {"w": 3}
    assert blobs.get("missing") is None
    assert blobs.stat("missing") is None
    with pytest.raises(NotFound, match="howdah-blob://b/missing"):
        blobs.open("missing")


def test_sources(blobs: Any) -> None:
    text = blobs.put("t", "naïve")
    assert (text.mime_type, text.size) == ("text/plain; charset=utf-8", 6)
    assert blobs.open("t").text() == "naïve"
    assert blobs.put("f", io.BytesIO(BIG)).size == len(BIG)
    assert (
        blobs.put("i", (BIG[i : i + 1000] for i in range(0, len(BIG), 1000))).sha256 == hashlib.sha256(BIG).hexdigest()
    )
    assert blobs.get("i") == BIG
    assert blobs.put("empty", b"").size == 0
    assert blobs.get("empty") == b""
    random = blobs.put(None, b"x")
    assert blobs.get(random.key) == b"x"
    for bad in (5, None, ["text"], [1]):
        with pytest.raises(InvalidValue):
            blobs.put("bad", bad)
    assert blobs.stat("bad") is None


def test_streams_and_ranges(blobs: Any) -> None:
    blobs.put("k", BIG)
    blob = blobs.open("k")
    assert b"".join(blob) == BIG
    for start, stop in (
        (0, 1),
        (0, 10**9),
        (262_143, 262_145),
        (len(BIG) - 1, len(BIG)),
        (5, 5),
        (10**8, 10**9),
        (0, 262_144),
    ):
        assert blob.range(start, stop) == BIG[start:stop]
    for start, stop in ((-1, 5), (5, 4)):
        with pytest.raises(InvalidInput):
            blob.range(start, stop)
    with pytest.raises(InvalidValue):
        blob.text()


def test_overwriting_replaces_everything_and_lets_readers_finish(store: Store) -> None:
    blobs = store.blobs("b")
    blobs.put("k", BIG, metadata={"v": 1})
    reader = iter(blobs.open("k"))
    first = next(reader)
    ref = blobs.put("k", b"new")
    assert first + b"".join(reader) == BIG
    assert (blobs.get("k"), blobs.stat("k")) == (b"new", ref)
    assert ref.metadata is None


def test_the_limit_holds_while_streaming(store: Store, tmp_path: Path) -> None:
    for at in (None, f"file://{tmp_path}/o"):
        blobs = store.blobs("small", max_bytes=300_000, at=at)
        with pytest.raises(LimitExceeded, match="300,000"):
            blobs.put("k", (b"x" * 100_000 for _ in range(100)))
        assert blobs.get("k") is None
        assert blobs.count() == 0
    assert [p for p in (tmp_path / "o").rglob("*") if p.is_file()] == []
    blobs = store.blobs("small", max_bytes=300_000)
    blobs.put("k", b"x" * 300_000)
    with pytest.raises(LimitExceeded):
        blobs.put("k", b"x" * 300_001)
    assert len(blobs.get("k") or b"") == 300_000
    with pytest.raises(LimitExceeded):
        store.blobs("default").put("k", b"x" * (10 * 1024 * 1024 + 1))


def test_a_failing_source_leaves_nothing(blobs: Any) -> None:
    def broken() -> Any:
        yield b"x" * 600_000
        raise KeyError("source")

    with pytest.raises(KeyError):
        blobs.put("k", broken())
    assert blobs.stat("k") is None


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\\b", "a\0", "x" * 1025, 5])
def test_keys_are_relative_paths(store: Store, key: Any) -> None:
    with pytest.raises(InvalidKey):
        store.blobs("b").put(key, b"x")
    with pytest.raises(InvalidKey):
        store.blobs("b").get("howdah-blob://other/key")


def test_list_delete_count_clear(blobs: Any) -> None:
    for number in range(5):
        blobs.put(f"d/{number}", b"x", metadata={"even": number % 2 == 0})
    blobs.put("e", b"y")
    assert [r.key for r in blobs.list("d/").items] == [f"d/{i}" for i in range(5)]
    assert [r.key for r in blobs.list(where={"even": True}).items] == ["d/0", "d/2", "d/4"]
    page = blobs.list(limit=4)
    assert [r.key for r in blobs.list(limit=4, cursor=page.next_cursor).items] == ["d/4", "e"]
    assert blobs.count() == 6
    assert blobs.delete("e") is True
    assert blobs.delete("e") is False
    assert blobs.get("e") is None
    assert blobs.clear() == 5
    assert blobs.count() == 0


def test_blobs_take_part_in_transactions(store: Store) -> None:
    blobs = store.blobs("b")
    blobs.put("old", b"old")
    with pytest.raises(KeyError), store.transaction() as tx:
        tx.blobs("b").put("k", BIG)
        tx.blobs("b").put("old", b"new")
        assert blobs.get("k") == BIG
        raise KeyError
    assert blobs.get("k") is None
    assert blobs.get("old") == b"old"


def test_bytes_that_nothing_names_are_swept(store: Store, clock: Clock) -> None:
    blobs = store.blobs("b")
    blobs.put("k", BIG)
    blobs.put("k", b"new")
    blobs.delete("k")
    bodies = store._run(blobs._async._bodies.count())
    clock.now += 1000
    assert store._run(blobs._async._bodies.count()) == 0
    assert bodies > 0
    store.maintain()


def test_urls_need_a_bucket(blobs: Any, request: pytest.FixtureRequest) -> None:
    blobs.put("k", b"x")
    with pytest.raises(NotFound):
        blobs.url("missing")
    if "s3" in request.node.callspec.id.split("-"):
        with urlopen(blobs.url("k")) as answer:
            assert answer.read() == b"x"
    else:
        with pytest.raises(Unsupported):
            blobs.url("k")


def test_scoped_blobs(store: Store) -> None:
    one, two = store.scoped("1").blobs("b"), store.scoped("2").blobs("b")
    one.put("k", b"1")
    two.put("k", b"2")
    assert (one.get("k"), two.get("k")) == (b"1", b"2")
    assert [r.key for r in one.list().items] == ["k"]
    assert one.count() == 1


NOTES = {
    "title": "notes",
    "properties": {"id": {"type": "integer"}, "file": {"type": "string"}, "size": {"type": "integer"}},
    "required": ["id"],
}


@pytest.mark.parametrize("place", ["rows", "objects"])
def test_blobs_that_no_row_owns_are_collected(store: Store, clock: Clock, tmp_path: Path, place: str) -> None:
    notes = store.table(NOTES, key="id")
    more = store.records("more")
    at = None if place == "rows" else f"file://{tmp_path}/objects"
    blobs = store.blobs("files", at=at, owner=[(notes, "file"), (more.table, "key")], grace=3600)
    by_uri, by_key = blobs.put("a b.txt", b"1"), blobs.put("sub/b.txt", b"2")
    blobs.put("third", b"3")
    blobs.put("nobody's", b"4")
    notes.put_many([{"id": 1, "file": by_uri.uri}, {"id": 2, "file": by_key.key}, {"id": 3, "file": None}])
    more.put("third", {})
    assert blobs.collect() == 0  # too young
    clock.now += 3601
    young = blobs.put("young", b"5")  # a write looks by itself
    assert sorted(r.key for r in blobs.list().items) == ["a b.txt", "sub/b.txt", "third", "young"]
    notes.delete(1)
    clock.now += 100
    assert blobs.collect() == 1
    assert blobs.get(by_uri) is None
    assert blobs.get(by_key) == b"2"
    assert blobs.get(young) == b"5"


def test_owners_are_columns_of_text(store: Store) -> None:
    notes = store.table(NOTES, key="id")
    for owner in ("notes", (notes,), (notes, "size"), (notes, "nothing"), (5, "file"), [(notes, "file"), None]):
        with pytest.raises(InvalidInput):
            store.blobs("files", owner=owner)
    with pytest.raises(InvalidInput):
        store.blobs("files").collect()
    with pytest.raises(InvalidValue):
        store.blobs("files", owner=(notes, "file"), grace=-1)
