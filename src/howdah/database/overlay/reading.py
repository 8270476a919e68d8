"""Replaces the tiered tables that a statement reads, on its parse tree, by sub-selects, and views over them by what they say.

Only positions that are known to take a sub-select are replaced; whatever names a tiered table elsewhere is refused. What cannot
be seen here, because a function hides it, Postgres refuses: the gate is below every name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import postgast

from .columns import quoted
from .filters import Condition, by_server
from .joined import Joined, KeyQuery
from .plans import Promotion, unsupported
from .tiered import Known, Tiered, View
from .tree import (
    column_of,
    columns_named,
    comparison,
    condition,
    conjuncts,
    copied,
    fields,
    functions_of,
    name_of,
    null_test,
    range_vars,
    return_all,
    returned,
    returned_text,
    spelled,
    walk,
)

_FROM = {
    ("SelectStmt", "from_clause"),
    ("JoinExpr", "larg"),
    ("JoinExpr", "rarg"),
    ("UpdateStmt", "from_clause"),
    ("DeleteStmt", "using_clause"),
    ("MergeStmt", "source_relation"),
}
WRITES = ("insert_stmt", "update_stmt", "delete_stmt", "merge_stmt")
_STATEMENTS = ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")
_HARMLESS = ("now", "lower", "upper", "md5", "length", "concat", "to_jsonb", "jsonb_build_object", "jsonb_build_array")
"""Functions that write to no table."""
_UNEQUAL = ("json", "xml", "point", "polygon", "path", "box", "line", "lseg", "circle", "jsonpath")
"""Types that nothing is grouped by."""
_SYSTEM = ("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid")


def _subselect(tiered: Tiered, alias: Any, name: str, mode: str) -> Any:
    """The FROM item that stands for a tiered table: hot rows, and bound base rows that are not dead."""
    heap = f"SELECT {tiered.names()} FROM ONLY {tiered.table}"
    past = f"SELECT {tiered.names('b')} FROM {tiered.loaded} b"
    # A condition must not be asked of dead rows: they may not even fit it.
    live = f"{past} WHERE {tiered.live('b')} OFFSET 0"
    parts = {"hot": heap, "warm": live, "cold": live, "past": past}.get(mode, f"{heap} UNION ALL ({live})")
    return _item(parts, alias, name)


def _item(sql: str, alias: Any, name: str) -> Any:
    """A query as a FROM item."""
    try:
        tree = postgast.parse(f"SELECT 1 FROM ({sql}) AS {quoted(name)}")
    except postgast.PgQueryError as error:
        raise unsupported(f"the view {name}, whose text cannot be read ({error}),") from error
    node = tree.stmts[0].stmt.select_stmt.from_clause[0]
    if alias is not None:
        node.range_subselect.alias.CopyFrom(alias)
    return node


@dataclass(slots=True)
class Scope:
    """What the WHERE above a FROM item says, by the table's name as written, and whether the item stands alone there."""

    said: list[tuple[str, Condition]] = field(default_factory=list)
    alone: bool = False
    joined: Joined | None = None


