"""``connect``: opens a store for blocking callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from ..store import AsyncStore, open_engine
from ..telemetry import tracer
from ..urls import parse
from .runner import Inline, Portal, Runner
from .store import Store


def connect(
    url: Any,
    *,
    schema: str | None = None,
    create: bool = True,
    clock: Callable[[], float] | None = None,
    ids: Callable[[], UUID] | None = None,
    busy_timeout: float | None = None,
    pool_size: int | None = None,
    pooler: bool | None = None,
    telemetry: Any = None,
) -> Store:
    """Open a store: ``agent.db``, ``memory:``, ``postgresql://…``, ``pg:./data`` or ``files:./dir``; arguments as for ``connect_async``."""
    run: Runner = Inline() if parse(url).scheme in ("sqlite", "memory") else Portal()
    options = {"schema": schema, "create": create, "pool": None, "clock": clock, "busy_timeout": busy_timeout,
               "pool_size": pool_size, "pooler": pooler}  # fmt: skip
    try:
        engine = run(open_engine(url, inline=isinstance(run, Inline), ids=ids, **options))
    except BaseException:
        run.close()
        raise
    return Store(AsyncStore(engine, tracer=tracer(telemetry, engine.name)), run)
