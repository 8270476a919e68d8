"""``files:``: one readable JSON file per row, whatever crashes, is edited by hand or is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, strategies as st

import howdah
from howdah import BackendError, Corrupt, SetupRequired, StartupError
from howdah.engines.sql.mirror import Mirror
from howdah.engines.sql.rowfiles import file_name
from howdah.migrations import Migration, MigrationProgress, add_column
from tests.contract.test_portability import fill, look


class Note(pydantic.BaseModel):
    id: str
    text: str
    stars: int = 0


def rows_of(folder: Path) -> dict[str, Any]:
    return {f.name: json.loads(f.read_text()) for f in folder.iterdir() if not f.name.startswith("_")}


def notes(store: howdah.Store) -> Any:
    return store.table(Note, key="id", text={"text": 1})


def open_notes(place: Path) -> howdah.Store:
    return howdah.connect(f"files:{place}")


@given(st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_unlike_keys_have_files_that_no_file_system_takes_for_one(keys: list[str]) -> None:
    names = [file_name([k]) for k in keys]
    assert len({unicodedata.normalize("NFC", n).casefold() for n in names}) == 2
    for name in names:
        assert len(name.encode()) <= 255
        assert "/" not in name
        assert not name.startswith((".", "_"))


def test_names_are_readable() -> None:
    assert file_name(["user:1"]) == "user%3a1.json"
    assert file_name(["a", 7]) == "a,7.json"
    assert file_name(["a,7"]) == "a%2c7.json"
    assert file_name(["Alice"]).startswith("Alice~")


def test_each_row_is_a_file_that_follows_it(tmp_path: Path) -> None:
    with open_notes(tmp_path / "n") as store:
        table = notes(store)
        table.put_many([Note(id="a", text="one"), Note(id="b", text="two")])
        folder = tmp_path / "n" / "note"
        assert rows_of(folder)["a.json"] == {"id": "a", "text": "one", "stars": 0}
        with pytest.raises(RuntimeError), store.transaction() as tx:
            notes(tx).put(Note(id="c", text="never"))
            raise RuntimeError
        assert set(rows_of(folder)) == {"a.json", "b.json"}
        table.update_one({"id": "a"}, {"stars": 5})
        assert rows_of(folder)["a.json"]["stars"] == 5
        table.delete("b")
        assert set(rows_of(folder)) == {"a.json"}
        table.drop()
        assert not folder.exists()
        assert not list((tmp_path / "n" / ".howdah" / "moves").iterdir())


def test_what_is_edited_added_or_removed_by_hand_counts_at_the_next_opening(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put_many(Note(id=i, text=f"old {i}") for i in "abc")
    folder = place / "note"
    (folder / "a.json").write_text('{"id": "a", "text": "written by hand", "stars": 3}')
    (folder / "b.json").unlink()
    (folder / "my own name.json").write_text('{"id": "d", "text": "brand new", "stars": 1}')
    with open_notes(place) as store:
        table = notes(store)
        assert [n.id for n in table.query(order_by="id")] == ["a", "c", "d"]
        assert table.get("a") == Note(id="a", text="written by hand", stars=3)
        assert [h.key for h in table.search(text="brand")] == ["d"]
    assert set(rows_of(folder)) == {"a.json", "c.json", "d.json"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"id": "a", "te', "cannot be read"),
        ("[1]", "JSON object"),
        ('{"id": "a", "stars": 1}', "'text' is missing"),
        ('{"id": "a", "text": 5, "stars": 1}', "column 'text'"),
        ('{"id": "a", "text": "x", "stars": 1, "color": "red"}', "no column 'color'"),
        ('{"id": "b", "text": "x", "stars": 1}', "same key"),
        ('{"id": "a", "text": "x", "stars": NaN}', "NaN"),
        ("\ud800", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_dropped(tmp_path: Path, text: str, told: str) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put_many(Note(id=i, text=f"old {i}") for i in "ab")
    file = place / "note" / "a.json"
    before = file.read_bytes()
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Corrupt, match=told) as caught:
        open_notes(place)
    assert "a.json" in str(caught.value)
    assert file.read_bytes() == text.encode("utf-8", "surrogatepass")
    file.write_bytes(before)
    with open_notes(place) as store:
        assert notes(store).count() == 2


def test_the_files_are_the_whole_store(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        fill(store)
        store.export(tmp_path / "before")
    shutil.rmtree(place / ".howdah")
    with open_notes(place) as store:
        store.export(tmp_path / "after")
        look(store)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


def test_a_lost_folder_is_written_again(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
    shutil.rmtree(place / "note")
    with open_notes(place) as store:
        assert notes(store).get("a") is not None
    assert set(rows_of(place / "note")) == {"a.json"}


def test_clearing_and_losing_the_index_keep_the_record_of_migrations(tmp_path: Path) -> None:
    place = tmp_path / "n"
    ran: list[MigrationProgress] = []
    first = {"title": "m", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    second = {**first, "properties": {**first["properties"], "x": {"type": "integer"}}}  # type: ignore[dict-item]  # both are mappings
    with open_notes(place) as store:
        store.table(first, key="id").put({"id": "a"})
    migrations = [Migration(1, add_column("x", {"type": "integer"}, default=1), description="x")]
    for _ in range(2):
        with open_notes(place) as store:
            table = store.table(second, key="id", migrations=migrations)
            store.migrate([table], on_progress=ran.append)
            table.clear()
        shutil.rmtree(place / ".howdah")
    assert [r.phase for r in ran] == ["starting", "running", "completed"]
    assert json.loads((place / "howdah.json").read_text())["migrations"][0][1] == 1


DIE = """
import os, sys, howdah
from howdah.engines.sql.mirror import Mirror
step = sys.argv[2]
def die(*_): os._exit(9)
with howdah.connect("files:" + sys.argv[1]) as store:
    kv = store.kv("k")
    kv.put("before", 1)
    if step == "publish":
        Mirror.publish = die
    elif step == "prepare":
        Mirror._flush = die
    else:
        move = Mirror._place
        def once(self, *arguments):
            move(self, *arguments)
            os._exit(9)
        Mirror._place = once
    kv.put_many({"a": 1, "b": 2}); kv.delete("before")
