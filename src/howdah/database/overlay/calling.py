"""Reads ``CALL howdah.tier('events', location => '…')`` and ``CALL howdah.untier('events')``: policies, said in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from ...errors import InvalidInput
from ..session import Session
from .tree import expression_text, parsed

_NAMES = {
    "tier": (
        *("table", "location", "hot_for", "flush_rows", "flush_every", "time_column", "partition_by", "sort_by"),
        *(
            "archive_after",
            "archive_location",
            "allow_hot_only",
            "foreign_keys",
            "retries",
            "retry_delay",
            "batch_rows",
        ),
    ),
    "untier": ("table",),
}
"""The arguments of each, in their order."""


class Called(NamedTuple):
    """A call: the name of a method of the database, and by the names of its arguments what they are in SQL."""

    method: str
    arguments: dict[str, str]

    async def values(self, session: Session, params: Sequence[Any]) -> dict[str, Any]:
        """The values of the arguments, as the server works them out."""
        if not self.arguments:
            return {}
        rows = await session.query(f"SELECT {', '.join(self.arguments.values())}", params, None)
        return {
            n: float(v) if isinstance(v, Decimal) else v for n, v in zip(self.arguments, tuple(rows[0]), strict=True)
        }


def called(sql: str) -> Called | None:
    """The call that a statement is, if it is one of these; ``InvalidInput`` for arguments that there are not."""
    tree = parsed(sql) if "call" in sql[:1000].lower() else None
    if tree is None or len(tree.stmts) != 1 or tree.stmts[0].stmt.WhichOneof("node") != "call_stmt":
        return None
    call = tree.stmts[0].stmt.call_stmt.funccall
    name = [part.string.sval for part in call.funcname]
    if len(name) != 2 or name[0] != "howdah" or name[1] not in _NAMES:
        return None
    found: dict[str, str] = {}
    for place, arg in enumerate(call.args):
        named = arg.WhichOneof("node") == "named_arg_expr"
        known = _NAMES[name[1]]
        key = arg.named_arg_expr.name if named else known[place] if place < len(known) else f"number {place + 1}"
        if key not in known or key in found:
            why = "is there twice" if key in found else f"is none of {', '.join(known)}"
            raise InvalidInput(f"CALL howdah.{name[1]}: argument {key} {why}")
        found[key] = expression_text(arg.named_arg_expr.arg if named else arg)
    if missing := [n for n in _NAMES[name[1]][:1] if n not in found]:
        raise InvalidInput(f"CALL howdah.{name[1]}: say {missing[0]} => …")
    return Called(name[1], found)