class Reader:
    """One statement's reading of tiered tables."""

    def __init__(self, known: Known, mode: str) -> None:
        self._known = known
        self._mode = mode
        self._uses: dict[Tiered, list[list[Condition]]] = {}
        self._views: dict[str, View] = {}
        self._names: dict[Tiered, set[str]] = {}
        self._mentioned: Counter[int] = Counter()
        self._also: list[tuple[Tiered, Promotion]] = []
        self._functions: set[str] = set()
        self._tables: set[str] = set()
        self._columns: set[str] | None = set()
        self._inserted: dict[Tiered, str] = {}
        self._numbers = count()
        self._locking: Any = None
        """The SELECT … FOR UPDATE that this is, and the mentions that it locks: what they mean is in the heap."""
        self._locked: list[Any] = []

    def _about(self, tiered: Tiered, name: str, scope: Scope) -> list[Condition]:
        """The conditions on the table that is called so."""
        names = (name, "") if scope.alone else (name,)
        has = {c.name: c for c in tiered.columns}
        found = []
        more = scope.joined.about(tiered, name) if scope.joined is not None else []
        for called, one in [*scope.said, *more]:
            if called in names and one.column in has:
                # Another mention of a parameter may give it another type, in which its value is another one.
                values = tuple(
                    ("q", v) if k == "p" and self._mentioned[v] > 1 else (k, self._query(v) if k == "k" else v)
                    for k, v in one.values
                )
                found.append(by_server(has[one.column], one._replace(values=values)))
        return found

    def _shared(self, params: tuple[int, ...]) -> tuple[int, ...]:
        """Those that the statement has more than once: in a part by itself they may have another type."""
        return tuple(n for n in params if self._mentioned[n] > 1)

    def _query(self, query: KeyQuery) -> KeyQuery:
        return query._replace(shared=self._shared(query.params))

    def _named(self, tree: Any) -> None:
        """Note how each tiered table is called in a tree, and what its columns could be called."""
        found = columns_named(tree, self._columns_of)
        self._columns = None if found is None or self._columns is None else self._columns | found
        for relation in range_vars(tree):
            tiered = self._known.table(relation.schemaname, relation.relname)
            if tiered is not None:
                self._names.setdefault(tiered, set()).add(spelled(relation))

    def _columns_of(self, relation: Any) -> set[str] | None:
        tiered = self._known.table(relation.schemaname, relation.relname)
        return None if tiered is None else {c.name for c in tiered.columns}

    def _statement(self, statement: Any, hidden: frozenset[str]) -> None:
        """Replace the tiered tables of a statement; ``hidden`` are names that mean a common table expression."""
        hidden = self._with(statement, hidden)
        scope = conditions(statement)
        kind = type(statement).__name__
        if kind == "SelectStmt":
            if statement.locking_clause and statement is not self._locking and self._mentions(statement, hidden):
                raise unsupported("SELECT … FOR UPDATE over a tiered table within another statement")
            self._group(statement, hidden)
            scope.joined = Joined(statement, lambda relation: self._ordinary(relation, hidden))
        for name, child in fields(statement):
            if name != "with_clause":
                self._visit(child, hidden, (kind, name), scope)

    def _with(self, statement: Any, hidden: frozenset[str]) -> frozenset[str]:
        """Visit a statement's common table expressions; the names that are hidden in what follows."""
        if "with_clause" not in statement.DESCRIPTOR.fields_by_name or not statement.HasField("with_clause"):
            return hidden
        names = [c.common_table_expr.ctename for c in statement.with_clause.ctes]
        made: list[Any] = []
        for number, cte in enumerate(statement.with_clause.ctes):
            seen = hidden | set(names if statement.with_clause.recursive else names[:number])
            inner = cte.common_table_expr.ctequery
            write = inner.insert_stmt if inner.WhichOneof("node") == "insert_stmt" else None
            target = None if write is None else self._known.table(write.relation.schemaname, write.relation.relname)
            if write is not None and target is not None:
                made += self._inserting(cte, write, target, seen)
                continue
            self._visit(cte, seen, ("CommonTableExpr", "ctequery"), Scope())
            made.append(cte)
        copies = [copied(node) for node in made]
        del statement.with_clause.ctes[:]
        statement.with_clause.ctes.extend(copies)
        return hidden | set(names)

    def _inserting(self, cte: Any, write: Any, target: Tiered, hidden: frozenset[str]) -> list[Any]:
        """The common table expressions of one that inserts into a tiered table: one more notes its new keys."""
        if write.HasField("on_conflict_clause"):
            raise unsupported("a common table expression that upserts into a tiered table")
        if write.relation.HasField("alias") and write.relation.alias.colnames:
            raise unsupported("an alias with column names in INSERT")
        self.inserts(write, hidden)
        refuse_versions(write)
        returning, text = returns(write)
        return_all(write)
        alias = name_of(write.relation)
        self._inserted[target] = self._inserted.get(target, "") + lets(write, target)
        expression = cte.common_table_expr
        name, number = expression.ctename, next(self._numbers)
        fresh = f"howdah_new_{number}"
        more = f"howdah_keys_{number} AS (INSERT INTO {target.written} SELECT {target.keys()} FROM {fresh})"
        if returning:
            columns = ", ".join(quoted(c.string.sval) for c in expression.aliascolnames)
            more += f", {quoted(name)}{f' ({columns})' if columns else ''} AS (SELECT {text} FROM {fresh} AS {quoted(alias)})"
        expression.ctename = fresh
        del expression.aliascolnames[:]
        others = postgast.parse(f"WITH {more} SELECT 1").stmts[0].stmt.select_stmt.with_clause.ctes
        return [cte, *others]

    def inserts(self, write: Any, hidden: frozenset[str]) -> None:
        """Replace what an INSERT into a tiered table reads."""
        hidden = self._with(write, hidden)
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, ("InsertStmt", name), Scope())

    def _visit(self, message: Any, hidden: frozenset[str], place: tuple[str, str], scope: Scope) -> None:
        kind = type(message).__name__
        if kind == "Node":
            inner = message.WhichOneof("node")
            if inner is None:
                return
            if inner == "range_var":
                self._range(message, hidden, place, scope)
                return
            if inner in WRITES and place[0] == "CommonTableExpr":
                write = getattr(message, inner)
                # A common table expression never names what is written to.
                target = self._known.table(write.relation.schemaname, write.relation.relname)
                if target is not None:
                    self._beside(inner, write, target, hidden)
                    return
            self._visit(getattr(message, inner), hidden, place, scope)
            return
        if kind in _STATEMENTS:
            self._statement(message, hidden)
            return
        if kind == "RangeVar":
            if self._meant(message, hidden) is not None:
                raise unsupported(f"{place[0]} that names {message.relname}, a tiered table or a view over one,")
            return
        if kind == "ColumnRef":
            self._column(message)
        # Under an alias the names below mean nothing above. In outer joins what is left out below leaves nulls, which a WHERE
        # that compares this column leaves out, too.
        if kind == "JoinExpr" and message.HasField("alias"):
            scope = Scope()
        for name, child in fields(message):
            self._visit(child, hidden, (kind, name), scope)

    def _beside(self, kind: str, write: Any, target: Tiered, hidden: frozenset[str]) -> None:
        """An UPDATE or DELETE of a tiered table in a common table expression."""
        if kind not in ("update_stmt", "delete_stmt"):
            raise unsupported("MERGE into a tiered table in a common table expression")
        if kind == "update_stmt" and {t.res_target.name for t in write.target_list} & set(target.key):
            raise unsupported("a common table expression that changes the primary key of a tiered table")
        alias = name_of(write.relation)
        mine = self._about(target, alias, conditions(write))
        where, numbers, _ = condition(write)
        hidden, scope = self._with(write, hidden), conditions(write)
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, (type(write).__name__, name), scope)
        write.relation.inh = False
        self._uses.setdefault(target, []).append(mine)
        self._also.append((target, Promotion(alias, where, numbers, self._shared(numbers))))

    def _meant(self, relation: Any, hidden: frozenset[str]) -> Tiered | View | None:
        """The tiered table that a name means, or the view over one."""
        if not relation.schemaname and relation.relname in hidden:
            return None
        return self._known.find(relation.schemaname, relation.relname)

    def _group(self, select: Any, hidden: frozenset[str]) -> None:
        """Group by what depends on a table's key, where that is grouped by: a sub-select has no key, by which Postgres knows."""
        meant = [_grouped(g, select) for g in select.group_clause]
        if not meant or None in meant:
            return
        relations = [item.range_var for item in items(select.from_clause) if item.WhichOneof("node") == "range_var"]
        alone = len(relations) == len(items(select.from_clause)) == 1
        groups = {column_of(g) for g in meant}
        for relation in relations:
            found = self._meant(relation, hidden)
            if not isinstance(found, Tiered) or (relation.HasField("alias") and relation.alias.colnames):
                continue
            name = name_of(relation)
            if not all({(name, k), *[("", k)] * alone} & groups for k in found.key):
                continue
            parts = [
                m
                for clause, child in fields(select)
                if clause not in ("from_clause", "group_clause")
                for m in walk(child)
            ]
            named = {m.fields[-1].string.sval for m in parts if type(m).__name__ == "ColumnRef"}
            star = any(type(m).__name__ == "A_Star" for m in parts)
            for column in found.columns:
                grouped = column.name in found.key or (name, column.name) in groups
                if column.type not in _UNEQUAL and (star or column.name in named) and not grouped:
                    text = f"SELECT 1 GROUP BY {quoted(name)}.{quoted(column.name)}"
                    select.group_clause.extend(postgast.parse(text).stmts[0].stmt.select_stmt.group_clause)

    def _ordinary(self, relation: Any, hidden: frozenset[str]) -> bool:
        """Whether a name means a table that is not tiered, or a view that reads none."""
        hides = not relation.schemaname and relation.relname in hidden
        return not hides and self._known.find(relation.schemaname, relation.relname) is None

    def _mentions(self, statement: Any, hidden: frozenset[str]) -> bool:
        return any(self._meant(r, hidden) is not None for item in statement.from_clause for r in range_vars(item))

    def _range(self, node: Any, hidden: frozenset[str], place: tuple[str, str], scope: Scope) -> None:
        relation = node.range_var
        found = self._meant(relation, hidden)
        if found is None:
            return
        if place not in _FROM:
            raise unsupported(f"{place[0]} that names {relation.relname}, a tiered table or a view over one,")
        alias = relation.alias if relation.HasField("alias") else None
        name = alias.aliasname if alias is not None else relation.relname
        renamed = alias is not None and len(alias.colnames) > 0
        if isinstance(found, View):
            self._views[spelled(relation)] = found
            said = [] if renamed else [one for called, one in scope.said if called in (name, *[""] * scope.alone)]
            item = _item(found.sql, alias, name)
            self._named(item)
            self._viewed(item.range_subselect.subquery.select_stmt, said)
            node.CopyFrom(item)
            return
        if any(relation is one for one in self._locked):
            return
        if not relation.inh:
            raise unsupported("FROM ONLY a tiered table, which would leave out what is on object storage,")
        self._uses.setdefault(found, []).append([] if renamed else self._about(found, name, scope))
        node.CopyFrom(_subselect(found, alias, name, self._mode))

    def _viewed(self, select: Any, said: list[Condition]) -> None:
        """Replace the tiered tables of a view's query, of which something is said above."""
        below = _below(select, said)
        if not below:
            self._statement(select, frozenset())
            return
        scope = conditions(select)
        scope.said += below
        for name, child in fields(select):
            self._visit(child, frozenset(), ("SelectStmt", name), scope)

    def _column(self, column: Any) -> None:
        """``public.t.c`` means ``t.c`` now; what a base row does not have is refused."""
        names = [f.string.sval for f in column.fields if f.WhichOneof("node") == "string"]
        if names and names[-1] in _SYSTEM:
            raise unsupported(f"the system column {names[-1]}, which rows on object storage do not have,")
        if len(column.fields) == 3 and len(names) >= 2 and self._known.find(names[0], names[1]) is not None:
            del column.fields[0]


