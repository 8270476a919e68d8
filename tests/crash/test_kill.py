"""``kill -9`` and many processes: nothing acknowledged is lost, no lock error reaches a user."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import howdah
from howdah.engines.sql.embedded import EmbeddedServer

# A longer run by hand: HOWDAH_CHAOS="8 300" (writers, kills).
WRITERS, KILLS = (int(n) for n in os.environ.get("HOWDAH_CHAOS", "4 8").split())

WRITER = """
import os, sys, howdah
url, name, log = sys.argv[1:4]
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with howdah.connect(url) as store:
    kv, docs = store.kv("acks"), store.table("docs", {"properties": {"id": {"type": "string"}, "body": {"type": "string"}}, "required": ["id", "body"]}, key="id", text=["body"])
    number = 0
    while True:
        number += 1
        key = f"{name}-{os.getpid()}-{number}"
        with store.transaction():
            kv.put(key, number)
            docs.put({"id": key, "body": f"word{number % 7} common"})
        kv.increment("total")
        os.write(out, (key + "\\n").encode())
        if number % 10 == 0:
            docs.search(text="common", limit=5)
"""


def spawn(url: str, name: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, url, name, str(log)], stderr=subprocess.PIPE)


def _length(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


@pytest.mark.parametrize("engine", ["sqlite", "files", "pg"])
def test_writers_killed_at_random_lose_nothing(engine: str, url_for: Callable[[str], str], tmp_path: Path) -> None:
    url = url_for(engine)
    random_ = random.Random(1)
    logs = [tmp_path / f"log{i}" for i in range(WRITERS)]
    writers = [spawn(url, str(i), logs[i]) for i in range(WRITERS)]
    errors: list[bytes] = []
    for _ in range(KILLS):
        victim = random_.randrange(WRITERS)
        before = _length(logs[victim])
        # However slow the machine is, who is killed has written; the test's own limit ends a writer that hangs.
        while _length(logs[victim]) == before and writers[victim].poll() is None:
            time.sleep(0.01)
        time.sleep(random_.random() / 5)
        writers[victim].kill()
        errors.append(writers[victim].communicate()[1])
        writers[victim] = spawn(url, str(victim), logs[victim])
    for writer in writers:
        writer.kill()
        errors.append(writer.communicate()[1])
    assert [e for e in errors if e] == []
    acknowledged = [line for log in logs if log.exists() for line in log.read_text().split("\n")[:-1]]
    assert len(acknowledged) >= KILLS
    print(f"{engine}: {len(acknowledged)} acknowledged writes by {WRITERS} writers")
    with howdah.connect(url) as store:
        kv = store.kv("acks")
        stored = set(kv.keys())
        assert set(acknowledged) <= stored
        assert kv.get("total") >= len(acknowledged)
        docs = store.table(
            "docs",
            {"properties": {"id": {"type": "string"}, "body": {"type": "string"}}, "required": ["id", "body"]},
            key="id",
            text=["body"],
        )
        stored.discard("total")
        assert {r["id"] for r in docs.query(select=["id"])} == stored
        assert {h.key for h in docs.search(text="common", limit=None)} == stored
        assert engine != "files" or stored == {f.stem for f in Path(url[6:], "docs").glob("[!_]*.json")}


COUNTER = """
import sys, howdah
with howdah.connect(sys.argv[1]) as store:
    records = store.records("n")
    for _ in range(int(sys.argv[2])):
        records.mutate("k", lambda v: {"n": (v or {"n": 0})["n"] + 1})
"""


@pytest.mark.parametrize("engine", ["sqlite", "files", "pg"])
def test_many_processes_change_one_record(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    running = [subprocess.Popen([sys.executable, "-c", COUNTER, url, "60"], stderr=subprocess.PIPE) for _ in range(6)]
    assert [p.communicate(timeout=100)[1] for p in running] == [b""] * 6
    with howdah.connect(url) as store:
        assert store.records("n").get("k") == {"n": 360}


OPENER = """
import sys, time, howdah
store = howdah.connect(sys.argv[1])
store.kv().put(sys.argv[2], 1)
print("ready", flush=True)
time.sleep(60)
"""


def _server_pid(root: Path) -> int | None:
    try:
        pid = int((root / "pgdata" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def test_an_embedded_server_outlives_no_one(servers: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="howdah-kill-"))
    base.chmod(0o755)
    root = base / "data"
    try:
        first = subprocess.Popen([sys.executable, "-c", OPENER, f"pg:{root}", "a"], stdout=subprocess.PIPE)
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        second = subprocess.Popen([sys.executable, "-c", OPENER, f"pg:{root}", "b"], stdout=subprocess.PIPE)
        assert second.stdout is not None
        assert second.stdout.readline() == b"ready\n"
        first.kill()
        first.communicate()
        pid = _server_pid(root)
        assert pid is not None
        with howdah.connect(f"pg:{root}") as store:
            assert sorted(store.kv().keys()) == ["a", "b"]
        second.kill()
        second.communicate()
        deadline = time.monotonic() + 20
        while _server_pid(root) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _server_pid(root) is None
        # A server that is killed itself is started again by whoever uses it, and nothing acknowledged is gone.
        with howdah.connect(f"pg:{root}") as store, howdah.Database.open(f"pg:{root}") as db:
            store.kv().put("c", 1)
            assert db.query("SELECT 1")[0][0] == 1
            pid = _server_pid(root)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            for use in (lambda: db.query("SELECT 1"), lambda: store.kv().put("d", 1)):
                for _ in range(200):  # the connections that there were are lost
                    with suppress(howdah.Error):
                        use()
                        if _server_pid(root) not in (None, pid):
                            break
                    time.sleep(0.05)
                use()
            assert _server_pid(root) not in (None, pid)
            assert set(store.kv().keys()) == {"a", "b", "c", "d"}
        # Whoever comes while the last user's server ends waits for that.
        for number in range(8):
            last = subprocess.Popen([sys.executable, "-c", OPENER, f"pg:{root}", "a"], stdout=subprocess.PIPE)
            assert last.stdout is not None
            assert last.stdout.readline() == b"ready\n"
            last.kill()
            last.communicate()
            time.sleep(number / 400)
            with howdah.Database.open(f"pg:{root}") as db:
                assert db.query("SELECT 1")[0][0] == 1
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_unusable_directories_are_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    old = tmp_path / "old"
    (old / "pgdata").mkdir(parents=True)
    (old / "pgdata" / "PG_VERSION").write_text("15\n")
    for path, match in (
        (file, "is a file"),
        (other, "other files"),
        (old, "Postgres 15"),
        (Path("/proc/nope"), "cannot be"),
    ):
        with pytest.raises(howdah.StartupError, match=match):
            howdah.connect(f"pg:{path}")
    with pytest.raises(howdah.InvalidInput):
        howdah.connect("pg:")
    with pytest.raises(howdah.InvalidInput, match="option"):
        howdah.connect("pg:./x?nope=1")
    assert EmbeddedServer(str(tmp_path / ("long" * 60))).socket_directory.as_posix().startswith("/tmp/")
