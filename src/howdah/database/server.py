"""A Postgres server, as a database sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.sql.embedded import EmbeddedServer
from ..engines.sql.open_postgres import connect
from ..errors import InvalidInput


@dataclass(slots=True)
class Server:
    """How to connect, what to call it, how to let go of it."""

    place: str
    arguments: dict[str, Any]
    embedded: EmbeddedServer | None = None
    root: Path | None = None
    """The directory of an embedded server."""

    async def connect(self) -> Any:
        """A new connection."""
        try:
            return await connect({**self.arguments, "timeout": 30}, self.embedded)
        except ValueError:
            # What the driver says may hold a part of the password.
            raise InvalidInput(f"{self.place}: this URL cannot be read: percent-encode what is special in it") from None

    async def close(self) -> None:
        """Let go; the last user of an embedded server stops it."""
        if self.embedded is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.embedded.close)
