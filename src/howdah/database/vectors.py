"""Vectors in plain SQL tables: indexes of pgvector, smaller ones too, searched with re-ranking, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..engines.sql.dialect import text_literal
from ..errors import InvalidInput, UndefinedColumn
from ..pages import check_limit
from .copying import table_name
from .overlay.columns import quoted
from .overlay.manage import ordinary
from .rows import Metric, Rows, VectorIndex, VectorStats
from .session import Session
from .statements import AsyncStatements, check_sql

OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>", "l1": "<+>"}
LONGEST = {"vector": 2000, "halfvec": 4000, "bit": 64000}
"""Most dimensions that an index of pgvector holds."""
CANDIDATES = {"half": (2, 20), "binary": (8, 100)}
"""How many times as many rows as asked, and how many more, a smaller index is asked for before they are ranked anew."""
_INDEXES = """
SELECT c.relname AS name, m.amname AS method, o.opcname AS class,
  (SELECT coalesce(sum(pg_relation_size(x.relid)), pg_relation_size(c.oid))::bigint FROM pg_partition_tree(c.oid) x) AS bytes,
  obj_description(c.oid, 'pg_class') AS said
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0]
WHERE i.indrelid = $1::oid AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1 AND m.amname IN ('hnsw', 'ivfflat')
  AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = $2)
ORDER BY o.opcname LIKE 'bit%', o.opcname LIKE 'halfvec%', c.relname
"""
_SAID = "howdah vectors: "
"""How the comment of a smaller index begins, which says its metric and whether to re-rank."""


class _Column(NamedTuple):
    """A column of vectors, and its table."""

    oid: int
    schema: str
    table: str
    number: int
    name: str
    type: str
    dimensions: int | None


class VectorIndexing(AsyncStatements):
    """The part of a database that knows of vectors."""

    async def vector_index(
        self,
        table: str,
        column: str,
        *,
        metric: Metric = "cosine",
        method: Literal["hnsw", "ivfflat"] = "hnsw",
        quantize: Literal["half", "binary"] | None = None,
        rerank: bool = True,
        m: int = 16,
        ef_construction: int = 64,
        lists: int = 100,
    ) -> VectorIndex:
        """Index a column of vectors for nearest neighbours, as ``CREATE INDEX`` would.

        ``quantize`` keeps smaller copies: ``"half"`` (2 bytes a dimension) or ``"binary"`` (a bit each); with ``rerank``
        ``vector_search`` ranks what it finds there by the originals. ``m`` and ``ef_construction`` are hnsw's, ``lists``
        ivfflat's. Raises ``InvalidInput`` for more dimensions than such an index holds, naming the one that does.
        """
        if metric not in OPERATORS:
            raise InvalidInput(f"metric={metric!r:.40}: expected 'cosine', 'l2', 'ip' or 'l1'")
        if method not in ("hnsw", "ivfflat") or quantize not in (None, "half", "binary"):
            raise InvalidInput(f"method={method!r:.40}, quantize={quantize!r:.40}: see the docstring")
        for name, value in (("m", m), ("ef_construction", ef_construction), ("lists", lists)):
            if type(value) is not int or value < 1:
                raise InvalidInput(f"{name}={value!r:.40}: expected an integer >= 1")
        async with self._using() as session:
            found = await _column(session, table, column)
            if metric == "l1" and method == "ivfflat" and quantize != "binary":
                raise InvalidInput("metric='l1': ivfflat has no such index; hnsw has")
            shown, kind = _indexed(found, quantize)
            most = LONGEST.get(kind)
            if found.dimensions is None:
                raise InvalidInput(f"{table}.{column}: its type names no dimensions, e.g. {found.type}(384)")
            if most is not None and found.dimensions > most:
                wider = next((f"quantize={q!r}" for q, k in (("half", "halfvec"), ("binary", "bit"))
                              if LONGEST[k] >= found.dimensions), "no index")  # fmt: skip
                raise InvalidInput(
                    f"{table}.{column} has {found.dimensions:,} dimensions; such an index holds {most:,}: {wider} does"
                )
            ops = f"{kind}_{'hamming' if kind == 'bit' else metric}_ops"
            how = f"m = {m}, ef_construction = {ef_construction}" if method == "hnsw" else f"lists = {lists}"
            kinds = (metric, quantize or "", method if method != "hnsw" else "")
            plain = "_".join(filter(None, (table_name(table)[1], column, *kinds)))
            name = plain.encode()[:58].decode(errors="ignore") + "_idx"
            async with session.transaction():
                await session.command(
                    f"CREATE INDEX {quoted(name)} ON {found.table} USING {method} (({shown}) {ops}) WITH ({how})"
                )
                if quantize is not None:
                    said = text_literal(f"{_SAID}{metric}{', re-ranked' if rerank else ''}")
                    await session.command(f"COMMENT ON INDEX {quoted(found.schema)}.{quoted(name)} IS {said}")
            return next(i for i in await _indexes(session, found) if i.name == name)

    async def vector_search(
        self,
        table: str,
        column: str,
        query: Any,
        *,
        limit: int = 10,
        where: str | None = None,
        params: Sequence[Any] = (),
        columns: Sequence[str] | None = None,
        metric: Metric | None = None,
        exact: bool = False,
    ) -> Rows:
        """The ``limit`` rows whose vectors are nearest to ``query``, with their ``distance``, the nearest first.

        ``where`` is a condition in SQL with parameters ``$1``, ``$2``, … from ``params``; ``columns`` are those to return
        (default: all). The index is chosen by Postgres; a smaller one (``vector_index(quantize=…)``) is asked for more than
        ``limit`` rows, which are ranked by their originals. ``metric`` is that of the column's index (default: the first's; with
        no index say which); ``exact=True`` uses no index. Rows without a vector are not found. The distance of ``"ip"`` is the
        negative inner product. As many rows come as match, up to ``limit``.
        """
        size = check_limit(limit, least=1)
        if size is None:
            raise InvalidInput("limit=None: say how many rows")
        condition = "true" if where is None else check_sql(where)
        async with self._using() as session:
            await self._tiers.load(session)
            found = await _column(session, table, column)
            known = await _indexes(session, found)
        index = next((i for i in known if metric in (None, i.metric)), None)
        by = metric or (index.metric if index else None)
        if by not in OPERATORS:
            raise InvalidInput(
                f"metric={metric!r:.40}: {table}.{column} has no index: expected 'cosine', 'l2', 'ip' or 'l1'"
            )
        name, given = quoted(column), f"${len(params) + 1}"
        # A driver knows no sparse vectors: they are text.
        typed = f"{given}::text::sparsevec" if found.type == "sparsevec" else f"{given}::{found.type}"
        distance = f"{name} {OPERATORS[by]} {typed}"
        shown = "*" if columns is None else ", ".join(map(quoted, columns))
        plain = (
            f"SELECT {shown}, {distance} AS distance FROM {found.table} WHERE ({condition}\n) AND {name} IS NOT NULL"
            f" ORDER BY {distance} LIMIT {size}"
        )
        tiered = any(t.oid == found.oid for t in self._tiers.each())
        if exact or tiered or index is None:
            return await self.query(plain, *params, query, exact=not tiered)
        sql = plain
        if index.quantize is not None:
            small, kind = _indexed(found, index.quantize)
            other = small.replace(name, typed, 1)
            near = f"{small} {'<~>' if kind == 'bit' else OPERATORS[by]} {other}"
            times, more = CANDIDATES[index.quantize] if index.rerank else (1, 0)
            rank = distance if index.rerank else near
            sql = (
                f"SELECT {shown}, {rank} AS distance FROM (SELECT * FROM {found.table} WHERE ({condition}\n) AND"
                f" {name} IS NOT NULL ORDER BY {near} LIMIT {size * times + more}) near ORDER BY {rank} LIMIT {size}"
            )
        rows = await self.query(sql, *params, query)
        # An index by angles does not hold vectors without a length.
        return rows if len(rows) == size else await self.query(plain, *params, query, exact=True)

    async def vector_stats(self, table: str) -> list[VectorStats]:
        """What the vectors of a table take, a column each, in the table's order; reads the whole table."""
        schema, name = table_name(table)
        async with self._using() as session:
            await self._tiers.load(session)
            shape = await ordinary(session, schema or "", name)
            only = "ONLY " if any(t.oid == shape.oid for t in self._tiers.each()) else ""
            stats = []
            for each in shape.columns:
                if each.type not in ("vector", "halfvec", "sparsevec"):
                    continue
                found = await _column(session, table, each.name)
                sql = f"SELECT count({quoted(each.name)}), coalesce(sum(pg_column_size({quoted(each.name)})), 0)::bigint FROM {only}{found.table}"
                rows, size = tuple((await session.query(sql, (), None))[0])
                stats.append(
                    VectorStats(
                        each.name, each.type, found.dimensions, rows, size, tuple(await _indexes(session, found))
                    )
                )
        return stats


