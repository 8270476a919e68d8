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
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given, strategies as st

import howdah
from howdah import BackendError, Corrupt, SetupRequired, StartupError
from howdah.engines.sql.filemoves import Moves
from howdah.engines.sql.rowfiles import file_name
from howdah.migrations import Migration, MigrationProgress, add_column, backfill
from howdah.schema import from_spec
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
from howdah.engines.sql.filemoves import Moves
step = sys.argv[2]
def die(*_): os._exit(9)
with howdah.connect("files:" + sys.argv[1]) as store:
    kv = store.kv("k")
    kv.put("before", 1)
    if step == "publish":
        Moves.publish = die
    elif step == "prepare":
        Moves._flush = die
    else:
        move = Moves.place
        def once(self, *arguments):
            move(self, *arguments)
            os._exit(9)
        Moves.place = once
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
        real, calls = Moves.put, []

        def full(self: Moves, target: str, data: bytes) -> Any:
            calls.append(target)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, target, data)

        monkeypatch.setattr(Moves, "put", full)
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

        monkeypatch.setattr(Moves, "place", refuse)
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


class Wide(pydantic.BaseModel):
    id: str
    text: str
    color: str | None = None


def wide(store: howdah.Store) -> Any:
    return store.table("note", Wide, key="id")


def plain(store: howdah.Store) -> Any:
    return store.table("note", {**NOTE}, key="id")


NOTE = {
    "properties": {"id": {"type": "string"}, "text": {"type": "string"}},
    "required": ["id", "text"],
}


def agree(place: Path, table: str) -> None:
    """The files are those of the rows, now and with the index lost."""
    with open_notes(place) as store:
        there = {r["id"]: r for r in store._run(_rows(store, table))}
    assert {r["id"] for r in rows_of(place / table).values()} == set(there)
    shutil.rmtree(place / ".howdah")
    with open_notes(place) as store:
        assert {r["id"]: r for r in store._run(_rows(store, table))} == there


async def _rows(store: howdah.Store, table: str) -> list[Any]:
    engine = store._async._engine
    ops = engine.table(from_spec(table, (await engine.catalog())[table]), table)
    read = ops.reader(ops.schema.names)
    return [read(r) for r in await engine.read(lambda: ops.select(None, (), names=ops.schema.names, limit=None))]


