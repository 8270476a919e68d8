"""What is to be done for a statement over tiered tables: the planner makes it, ``run`` does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ...errors import Unsupported
from .filters import Condition
from .limited import Limited
from .tiered import Tiered, View

Kind = Literal["read", "mixed", "insert", "update", "delete", "merge", "truncate", "drop", "alter", "type"]


class Promotion(NamedTuple):
    """The bound rows that a write may touch: its table's alias, its condition on single rows (``None``: any may be), and which
    of the statement's parameters that has; ``shared`` are those that it has more than once. Only as many as ``limit`` and
    ``offset`` say are wanted, the first in an ``order``, if these are known."""

    alias: str
    where: str | None = None
    params: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    order: str = ""
    limit: tuple[str, Any] | None = None
    offset: tuple[str, Any] | None = None


class Part(NamedTuple):
    """What is known of some rows together: the count, sum, least or largest value of a column (``None``: of rows)."""

    function: str
    column: str | None


class Summary(NamedTuple):
    """A query that is asked of partial rows. ``sql`` has ``given`` parameters, behind them takes those of the base, a list of
    texts for each of their columns. They are apart by the columns of ``groups`` (of moments, so many minutes may be taken together); only rows that
    fulfil all ``conditions`` count."""

    tiered: Tiered
    sql: str
    given: int
    groups: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    conditions: tuple[Condition, ...]


class Once(NamedTuple):
    """An upsert whose rows are made once, beside the table, and put into it from there: ``sql`` with the columns in the place of
    ``GIVEN``, and which of the statement's parameters it has, ``shared`` with the rows. ``given`` are the columns that rows have
    values for (``None``: some). It ``must`` be done so unless its rows, made of ``functions`` and ``tables``, come out the same twice."""

    sql: str
    params: tuple[int, ...]
    shared: tuple[int, ...]
    given: tuple[str, ...] | None
    functions: tuple[str, ...]
    tables: tuple[str, ...]
    must: bool


class Verified(NamedTuple):
    """A condition on each row and the columns in it, the error's state and text where one fails it, and the constraint's name."""

    condition: str
    columns: frozenset[str]
    state: str
    text: str
    constraint: str


GIVEN = '"howdah given"'


@dataclass(slots=True)
class Plan:
    """A statement over tiered tables.

    ``uses`` are the base rows to be bound, per table the conditions of each mention (any of them may be needed); ``sql`` is the
    statement over heap and bound rows. Writes to a tiered ``target`` have more to do first: see ``run``.
    """

    kind: Kind
    sql: str
    uses: dict[Tiered, list[list[Condition]]] = field(default_factory=dict)
    target: Tiered | None = None
    alias: str = ""
    where: str | None = None
    where_params: tuple[int, ...] = ()
    also: list[tuple[Tiered, Promotion]] = field(default_factory=list)
    """Writes in common table expressions."""
    inserted: tuple[Tiered, ...] = ()
    """The tables into which common table expressions insert."""
    returning: bool = False
    probe: str | None = None
    probe_params: tuple[int, ...] = ()
    once: Once | None = None
    """How an upsert is done whose rows must not be made twice."""
    names: dict[Tiered, tuple[str, ...]] = field(default_factory=dict)
    """How each table was called: it must still be meant when the statement runs."""
    views: dict[str, View] = field(default_factory=dict)
    """The views that were called, by how: they must still say the same."""
    quick: str | None = None
    """What to try first on the heap alone, by the whole key: a row that it finds is the row; an INSERT says itself whether its
    keys are new."""
    rekey: bool = False
    """Whether keys change: new ones are looked up, as those of inserted rows are."""
    nowait: bool = False
    """Whether a row that somebody else has locked is an error at once."""
    skips: bool = False
    """Whether such a row is left out."""
    mode: str = ""
    """Which tiers are read, if not those that are by default."""
    lookup: str | None = None
    """The query for the keys that a MERGE may meet, as the base has them."""
    lookup_params: tuple[int, ...] = ()
    noting: str | None = None
    """A write that returns, behind what it is to return, the key and the kind of each change."""
    columns: frozenset[str] | None = None
    """The names of the columns that a read may mean; ``None`` where that may be all."""
    summary: Summary | None = None
    """How base rows may be summed up where they are."""
    limited: Limited | None = None
    """Which of the base rows a query's LIMIT can reach."""
    text: str = ""
    """The statement as it was written: the server says what is wrong with it, and where, before anything is done for it."""
    explains: bool = False
    """Whether it is an EXPLAIN in lines of text, which is to say what is read of bases, too."""
    verified: tuple[Verified, ...] = ()
    """What a change of a table demands of all rows, those of the base, too."""
    of_type: str = ""
    """The type that is changed in a way that values in a base could not follow."""
    functions: frozenset[str] = frozenset()
    """The functions that are called more than once for one answer: none may be volatile."""
    tables: frozenset[str] = frozenset()
    """The tables that are read more than once for one answer: none may be a view that could answer otherwise."""


def unsupported(what: str) -> Unsupported:
    """The error for a statement that cannot be answered rightly."""
    return Unsupported(f"{what} is not supported")
