"""The command line: documents in, answers out, errors as one line, statuses that scripts can use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from howdah import Database, JobStatus, connect


@pytest.fixture
def home(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "keys.md").write_text(
        "---\ntopic: security\n---\n# Rotating keys\n\nMake a new key, then revoke the old one.\n"
    )
    (docs / "soup.md").write_text("# Soup\n\nSoup is served on Mondays.\n")
    (docs / "bad.md").write_bytes(b"\0\1\2")
    return tmp_path


def howdah(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HOWDAH_")}
    return subprocess.run(
        [sys.executable, "-m", "howdah.cli.main", *arguments],
        cwd=home,
        env={**kept, "XDG_DATA_HOME": str(home / "data"), "HOWDAH_EMBEDDER": "none", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("store", ["a.db", "pg"])
def test_index_search_get_status(home: Path, store: str, request: pytest.FixtureRequest) -> None:
    url = store
    if store == "pg":
        url = request.getfixturevalue("url_for")("pg")
    report = told(howdah(home, "index", "docs", "--store", url, "--json"))
    assert (report["added"], report["skipped"]) == (2, 1)
    assert report["problems"] == [["docs/bad.md", "not_text"]]
    assert told(howdah(home, "index", "docs", "--store", url, "--json"))["unchanged"] == 2
    hits = told(howdah(home, "search", "how are keys rotated?", "--store", url, "--json", "--explain"))
    assert hits[0]["path"] == "keys.md"
    assert set(hits[0]) == {
        "id",
        "uri",
        "collection",
        "path",
        "line",
        "score",
        "title",
        "metadata",
        "snippet",
        "explain",
    }
    shown = howdah(home, "search", "soup", "--store", url)
    assert "howdah://docs/soup.md" in shown.stdout
    assert "text only" in shown.stderr
    assert (
        told(howdah(home, "search", "keys", "--store", url, "--json", "--where", "topic=security"))[0]["path"]
        == "keys.md"
    )
    assert told(howdah(home, "search", "zzz", "--store", url, "--json")) == []
    assert told(howdah(home, "get", "keys.md", "--store", url, "--json"))["text"].startswith("---")
    lines = howdah(home, "get", "docs/keys.md:4:1", "--store", url)
    assert lines.stdout.split("\n")[2] == "4: # Rotating keys"
    status = told(howdah(home, "status", "--store", url, "--json"))
    assert status["corpus"]["documents"] == 2
    assert "soup.md" in howdah(home, "ls", "--store", url).stdout
    assert len(told(howdah(home, "ls", "docs", "--store", url, "--json"))) == 2
    assert "2 documents" in howdah(home, "status", "--store", url).stdout
    (home / "docs" / "soup.md").unlink()
    assert told(howdah(home, "sync", "--store", url, "--json"))["removed"] == 1
    assert told(howdah(home, "collection", "list", "--store", url, "--json"))[0]["name"] == "docs"
    assert told(howdah(home, "collection", "remove", "docs", "--store", url, "--json")) == {
        "removed": "docs",
        "documents": 1,
    }
    added = told(
        howdah(home, "collection", "add", "docs", "--name", "again", "--mask", "*.md", "--store", url, "--json")
    )
    assert added["collections"] == ["again"]


def test_the_default_store_is_in_the_data_directory(home: Path) -> None:
    assert told(howdah(home, "index", "docs", "--json"))["added"] == 2
    assert (home / "data" / "howdah" / "howdah.db").exists()
    assert told(howdah(home, "search", "soup", "--json"))[0]["path"] == "soup.md"


def test_embedding_from_the_command_line(home: Path) -> None:
    report = told(howdah(home, "index", "docs", "--no-embed", "--json", "--embedder", "bundled"))
    assert report["pending_embeddings"] == 2
    assert told(howdah(home, "embed", "--json", "--embedder", "bundled"))["documents"] == 2
    hits = told(howdah(home, "search", "replacing credentials", "--mode", "vector", "--json", "--embedder", "bundled"))
    assert hits[0]["path"] == "keys.md"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search", ""], 2, "blank"),
        (["search", "-x"], 2, ""),
        (["search", "--", "-x"], 2, "excludes"),
        (["search", "x", "--mode", "magic"], 2, "magic"),
        (["search", "x", "-n", "-3"], 2, "limit"),
        (["search", "x", "--store", "nope://"], 2, "no engine"),
        (["search", "x", "--store", "/no/such/dir/x.db"], 1, "no store"),
        (["status", "--store", ""], 2, "empty"),
        (["search", "x", "-c", "nope"], 1, "nope"),
        (["index", "missing"], 2, "missing"),
        (["index"], 2, "PATH"),
        (["get", "nothing.md"], 1, "no document"),
        (["bogus"], 2, "bogus"),
        (["index", "docs", "--bogus"], 2, "bogus"),
        (["search", "x", "--where", "nonsense"], 2, "FIELD=VALUE"),
        (["search", "x", "--embedder", "nope:1"], 1, "nope:1"),
    ],
)
def test_mistakes_are_one_line_and_a_status(home: Path, arguments: list[str], status: int, message: str) -> None:
    import re

    told(howdah(home, "index", "docs", "--json"))
    done = howdah(home, *arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr)
    assert done.stdout == ""


def test_migrations_can_be_printed_checked_and_applied(home: Path) -> None:
    check = howdah(home, "migrate", "--check", "--store", "m.db")
    assert check.returncode == 1
    script = howdah(home, "migrate", "--sql", "--store", "m.db").stdout
    assert "CREATE TABLE" in script
    import apsw

    connection = apsw.Connection(str(home / "m.db"))
    connection.create_collation("howdah_decimal", lambda a, b: 0)
    connection.execute(script)
    connection.close()
    assert howdah(home, "migrate", "--check", "--store", "m.db").returncode == 0
    assert told(howdah(home, "index", "docs", "--store", "m.db", "--json"))["added"] == 2
    assert howdah(home, "migrate", "--store", "n.db").returncode == 0
    assert howdah(home, "migrate", "--check", "--store", "n.db").returncode == 0


def test_looking_makes_no_store(home: Path) -> None:
    for command in (["search", "x"], ["status"], ["ls"], ["get", "x.md"], ["sync"]):
        done = howdah(home, *command, "--store", "typo.db")
        assert (done.returncode, "no store typo.db" in done.stderr) == (1, True)
    assert not (home / "typo.db").exists()


def test_version_and_help(home: Path) -> None:
    assert howdah(home, "--version").stdout.startswith("howdah 0.")
    assert "index" in howdah(home, "--help").stdout


def test_export_and_import(home: Path) -> None:
    with connect(home / "a.db") as made:
        made.kv("k").put_many({"a": 1, "b": None})
    done = howdah(home, "export", "out.gz", "--store", "a.db", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["rows"]) == (0, 2)
    assert json.loads(howdah(home, "import", "out.gz", "--store", "b.db", "--json").stdout) == summary
    assert "Wrote 2 rows" in howdah(home, "export", "again.gz", "--store", "b.db").stdout
    assert (home / "out.gz").read_bytes() == (home / "again.gz").read_bytes()
    refused = howdah(home, "import", "out.gz", "--store", "b.db")
    assert refused.returncode == 1
    assert "holds rows already" in refused.stderr
    assert howdah(home, "import", "missing", "--store", "c.db").returncode == 1


def test_workers_from_the_command_line(home: Path) -> None:
    (home / "tasks.py").write_text("def double(value, ctx):\n    return value * 2\n\nnothing = 5\n")
    with connect(home / "jobs.db") as made:
        queue = made.queue("q")
        ids = queue.add_many(range(40))
        done = howdah(
            home, "worker", "tasks:double", "--queue", "q", "--workers", "4", "--drain", "--store", "jobs.db", "--json"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["completed"] == 40
        assert [j.output for j in queue.get_many(ids).values()] == [n * 2 for n in range(40)]
        queue.add_many(range(40))
        many = howdah(
            home, "worker", "tasks:double", "--processes", "2", "--queue", "q", "--drain", "--store", "jobs.db"
        )
        assert many.returncode == 0, many.stderr
        assert queue.counts()[JobStatus.COMPLETED] == 80
    for bad in ("tasks", "tasks:missing", "nowhere:f", "tasks:nothing"):
        refused = howdah(home, "worker", bad, "--store", "jobs.db")
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)


def test_tiers_and_flush(servers: Any, home: Path) -> None:
    url = f"pg:{servers.root / f'cli{os.getpid()}'}"
    with Database.open(url) as db:
        db.execute("CREATE TABLE events (id int PRIMARY KEY, ts timestamptz)")
        db.query("INSERT INTO events SELECT n, '2024-01-01' FROM generate_series(1, 30) n")
        assert howdah(home, "tiers", "--store", url).stdout == "no table is tiered\n"
        db.tier("events", location=str(home / "base"), hot_for=0, flush_every=0.1, flush_rows=5, time_column="ts")
        assert told(howdah(home, "tiers", "--store", url, "--json"))[0]["due_rows"] == 30
        assert howdah(home, "flush", "events", "--store", url).stdout == "30 rows moved; tables: 1, new files: 1\n"
        shown = howdah(home, "tiers", "--store", url).stdout
        assert re.search(r"public.events +hot +0 .*\n.*public.events +warm +30 +1 ", shown), shown
        db.execute("CREATE TABLE notes (id int PRIMARY KEY, ts date); INSERT INTO notes VALUES (1, '2024-01-01')")
        db.execute("COMMENT ON TABLE notes IS 'howdah.tier(hot_for => 0, time_column => ''ts'')'")
        assert told(howdah(home, "flush", "--location", "bases", "--store", url, "--json"))["rows"] == 1
        assert (home / "bases" / "public.notes").is_dir()
        db.query("INSERT INTO events VALUES (31, '2024-01-01')")
        watcher = subprocess.Popen(
            [sys.executable, "-m", "howdah.cli.main", "flush", "--watch", "--json", "--store", url],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while db.tiers()[0].hot_rows and time.monotonic() < deadline:
            time.sleep(0.1)
        watcher.terminate()
        assert {"tables": 1, "rows": 1}.items() <= json.loads(watcher.communicate(timeout=30)[0]).items()
    for wrong in (["flush", "nothing", "--store", url], ["flush", "events", "--watch", "--store", url], ["tiers"],
                  ["tiers", "--store", "agent.db"]):  # fmt: skip
        done = howdah(home, *wrong)
        assert (done.returncode, done.stdout) == (2, ""), wrong
        assert "Traceback" not in done.stderr