def _grouped(node: Any, select: Any) -> Any:
    """The column that a part of GROUP BY means: its own, or that of one of the query's results."""
    kind = node.WhichOneof("node")
    if kind == "a_const" and node.a_const.WhichOneof("val") == "ival":
        before = list(select.target_list)[: node.a_const.ival.ival]
        stars = any(type(m).__name__ == "A_Star" for item in before for m in walk(item))
        if stars or not 1 <= node.a_const.ival.ival <= len(select.target_list):
            return None
        node = before[-1].res_target.val
    elif kind == "column_ref" and (found := column_of(node)) is not None and not found[0]:
        named = [t.res_target.val for t in select.target_list if t.res_target.name == found[1]]
        if len(named) == 1 and column_of(named[0]) is not None:
            return named[0] if column_of(named[0]) != ("", found[1]) else node
    return node if node.WhichOneof("node") == "column_ref" else None


def items(nodes: Any) -> list[Any]:
    """The items of FROM, those of joins, too."""
    found: list[Any] = []
    for node in nodes:
        inner = node.WhichOneof("node") == "join_expr"
        found += items([node.join_expr.larg, node.join_expr.rarg]) if inner else [node]
    return found


_ROWWISE = {"target_list", "from_clause", "where_clause"}
"""The parts of a query that gives its tables' rows one by one."""


