"""Engines for the tests: one blocking store a test, on memory, SQLite (both faces), an embedded and a server Postgres."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import howdah
from howdah.blocking.runner import Portal
from howdah.blocking.store import Store
from howdah.engines.sql.embedded import EmbeddedServer
from howdah.store import AsyncStore, open_engine
from tests.s3 import BUCKET, S3Server

ENGINES = ("memory", "sqlite", "sqlite-loop", "files", "pg", "server")
PERSISTENT = ("sqlite", "files", "pg", "server")
_numbers = itertools.count()


class Servers:
    """The Postgres servers of a test session, started when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, EmbeddedServer] = {}
        self.stores: list[Store] = []
        self.port = 0
        self._s3: S3Server | None = None

    def embedded(self) -> str:
        """URL of an embedded Postgres that stays up for the session."""
        if "pg" not in self._open:
            server = EmbeddedServer(str(self.root / "embedded server"))
            server.open()
            self._open["pg"] = server
        return f"pg:{self.root / 'embedded server'}"

    def server(self) -> str:
        """URL of a Postgres server on loopback: one of your own, or the wheel's."""
        given = os.environ.get("HOWDAH_TEST_POSTGRES_URL")
        if given:
            return given
        if "server" not in self._open:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            server = EmbeddedServer(
                str(self.root / "server"),
                # Nothing kills this one: what tests crashes has a server of its own.
                {
                    "listen_addresses": "127.0.0.1",
                    "port": str(self.port),
                    "shared_buffers": "32MB",
                    "fsync": "off",
                    "track_commit_timestamp": "off",
                },
            )
            server.open()
            self._open["server"] = server
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def s3(self) -> S3Server:
        """An S3 server that stays up for the session."""
        if self._s3 is None:
            self._s3 = S3Server(self.root / "s3")
            self._s3.open()
        return self._s3

    def close(self) -> None:
        if self._s3 is not None:
            self._s3.close()
        for store in self.stores:
            store.close()
        for server in self._open.values():
            server.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    root = Path(tempfile.mkdtemp(prefix="howdah-test-"))
    root.chmod(0o755)
    made = Servers(root)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(root / "caches")
    yield made
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
    made.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def url_for(servers: Servers, tmp_path: Path) -> Callable[[str], str]:
    """URL of a fresh place on an engine."""

    def make(engine: str) -> str:
        number = f"t{os.getpid()}_{next(_numbers)}"
        if engine == "memory":
            return "memory:"
        if engine == "files":
            return f"files:{tmp_path / number}"
        if engine.startswith("sqlite"):
            return str(tmp_path / f"{number}.db")
        base = servers.embedded() if engine == "pg" else servers.server()
        return f"{base}?schema={number}"

    return make


@pytest.fixture
def s3(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a fresh place on an S3 server, which the environment names."""
    server = servers.s3()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/t{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """URL of a fresh database on the Postgres server."""
    with fresh_database(servers) as url:
        yield url


@contextmanager
def fresh_database(servers: Servers) -> Iterator[str]:
    """URL of a fresh database on the Postgres server."""
    base, name = servers.server(), f"d{os.getpid()}_{next(_numbers)}"
    with howdah.Database.open(base) as admin:
        admin.query(f"CREATE DATABASE {name}")
        yield f"{base.rpartition('/')[0]}/{name}"
        admin.query(f"DROP DATABASE {name} WITH (FORCE)")


def open_store(engine: str, url: str, **options: Any) -> Store:
    """A blocking store; ``sqlite-loop`` runs the engine as the async face does."""
    if engine != "sqlite-loop":
        return howdah.connect(url, **options)
    run = Portal()
    defaults: dict[str, Any] = {"schema": None, "create": True, "pool": None, "clock": None, "busy_timeout": None}
    made = run(open_engine(url, inline=False, **{**defaults, **options}))
    return Store(AsyncStore(made), run)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(engine: str, url_for: Callable[[str], str], clock: Clock) -> Iterator[Store]:
    with open_store(engine, url_for(engine), clock=clock) as opened:
        yield opened


ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "docs" / "engines.md"
SUPPORT_HEAD = """# What each engine does

How many tests of the contract suite pass on each engine; "–" is a part that has nothing to do with that engine. Written by
`make support`.

| | memory | SQLite file | SQLite, async | JSON files | embedded Postgres | Postgres server |
|---|---|---|---|---|---|---|
"""


def _support(reports: list[Any]) -> str:
    """The page that says what each engine does, from what passed."""
    passed: dict[str, dict[str, int]] = {}
    for report in reports:
        found = re.search(r"contract/(test_\w+\.py)::\w+\[(.*)\]$", report.nodeid)
        known = found and re.search(rf"(?:^|-)({'|'.join(sorted(ENGINES, key=len, reverse=True))})(?:-|$)", found[2])
        engine = known and known[1]
        if found and engine:
            counts = passed.setdefault(found[1], {})
            counts[engine] = counts.get(engine, 0) + 1
    lines = []
    for name in sorted(passed):
        text = (ROOT / "tests" / "contract" / name).read_text()
        title = text.split('"""')[1].splitlines()[0].rstrip(".")
        cells = " | ".join(str(passed[name].get(e, "–")) for e in ENGINES)
        lines.append(f"| [{title}](../tests/contract/{name}) | {cells} |")
    return SUPPORT_HEAD + "\n".join(lines) + "\n"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many contract tests passed on each engine."""
    counts: dict[str, int] = {}
    if os.environ.get("HOWDAH_WRITE_SUPPORT"):
        SUPPORT.write_text(_support(terminalreporter.stats.get("passed", [])))
    for report in terminalreporter.stats.get("passed", []):
        found = re.search(rf"\[(?:.*-)?({'|'.join(sorted(ENGINES, key=len, reverse=True))})(?:-.*)?\]$", report.nodeid)
        if found and "contract/" in report.nodeid:
            counts[found[1]] = counts.get(found[1], 0) + 1
    if counts:
        terminalreporter.write_line("contract: " + ", ".join(f"{k} {counts.get(k, 0)} passed" for k in ENGINES))