def test_a_table_that_is_dropped_and_made_anew_is_followed(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store, open_notes(place) as other:
        plain(store).put_many([{"id": i, "text": i} for i in "abc"])
        plain(other).put({"id": "d", "text": "d"})
        with store.transaction() as tx:
            plain(tx).drop()
            plain(tx).put({"id": "new", "text": "x"})
        plain(store).put({"id": "later", "text": "x"})
        plain(other).put({"id": "other", "text": "x"})
        plain(store).drop()
        wide(store).put(Wide(id="r", text="t", color="red"))
        wide(other).put(Wide(id="s", text="t", color="blue"))
        assert rows_of(place / "note")["s.json"]["color"] == "blue"
    agree(place, "note")


def test_rows_deleted_while_the_shape_changes_take_their_files_along(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        plain(store).put_many([{"id": i, "text": i} for i in "abc"])
    with open_notes(place) as store:
        gone = Migration(1, backfill(lambda row: howdah.DELETE if row["id"] == "a" else None))
        table = store.table("note", NOTE, key="id", migrations=[gone])
        assert table.count() == 2
    agree(place, "note")
    with open_notes(place) as store, store.transaction() as tx:
        store.table("note", NOTE, key="id", migrations=[gone]).delete("b")
        tx.table("note", Wide, key="id", migrations=[gone]).put(Wide(id="z", text="z"))
    agree(place, "note")


def test_an_edited_key_makes_another_row(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
    (place / "note" / "a.json").write_text('{"id": "z", "text": "one", "stars": 0}')
    for _ in range(2):
        with open_notes(place) as store:
            assert [n.id for n in notes(store).query()] == ["z"]
    assert set(rows_of(place / "note")) == {"z.json"}


def test_one_file_in_the_way_stops_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        table = notes(store)
        table.put(Note(id="a", text="one"))
        (place / "note" / "b.json").mkdir()
        with pytest.raises(BackendError, match=r"b\.json.*the write itself is stored"):
            table.put(Note(id="b", text="two"))
        table.put(Note(id="c", text="three"))
        store.kv("k").put("x", 1)
        assert table.count() == 3
        (place / "note" / "b.json").rmdir()
        table.put(Note(id="d", text="four"))
        assert set(rows_of(place / "note")) == {"a.json", "b.json", "c.json", "d.json"}


def test_a_dropped_table_leaves_what_is_not_its_own_and_may_come_back(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
        shutil.copytree(place / "note", tmp_path / "kept")
        (place / "note" / "README.md").write_text("mine")
        notes(store).drop()
        assert [f.name for f in (place / "note").iterdir()] == ["README.md"]
    shutil.rmtree(place / "note")
    shutil.copytree(tmp_path / "kept", place / "note")  # from a backup, say
    with open_notes(place) as store:
        assert notes(store).count() == 1


def test_other_folders_and_lost_marks_do_not_matter(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="a", text="one"))
    (place / ".vscode").mkdir()
    (place / ".vscode" / "settings.json").write_text("{}")
    (place / "howdah.json").unlink()
    (place / "note" / "_table.json").unlink()
    with open_notes(place) as store:
        assert notes(store).count() == 1
    assert (place / "howdah.json").exists()
    assert (place / "note" / "_table.json").exists()


def test_a_shape_that_grew_elsewhere_is_taken_over(tmp_path: Path) -> None:
    with open_notes(tmp_path / "a") as store:
        plain(store).put({"id": "a", "text": "one"})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with open_notes(tmp_path / "b") as store:
        wide(store).put(Wide(id="b", text="two", color="red"))
    for file in (tmp_path / "b" / "note").iterdir():  # as a pull does
        shutil.copy(file, tmp_path / "a" / "note" / file.name)
    with open_notes(tmp_path / "a") as store:
        assert wide(store).get("b") == Wide(id="b", text="two", color="red")
    agree(tmp_path / "a", "note")


def test_generated_keys_go_on_when_the_index_is_lost(tmp_path: Path) -> None:
    place = tmp_path / "n"
    model = {"properties": {"id": {"type": "integer", "x-auto-generated": True}, "x": {"type": "string"}}}
    with open_notes(place) as store:
        table = store.table("auto", model, key="id")
        table.put_many([{"x": "a"}, {"x": "b"}, {"x": "c"}])
        table.delete(3)
    shutil.rmtree(place / ".howdah")
    with open_notes(place) as store:
        assert store.table("auto", model, key="id").put({"x": "d"})["id"] == 4


class Typed(pydantic.BaseModel):
    id: str
    money: Decimal | None = None
    who: UUID | None = None
    mail: str | None = None


def test_hand_written_values(tmp_path: Path) -> None:
    place = tmp_path / "n"

    def open_typed(store: howdah.Store) -> Any:
        return store.table(Typed, key="id", unique=["mail"])

    with open_notes(place) as store:
        open_typed(store).put_many([Typed(id="a", mail="x"), Typed(id="b", mail="y")])
    folder = place / "typed"
    (folder / "a.json").write_text('{"id": "a", "mail": "y", "who": null, "money": "0.1"}')
    (folder / "b.json").write_text('{"id": "b", "mail": "x"}')
    with open_notes(place) as store:  # they have changed places
        assert open_typed(store).get("a") == Typed(id="a", mail="y", money=Decimal("0.1"))
    for text, told in (
        ('{"id": "a", "money": 0.1}', "money"),
        ('{"id": "a", "who": 5}', "who"),
        ('{"id": "a", "who": {}}', "who"),
        ('{"id": "a", "mail": "x"}', "mail"),
    ):
        (folder / "a.json").write_text(text)
        with pytest.raises(Corrupt, match=told):
            open_notes(place)
    (folder / "a.json").write_text('{"id": "a"}')
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Corrupt, match=r"gone\.json"):
        open_notes(place)


def test_two_files_of_one_row_are_found_however_many_there_are(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with open_notes(place) as store:
        notes(store).put(Note(id="x", text="x"))
    for name in ("aa copy", *(f"m{n}" for n in range(600)), "zz copy"):
        id = "same" if "copy" in name else name
        (place / "note" / f"{name}.json").write_text(json.dumps({"id": id, "text": name, "stars": 1}))
    with pytest.raises(Corrupt, match="same key"):
        open_notes(place)
    assert (place / "note" / "aa copy.json").exists()


def test_a_store_that_others_set_up_later_is_followed(tmp_path: Path) -> None:
    place = tmp_path / "n"
    with howdah.connect(f"files:{place}", create=False) as late:
        with open_notes(place) as store:
            notes(store).put(Note(id="b", text="two"))
        notes(late).put(Note(id="a", text="one"))
    assert set(rows_of(place / "note")) == {"a.json", "b.json"}
