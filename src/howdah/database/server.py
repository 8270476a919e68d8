"""A Postgres server, as a database sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ..engines.sql.embedded import EmbeddedServer
from ..engines.sql.open_postgres import connect


@dataclass(slots=True)
class Server:
    """How to connect, what to call it, how to let go of it."""

    place: str
    arguments: dict[str, Any]
    embedded: EmbeddedServer | None = None

    async def connect(self) -> Any:
        """A new connection."""
        return await connect({**self.arguments, "timeout": 30})

    async def close(self) -> None:
        """Let go; the last user of an embedded server stops it."""
        if self.embedded is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.embedded.close)
