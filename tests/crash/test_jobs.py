"""Jobs under fire: workers killed with ``kill -9``, the database restarted; every job is completed exactly once."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import howdah
from howdah import JobStatus
from howdah.engines.sql.embedded import EmbeddedServer

# A longer run by hand: HOWDAH_CHAOS_JOBS="4 300 2" (workers, seconds, seconds between kills).
_CHAOS = [float(n) for n in os.environ.get("HOWDAH_CHAOS_JOBS", "4 6 0.7").split()]
WORKERS, SECONDS, KILL_EVERY = int(_CHAOS[0]), _CHAOS[1], _CHAOS[2]

WORKER = """
import logging, random, sys, time, howdah
from howdah.jobs import JobServer
logging.disable(logging.CRITICAL)
def handler(value, ctx):
    time.sleep(random.random() * 0.02)
    if value % 50 == 0 and ctx.job.attempts == 1:
        raise ConnectionError("the first attempt of some fails")
    return value * 2
while True:
    try:
        store = howdah.connect(sys.argv[1])
        break
    except howdah.Error:
        time.sleep(0.1)
server = JobServer(store.queue("chaos"), handler, workers=4, prefetch=4, lease=2, retry=howdah.Retry(delay=0.05))
server.start()
time.sleep(3600)
"""


class Restartable:
    """A Postgres server on loopback that can be stopped under load."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "shared_buffers": "32MB"}
        self._root = root
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.start()

    def start(self) -> None:
        self._server = EmbeddedServer(str(self._root), self._settings)
        self._server.open()

    def stop(self) -> None:
        self._server.close()


@pytest.fixture
def restartable() -> Iterator[Restartable]:
    root = Path(tempfile.mkdtemp(prefix="howdah-chaos-"))
    root.chmod(0o755)
    server = Restartable(root / "server")
    yield server
    server.stop()
    shutil.rmtree(root, ignore_errors=True)


def spawn(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, url], stderr=subprocess.PIPE)


def end(worker: subprocess.Popen[bytes]) -> bytes:
    """Kill a worker; what it said of errors."""
    worker.kill()
    worker.wait()
    if worker.stderr is None or worker.stderr.closed:
        return b""
    with worker.stderr as said:
        return said.read()


@pytest.mark.timeout(2 * SECONDS + 200)
@pytest.mark.parametrize("engine", ["sqlite", "server"])
def test_every_job_is_completed_exactly_once(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest, url_for: Callable[[str], str]
) -> None:
    server: Restartable | None = request.getfixturevalue("restartable") if engine == "server" else None
    url = str(tmp_path / "jobs.db") if server is None else server.url
    with howdah.connect(url) as store:
        start = store.queue("chaos").changes().start()
    random_ = random.Random(3)
    workers = [spawn(url) for _ in range(WORKERS)]
    began, killed, restarts, added = time.monotonic(), time.monotonic(), 0, 0
    store = howdah.connect(url)
    try:
        while (spent := time.monotonic() - began) < SECONDS:
            with suppress(howdah.BackendError):
                if store.queue("chaos").count() < 400:
                    store.queue("chaos").add_many(range(added, added + 20))
                    added += 20
            time.sleep(0.05)
            if time.monotonic() - killed >= KILL_EVERY:
                killed = time.monotonic()
                victim = random_.randrange(WORKERS)
                assert end(workers[victim]) == b""
                workers[victim] = spawn(url)
            if server is not None and spent > (restarts + 1) * SECONDS / 3:
                restarts += 1
                server.stop()
                time.sleep(0.3)
                server.start()
        store.queue("chaos").drain(timeout=60 + SECONDS / 2)
        for worker in workers:
            assert end(worker) == b""
        queue = store.queue("chaos")
        counts = {status: n for status, n in queue.counts().items() if n}
        total = counts[JobStatus.COMPLETED]
        assert counts == {JobStatus.COMPLETED: total}
        assert total >= added > 50
        completions: Counter[str] = Counter()
        feed = queue.changes(since=start)
        while changes := feed.poll():
            for change in changes:
                if change.new is not None and change.new.status is JobStatus.COMPLETED:
                    completions[change.key] += 1
                    assert change.new.output == change.new.input * 2
        assert len(completions) == total
        assert set(completions.values()) == {1}
        print(f"{engine}: {total} jobs, {restarts} restarts, each completed once")
    finally:
        for worker in workers:
            end(worker)
        store.close()