"""


@pytest.mark.parametrize("step", ["prepare", "publish", "half"])
def test_whoever_comes_next_finishes_what_a_crash_left(tmp_path: Path, step: str) -> None:
    place = tmp_path / "n"
    done = subprocess.run([sys.executable, "-c", DIE, str(place), step], check=False)
    assert done.returncode == 9
    with open_notes(place) as store:
        there = dict(store.kv("k").scan())
        assert there == ({"before": 1} if step == "prepare" else {"before": 1, "a": 1, "b": 2})
    found = {r["key"]: r["value"] for r in rows_of(place / "_kv_k").values()}
    assert found == there
    assert not list((place / ".howdah" / "moves").iterdir())


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_notes(tmp_path / "n") as store:
        table = notes(store)
        table.put(Note(id="a", text="one"))
        real, calls = Mirror._put, []

        def full(self: Mirror, moves: Any, target: str, data: bytes) -> Any:
            calls.append(target)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, moves, target, data)

        monkeypatch.setattr(Mirror, "_put", full)
        with pytest.raises(BackendError, match="No space left"):
            table.put_many(Note(id=i, text=i) for i in "bcde")
        monkeypatch.undo()
        assert table.count() == 1
        assert set(rows_of(tmp_path / "n" / "note")) == {"a.json"}
        assert not list((tmp_path / "n" / ".howdah" / "moves").iterdir())
        table.put(Note(id="b", text="b"))
        assert set(rows_of(tmp_path / "n" / "note")) == {"a.json", "b.json"}


def test_a_file_that_cannot_take_its_place_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_notes(tmp_path / "n") as store:
        table = notes(store)
        table.put(Note(id="a", text="one"))

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.json")

        monkeypatch.setattr(Mirror, "_place", refuse)
        with pytest.raises(BackendError, match="the write itself is stored"):
            table.put(Note(id="a", text="two"))
        monkeypatch.undo()
        assert table.get("a") == Note(id="a", text="two")
        table.put(Note(id="b", text="b"))
        assert rows_of(tmp_path / "n" / "note")["a.json"]["text"] == "two"


WRITE = """
import sys, howdah
with howdah.connect("files:" + sys.argv[1]) as store:
    for n in range(25):
        store.kv("k").put(f"{sys.argv[2]}-{n}", n)
        store.records(f"r{n}").put(sys.argv[2], {"n": n})
"""


def test_many_processes_make_tables_and_write(tmp_path: Path) -> None:
    place = tmp_path / "n"
    workers = [subprocess.Popen([sys.executable, "-c", WRITE, str(place), str(n)]) for n in range(4)]
    assert [w.wait() for w in workers] == [0] * 4
    assert len(rows_of(place / "_kv_k")) == 100
    assert all(len(rows_of(place / f"_rec_r{n}")) == 4 for n in range(25))
    with open_notes(place) as store:
        assert store.kv("k").count() == 100


def test_few_file_handles_are_enough(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_notes(tmp_path / "n") as store:
        used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
        try:
            store.kv("k").put_many({f"key-{n}": n for n in range(2000)})
            assert store.kv("k").clear() == 2000
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not rows_of(tmp_path / "n" / "_kv_k")


def test_strange_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StartupError, match=r"letter\.txt"):
        open_notes(tmp_path / "mine")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be used"):
        open_notes(tmp_path / "file")
    with pytest.raises(StartupError, match="cannot be used"):
        open_notes(tmp_path / "none" / "deeper")


def test_a_folder_without_its_declaration_is_not_passed_over(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
    shutil.rmtree(place / ".howdah")
    (place / "note" / "_table.json").unlink()
    with pytest.raises(Corrupt, match=r"_table\.json"):
        open_notes(place)


def test_without_create_a_lost_index_is_not_built(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
    shutil.rmtree(place / ".howdah")
    with pytest.raises(SetupRequired, match="index of its files"):
        howdah.connect(f"files:{place}", create=False)
