"""The rows of an upsert, on its parse tree: put beside the table first, so that their keys are known."""

from __future__ import annotations

from typing import Any

from .tiered import Tiered
from .tree import copied, deparsed, renumber, walk


def probe_of(write: Any, target: Tiered) -> tuple[str, tuple[int, ...]]:
    """The same rows into a temporary table, which tells their keys; and the parameters that takes."""
    copy = copied(write)
    copy.ClearField("on_conflict_clause")
    copy.ClearField("returning_clause" if "returning_clause" in copy.DESCRIPTOR.fields_by_name else "returning_list")
    copy.relation.schemaname = "pg_temp"
    copy.relation.relname = target.probe.partition(".")[2]
    numbers = renumber(copy)
    return deparsed("insert_stmt", copy), numbers


def given_of(write: Any, target: Tiered) -> tuple[str, ...] | None:
    """The columns for which an INSERT has values; ``None`` where only its query knows."""
    if not write.HasField("select_stmt"):
        return ()
    source = write.select_stmt.select_stmt
    names = [c.res_target.name for c in write.cols]
    while source.op != 1:
        source = source.larg
    if not source.values_lists:
        if any(type(m).__name__ == "A_Star" for item in source.target_list for m in walk(item)):
            return tuple(names) if names else None
        return tuple((names or [c.name for c in target.columns])[: len(source.target_list)])
    rows = [row.list.items for row in source.values_lists]
    names = names or [c.name for c in target.columns]
    places = range(min(len(names), *map(len, rows)) if rows else 0)
    return tuple(names[i] for i in places if any(row[i].WhichOneof("node") != "set_to_default" for row in rows))


def mixed(write: Any) -> bool:
    """Whether a column of an INSERT has values in some rows, and DEFAULT in others."""
    rows = [row.list.items for row in write.select_stmt.select_stmt.values_lists]
    places = range(min(map(len, rows), default=0))
    return any(len({row[i].WhichOneof("node") == "set_to_default" for row in rows}) > 1 for i in places)