async def _column(session: Session, table: str, column: str) -> _Column:
    schema, name = table_name(table)
    shape = await ordinary(session, schema or "", name)
    found = next((c for c in shape.columns if c.name == column), None)
    if found is None:
        raise UndefinedColumn(f"{table} has no column {column!r}", sqlstate="42703")
    if found.type not in ("vector", "halfvec", "sparsevec"):
        raise InvalidInput(f"{table}.{column} is {found.spelled}: expected vector, halfvec or sparsevec")
    said = found.spelled.rpartition("(")[2].removesuffix(")")
    size = int(said) if said.isdigit() else None
    return _Column(shape.oid, shape.schema, shape.table, found.number, column, found.type, size)


def _indexed(column: _Column, quantize: str | None) -> tuple[str, str]:
    """What an index holds of a column, as SQL, and its type."""
    name = quoted(column.name)
    if quantize is None:
        return name, column.type
    if column.type != "vector" and (quantize == "half" or column.type == "sparsevec"):
        raise InvalidInput(f"quantize={quantize!r}: column {column.name} is {column.type}: expected vector")
    if quantize == "half":
        return f"({name}::halfvec({column.dimensions}))", "halfvec"
    return f"(binary_quantize({name})::bit({column.dimensions}))", "bit"


async def _indexes(session: Session, column: _Column) -> list[VectorIndex]:
    """The indexes over a column that a search can use, whole vectors first."""
    made = []
    for row in await session.query(_INDEXES, (column.oid, column.number), None):
        kind, _, metric = row["class"].removesuffix("_ops").partition("_")
        said = (row["said"] or "").removeprefix(_SAID) if (row["said"] or "").startswith(_SAID) else ""
        quantize = None if kind == column.type else {"halfvec": "half", "bit": "binary"}.get(kind)
        if quantize == "binary":
            metric = said.partition(",")[0] or "cosine"
        rerank = quantize is not None and (not said or said.endswith("re-ranked"))
        made.append(VectorIndex(row["name"], row["method"], metric, quantize, rerank, row["bytes"]))
    return made