def _below(select: Any, said: list[Condition]) -> list[tuple[str, Condition]]:
    """What is said of a query's columns, said of those of its tables: only where each row comes from one of theirs."""
    if select.op != 1 or any(name not in _ROWWISE for name, _ in fields(select)):
        return []
    if any(type(m).__name__ in ("FuncCall", "SubLink") for t in select.target_list for m in walk(t)):
        return []  # such as an aggregate
    columns: dict[str, tuple[str, str]] = {}
    for item in select.target_list:
        if (found := column_of(item.res_target.val)) is not None:
            columns[item.res_target.name or found[1]] = found
    return [
        (columns[one.column][0], one._replace(column=columns[one.column][1]))
        for one in said
        if one.column in columns and one.op != "null"  # an outer join in it would make nulls
    ]


def conditions(statement: Any) -> Scope:
    """What the WHERE of a statement says of single columns for every row that counts."""
    if type(statement).__name__ == "SelectStmt":
        items = statement.from_clause
        alone = len(items) == 1 and items[0].WhichOneof("node") == "range_var"
    else:
        alone = not (getattr(statement, "from_clause", None) or getattr(statement, "using_clause", None))
    there = "where_clause" in statement.DESCRIPTOR.fields_by_name and statement.HasField("where_clause")
    found = said(statement.where_clause) if there else []
    # What is null here may be so because of an outer join.
    return Scope([one for one in found if alone or one[1].op != "null"], alone)


