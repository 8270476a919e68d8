"""Migrations declared in code: numbered changes of a table's shape and rows, each applied once, in one transaction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InvalidInput
from .rows import row_type
from .schema import Column
from .values import MISSING, check_name, check_text

Fill = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class AddColumn:
    """A new column; old rows get ``default``."""

    column: Column
    default: Any


@dataclass(frozen=True, slots=True)
class DropColumn:
    """A column goes, with its values and the indexes it is in."""

    name: str


@dataclass(frozen=True, slots=True)
class RenameColumn:
    """A column gets another name; its values and indexes stay."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class AddIndex:
    """A new index."""

    columns: tuple[str, ...]
    unique: bool


@dataclass(frozen=True, slots=True)
class DropIndex:
    """An index goes."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Backfill:
    """Every row goes through a function once."""

    fn: Fill
    batch: int


Operation = AddColumn | DropColumn | RenameColumn | AddIndex | DropIndex | Backfill


def add_column(name: str, schema: Mapping[str, Any], *, default: Any = None) -> AddColumn:
    """Add a column described by a JSON Schema property; old rows get ``default``."""
    check_name(name, "column")
    if not isinstance(schema, Mapping):
        raise InvalidInput(f"add_column({name!r}): expected a JSON Schema property, got {type(schema).__name__}")
    column = row_type({"type": "object", "properties": {name: dict(schema)}}).columns[0]
    return AddColumn(column, MISSING if default is None else default)


def drop_column(name: str) -> DropColumn:
    """Remove a column with its values, and the indexes it is in."""
    return DropColumn(check_name(name, "column"))


def rename_column(old: str, new: str) -> RenameColumn:
    """Give a column another name; values and indexes stay."""
    return RenameColumn(check_name(old, "column"), check_name(new, "column"))


def _columns(columns: str | Sequence[str]) -> tuple[str, ...]:
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if not names:
        raise InvalidInput("an index needs a column")
    return tuple(check_name(n, "column") for n in names)


def add_index(columns: str | Sequence[str], *, unique: bool = False) -> AddIndex:
    """Add an index on one or more columns."""
    return AddIndex(_columns(columns), unique)


def drop_index(columns: str | Sequence[str]) -> DropIndex:
    """Remove the index on these columns."""
    return DropIndex(_columns(columns))


def backfill(fn: Fill, *, batch: int = 500) -> Backfill:
    """Pass each row once to ``fn(row)``: a new row is written, ``None`` or the same row leaves it alone,
    ``howdah.DELETE`` deletes it. The key must stay as it is."""
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        raise InvalidInput(f"backfill takes a plain function of a row, got {fn!r:.60}")
    if type(batch) is not int or batch < 1:
        raise InvalidInput(f"batch={batch!r}: expected an integer >= 1")
    return Backfill(fn, batch)


@dataclass(frozen=True, slots=True, init=False)
class Migration:
    """A step of a table's history: a positive number, unique for its component, and what it does, in order."""

    version: int
    operations: tuple[Operation, ...]
    description: str
    component: str | None

    def __init__(
        self, version: int, *operations: Operation, description: str = "", component: str | None = None
    ) -> None:
        if type(version) is not int or not 1 <= version < 2**31:
            raise InvalidInput(f"Migration({version!r:.40}): the version is a positive integer below 2**31")
        for what, text in (("description", description), ("component", component)):
            if text is not None:
                if not isinstance(text, str):
                    raise InvalidInput(f"Migration({version}): {what}={text!r:.60}: expected text")
                check_text(text, what)
        kinds = (AddColumn, DropColumn, RenameColumn, AddIndex, DropIndex, Backfill)
        wrong = next((o for o in operations if not isinstance(o, kinds)), None)
        if wrong is not None or not operations:
            raise InvalidInput(
                f"Migration({version}): expected add_column(…), backfill(…) and the like, got {wrong!r:.60}"
            )
        object.__setattr__(self, "version", version)
        object.__setattr__(self, "operations", operations)
        object.__setattr__(self, "description", description)
        object.__setattr__(self, "component", component)


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """How far a migration is; ``fraction`` from 0 to 1, ``error`` when it failed."""

    component: str
    version: int
    phase: Literal["starting", "running", "completed", "failed"]
    fraction: float
    error: BaseException | None = None


def check_migrations(migrations: Sequence[Migration]) -> tuple[Migration, ...]:
    """The migrations of a table in order of their versions; ``InvalidInput`` for two of one version."""
    found = sorted(migrations, key=lambda m: m.version if isinstance(m, Migration) else 0)
    for item in found:
        if not isinstance(item, Migration):
            raise InvalidInput(f"migrations: expected Migration(…), got {type(item).__name__}")
    versions = [m.version for m in found]
    if len(set(versions)) < len(versions):
        raise InvalidInput(f"migrations: versions {versions} are not unique")
    if len({m.component for m in found}) > 1:
        raise InvalidInput("migrations: those of one table belong to one component")
    return tuple(found)