def said(whole: Any) -> list[tuple[str, Condition]]:
    """What a condition says of single columns wherever it holds."""
    found = []
    for node in conjuncts(whole):
        kind = node.WhichOneof("node")
        if kind == "a_expr":
            found.append(comparison(node.a_expr))
        elif kind == "null_test":
            found.append(null_test(node.null_test))
    return [one for one in found if one is not None]


def lets(write: Any, target: Tiered) -> str:
    """What lets an INSERT pass. A function may insert into the table by itself: it meets the gate, which lets one through."""
    return target.once if functions_of(write) - set(_HARMLESS) else target.pass_


def returns(write: Any) -> tuple[bool, str]:
    """Whether a write returns rows, and what is selected of them, or else their count."""
    returning = returned_text(write)
    return returning is not None, "count(*) AS n" if returning is None else returning


def refuse_versions(write: Any) -> None:
    """RETURNING of ``old`` and ``new`` is not there behind a common table expression."""
    if versions(write):
        raise unsupported("RETURNING of old or new values of rows whose keys are noted")


def versions(write: Any) -> bool:
    """Whether a write returns ``old`` or ``new`` values."""
    parts = [m for item in returned(write) for m in walk(item) if type(m).__name__ == "ColumnRef"]
    return any(len(m.fields) > 1 and m.fields[0].string.sval in ("old", "new") for m in parts)
