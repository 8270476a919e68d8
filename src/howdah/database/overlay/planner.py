"""Plans statements over tiered tables on Postgres' own parse tree: what they read of the base, and how they are written then.

Only positions that are known to take a sub-select are replaced; whatever names a tiered table elsewhere is refused. What the
planner does not see, because a view or function hides it, Postgres refuses: the gate is below every name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import postgast

from ...errors import Unsupported
from .columns import quoted
from .filters import Condition
from .tiered import Tiered
from .tree import (
    comparison,
    condition,
    deparsed,
    fields,
    parsed,
    range_vars,
    renumber,
    return_all,
    returned,
    returned_text,
    walk,
)

Resolve = Callable[[str, str], Tiered | None]
"""The tiered table of a schema ("" for the search path) and name."""
Kind = Literal["read", "mixed", "insert", "update", "delete", "truncate"]
_FROM = {
    ("SelectStmt", "from_clause"),
    ("JoinExpr", "larg"),
    ("JoinExpr", "rarg"),
    ("UpdateStmt", "from_clause"),
    ("DeleteStmt", "using_clause"),
}
_HEAP = ("index_stmt", "vacuum_stmt", "grant_stmt", "comment_stmt", "cluster_stmt", "lock_stmt")
"""Statements about the heap alone."""
_WRITES = ("insert_stmt", "update_stmt", "delete_stmt", "merge_stmt")
_STABLE = ("now", "lower", "upper", "md5", "length", "concat", "to_jsonb", "jsonb_build_object", "jsonb_build_array")
"""Functions that give the same when they are asked twice in a transaction."""
_SYSTEM = ("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid")
_PLAIN = frozenset((
    *("Node", "SelectStmt", "ResTarget", "ColumnRef", "A_Const", "ParamRef", "A_Expr", "TypeCast", "RangeVar", "Alias", "String"),
    *("Integer", "Float", "Boolean", "A_Star", "BoolExpr", "NullTest", "BooleanTest", "List", "TypeName", "SortBy", "CaseExpr"),
    *("CaseWhen", "CoalesceExpr", "MinMaxExpr", "A_Indirection", "A_Indices", "CollateClause", "A_ArrayExpr", "SQLValueFunction"),
))  # fmt: skip
"""What a query may consist of that has a row if, and only if, its table has one."""
_SKIP, _NOWAIT = 2, 3
"""Wait policies of FOR UPDATE."""


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
    whole: bool = False
    """Whether every bound row is promoted: the condition cannot be asked of single rows."""
    returning: bool = False
    probe: str | None = None
    probe_params: tuple[int, ...] = ()
    names: dict[Tiered, tuple[str, ...]] = field(default_factory=dict)
    """How each table was called: it must still be meant when the statement runs."""
    quick: str | None = None
    """What to try first on the heap alone, by the whole key: a row that it finds is the row; an INSERT says itself whether its
    keys are new."""
    rekey: bool = False
    """Whether keys change: new ones are looked up, as those of inserted rows are."""
    nowait: bool = False
    """Whether a row that somebody else has locked is an error at once."""
    mode: str = ""
    """Which tiers are read, if not those that are by default."""


def plan(sql: str, resolve: Resolve, mode: str = "") -> Plan | None:
    """The plan of a statement; ``None`` when it names no tiered table; ``Unsupported`` when it cannot be answered rightly."""
    found = parsed(sql)
    if found is None or not any(True for r in range_vars(found) if resolve(r.schemaname, r.relname)):
        return None
    if len(found.stmts) > 1:
        raise _unsupported("several statements at once over tiered tables in query()")
    kind = found.stmts[0].stmt.WhichOneof("node")
    if kind in _HEAP:
        if kind == "index_stmt" and found.stmts[0].stmt.index_stmt.unique:
            raise _unsupported("a unique index on a tiered table, which would not see the base,")
        return None
    tree = type(found)()
    tree.CopyFrom(found)
    return _Planner(resolve, mode).plan(tree)


def _subselect(tiered: Tiered, alias: Any, name: str, mode: str) -> Any:
    """The FROM item that stands for a tiered table: hot rows, and bound base rows that are not dead."""
    heap = f"SELECT * FROM ONLY {tiered.table}"
    past = f"SELECT {tiered.names('b')} FROM {tiered.loaded} b"
    # A condition must not be asked of dead rows: they may not even fit it.
    live = f"{past} WHERE {tiered.live('b')} OFFSET 0"
    parts = {"hot": heap, "warm": live, "cold": live, "past": past}.get(mode, f"{heap} UNION ALL ({live})")
    node = postgast.parse(f"SELECT 1 FROM ({parts}) AS {quoted(name)}").stmts[0].stmt.select_stmt.from_clause[0]
    if alias is not None:
        node.range_subselect.alias.CopyFrom(alias)
    return node


@dataclass(slots=True)
class _Scope:
    """What the WHERE above a FROM item says, by the table's name as written, and whether the item stands alone there."""

    said: list[tuple[str, Condition]] = field(default_factory=list)
    alone: bool = False


class _Planner:
    def __init__(self, resolve: Resolve, mode: str) -> None:
        self._resolve = resolve
        self._mode = mode
        self._uses: dict[Tiered, list[list[Condition]]] = {}
        self._names: dict[Tiered, set[str]] = {}
        self._mentioned: Counter[int] = Counter()

    def plan(self, tree: Any) -> Plan:
        """The plan of a statement's tree, which is changed."""
        self._mentioned.update(m.number for m in walk(tree) if type(m).__name__ == "ParamRef")
        for relation in range_vars(tree):
            tiered = self._resolve(relation.schemaname, relation.relname)
            if tiered is not None:
                spelled = ".".join(quoted(n) for n in (relation.schemaname, relation.relname) if n)
                self._names.setdefault(tiered, set()).add(spelled)
        made = self._plan(tree)
        made.mode = self._mode
        if self._mode and made.kind != "read":
            raise _unsupported("tier= or as_of= for a statement that writes")
        made.names = {t: tuple(sorted(n)) for t, n in self._names.items()}
        return made

    def _plan(self, tree: Any) -> Plan:
        node = tree.stmts[0].stmt
        kind = str(node.WhichOneof("node"))
        if kind == "select_stmt":
            if node.select_stmt.locking_clause and (made := self._locking(tree, node.select_stmt)) is not None:
                return made
            quick = self._quick(tree, node.select_stmt)
            self._statement(node.select_stmt, frozenset())
            return Plan(self._purity(node), postgast.deparse(tree), self._uses, quick=quick)
        if kind == "truncate_stmt":
            return self._truncate(node.truncate_stmt)
        if kind not in ("insert_stmt", "update_stmt", "delete_stmt"):
            raise _unsupported(f"{kind.removesuffix('_stmt').replace('_', ' ').upper()} over a tiered table")
        write = getattr(node, kind)
        target = self._resolve(write.relation.schemaname, write.relation.relname)
        if target is None:
            self._statement(write, frozenset())
            return Plan("mixed", postgast.deparse(tree), self._uses)
        return self._insert(write, target) if kind == "insert_stmt" else self._change(kind, tree, write, target)

    def _purity(self, node: Any) -> Kind:
        inner = [m for m in walk(node) if type(m).__name__ == "CommonTableExpr"]
        return "mixed" if any(c.ctequery.WhichOneof("node") in _WRITES for c in inner) else "read"

    # Reading -----------------------------------------------------------------------------------------------------

    def _statement(self, statement: Any, hidden: frozenset[str]) -> None:
        """Replace the tiered tables of a statement; ``hidden`` are names that mean a common table expression."""
        hidden = self._with(statement, hidden)
        scope = self._conditions(statement)
        kind = type(statement).__name__
        if kind == "SelectStmt" and statement.locking_clause and self._mentions(statement, hidden):
            raise _unsupported("SELECT … FOR UPDATE over a tiered table")
        for name, child in fields(statement):
            if name != "with_clause":
                self._visit(child, hidden, (kind, name), scope)

    def _with(self, statement: Any, hidden: frozenset[str]) -> frozenset[str]:
        """Visit a statement's common table expressions; the names that are hidden in what follows."""
        if "with_clause" not in statement.DESCRIPTOR.fields_by_name or not statement.HasField("with_clause"):
            return hidden
        names = [c.common_table_expr.ctename for c in statement.with_clause.ctes]
        for number, cte in enumerate(statement.with_clause.ctes):
            seen = names if statement.with_clause.recursive else names[:number]
            self._visit(cte, hidden | set(seen), ("CommonTableExpr", "ctequery"), _Scope())
        return hidden | set(names)

    def _visit(self, message: Any, hidden: frozenset[str], place: tuple[str, str], scope: _Scope) -> None:
        kind = type(message).__name__
        if kind == "Node":
            inner = message.WhichOneof("node")
            if inner is None:
                return
            if inner == "range_var":
                self._range(message, hidden, place, scope)
                return
            if inner in _WRITES and place[0] == "CommonTableExpr":
                write = getattr(message, inner)
                # A common table expression never names what is written to.
                if self._resolve(write.relation.schemaname, write.relation.relname) is not None:
                    raise _unsupported("a common table expression that writes to a tiered table")
            self._visit(getattr(message, inner), hidden, place, scope)
            return
        if kind in ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
            self._statement(message, hidden)
            return
        if kind == "RangeVar":
            if self._tiered(message, hidden) is not None:
                raise _unsupported(f"{place[0]} that names the tiered table {message.relname}")
            return
        if kind == "ColumnRef":
            self._column(message)
        # Of an outer join no condition above is one of its sides; under an alias the names below mean nothing above.
        if kind == "JoinExpr" and (message.jointype not in (0, 1) or message.HasField("alias")):
            scope = _Scope()
        for name, child in fields(message):
            self._visit(child, hidden, (kind, name), scope)

    def _tiered(self, relation: Any, hidden: frozenset[str]) -> Tiered | None:
        if not relation.schemaname and relation.relname in hidden:
            return None
        return self._resolve(relation.schemaname, relation.relname)

    def _mentions(self, statement: Any, hidden: frozenset[str]) -> bool:
        return any(self._tiered(r, hidden) is not None for item in statement.from_clause for r in range_vars(item))

    def _range(self, node: Any, hidden: frozenset[str], place: tuple[str, str], scope: _Scope) -> None:
        relation = node.range_var
        tiered = self._tiered(relation, hidden)
        if tiered is None:
            return
        if place not in _FROM:
            raise _unsupported(f"{place[0]} that names the tiered table {relation.relname}")
        if not relation.inh:
            raise _unsupported("FROM ONLY a tiered table, which would leave out what is on object storage,")
        alias = relation.alias if relation.HasField("alias") else None
        name = alias.aliasname if alias is not None else relation.relname
        renamed = alias is not None and len(alias.colnames) > 0
        mine = [] if renamed else self._about(tiered, name, scope)
        self._uses.setdefault(tiered, []).append(mine)
        node.CopyFrom(_subselect(tiered, alias, name, self._mode))

    def _quick(self, tree: Any, select: Any) -> str | None:
        """The query on the heap alone, if it is one for the row of a key."""
        items = select.from_clause
        if self._mode or len(items) != 1 or items[0].WhichOneof("node") != "range_var" or select.op != 1:
            return None
        relation = items[0].range_var
        tiered = self._resolve(relation.schemaname, relation.relname)
        others = ("with_clause", "having_clause", "locking_clause", "group_clause", "distinct_clause", "window_clause")
        if tiered is None or not relation.inh or any(name in others for name, _ in fields(select)):
            return None
        if any(type(m).__name__ not in _PLAIN for m in walk(select)):
            return None
        alias = relation.alias if relation.HasField("alias") else None
        if alias is not None and len(alias.colnames) > 0:
            return None
        if not self._pinned(tiered, relation.relname if alias is None else alias.aliasname, select):
            return None
        copy = type(tree)()
        copy.CopyFrom(tree)
        copy.stmts[0].stmt.select_stmt.from_clause[0].range_var.inh = False
        return str(postgast.deparse(copy))

    def _pinned(self, tiered: Tiered, name: str, statement: Any) -> bool:
        """Whether a statement's WHERE gives the whole key."""
        found = self._about(tiered, name, self._conditions(statement))
        return set(tiered.key) <= {c.column for c in found if c.op == "="}

    def _locking(self, tree: Any, select: Any) -> Plan | None:
        """The plan of SELECT … FOR UPDATE of one tiered table; ``None`` if it names none."""
        relations = [r for name, child in fields(select) if name != "locking_clause" for r in range_vars(child)]
        if not any(self._resolve(r.schemaname, r.relname) for r in relations):
            return None
        items = select.from_clause
        single = len(items) == 1 and items[0].WhichOneof("node") == "range_var"
        if not single or len(relations) != 1 or self._mode or select.HasField("with_clause"):
            raise _unsupported("SELECT … FOR UPDATE of more than one tiered table")
        policies = {c.locking_clause.wait_policy for c in select.locking_clause}
        if _SKIP in policies:
            raise _unsupported("SKIP LOCKED over a tiered table")
        relation = items[0].range_var
        target = self._resolve(relation.schemaname, relation.relname)
        assert target is not None
        alias = relation.alias.aliasname if relation.HasField("alias") else relation.relname
        if relation.HasField("alias") and len(relation.alias.colnames) > 0:
            raise _unsupported("an alias with column names in SELECT … FOR UPDATE")
        for message in walk(select):
            if type(message).__name__ == "ColumnRef":
                self._column(message)
        self._uses[target] = [self._about(target, alias, self._conditions(select))]
        where, numbers, whole = condition(select)
        quick = self._pinned(target, alias, select) and not whole
        relation.inh = False
        sql = str(postgast.deparse(tree))
        return Plan(
            "update",
            sql,
            self._uses,
            target,
            alias,
            where,
            numbers,
            whole,
            True,
            quick=sql if quick else None,
            nowait=_NOWAIT in policies,
        )

    def _truncate(self, statement: Any) -> Plan:
        relations = [r for item in statement.relations for r in range_vars(item)]
        target = self._resolve(relations[0].schemaname, relations[0].relname)
        if len(relations) != 1 or target is None:
            raise _unsupported("TRUNCATE of several tables of which one is tiered")
        statement.relations[0].range_var.inh = False
        return Plan("truncate", f"{target.pass_} {deparsed('truncate_stmt', statement)}", self._uses, target)

    def _about(self, tiered: Tiered, name: str, scope: _Scope) -> list[Condition]:
        """The conditions on the table that is called so."""
        names = (name, "") if scope.alone else (name,)
        has = {c.name: c for c in tiered.columns}
        found = []
        for called, one in scope.said:
            if called in names and one.column in has:
                numbers = [v for k, v in one.values if k == "p"]
                # Text means another text where the parameter has another type, which another mention may give it.
                if has[one.column].type not in ("text", "varchar") or all(self._mentioned[n] == 1 for n in numbers):
                    found.append(one)
        return found

    def _column(self, column: Any) -> None:
        """``public.t.c`` means ``t.c`` now; what a base row does not have is refused."""
        names = [f.string.sval for f in column.fields if f.WhichOneof("node") == "string"]
        if names and names[-1] in _SYSTEM:
            raise _unsupported(f"the system column {names[-1]}, which rows on object storage do not have,")
        if len(column.fields) == 3 and len(names) >= 2 and self._resolve(names[0], names[1]) is not None:
            del column.fields[0]

    # Conditions --------------------------------------------------------------------------------------------------

    @staticmethod
    def _conditions(statement: Any) -> _Scope:
        """What the WHERE of a statement says of single columns for every row that counts."""
        if "where_clause" not in statement.DESCRIPTOR.fields_by_name or not statement.HasField("where_clause"):
            return _Scope()
        if type(statement).__name__ == "SelectStmt":
            items = statement.from_clause
            alone = len(items) == 1 and items[0].WhichOneof("node") == "range_var"
        else:
            alone = not (getattr(statement, "from_clause", None) or getattr(statement, "using_clause", None))
        scope, waiting = _Scope(alone=alone), [statement.where_clause]
        while waiting:
            node = waiting.pop()
            inner = node.WhichOneof("node")
            if inner == "bool_expr" and node.bool_expr.boolop == 1:  # AND
                waiting.extend(node.bool_expr.args)
            elif inner == "a_expr" and (one := comparison(node.a_expr)) is not None:
                scope.said.append(one)
        return scope

    # Writing -----------------------------------------------------------------------------------------------------

    def _insert(self, write: Any, target: Tiered) -> Plan:
        if write.relation.HasField("alias") and write.relation.alias.colnames:
            raise _unsupported("an alias with column names in INSERT")
        probe: str | None = None
        numbers: tuple[int, ...] = ()
        if write.HasField("on_conflict_clause"):
            probe, numbers = self._probe(write, target)
        self._statement_of_insert(write)
        _refuse_versions(write)
        alias = write.relation.alias.aliasname if write.relation.HasField("alias") else write.relation.relname
        returning, shown = _shown(write)
        return_all(write)
        inner = deparsed("insert_stmt", write)
        named = quoted(alias)
        # A function may insert into the table by itself: it meets the gate, which lets one INSERT through.
        functions = {m.funcname[-1].string.sval for m in walk(write) if type(m).__name__ == "FuncCall"}
        let = target.once if functions - set(_STABLE) else target.pass_
        sql = self._noting(let, inner, shown, target, alias)
        quick = None
        if target.ranked and not self._uses and probe is None:
            largest = f"pg_sequence_last_value('{target.largest}')"  # null to who may not read it: doubtful
            fresh = f"CASE WHEN {target.rank_sql(named)} > {largest} THEN true ELSE howdah.doubtful() END"
            quick = f"{let} WITH howdah_new AS ({inner}) SELECT {shown} FROM howdah_new AS {named} WHERE {fresh}"
        return Plan(
            "insert",
            sql,
            self._uses,
            target,
            alias,
            returning=returning,
            probe=probe,
            probe_params=numbers,
            quick=quick,
        )

    def _statement_of_insert(self, write: Any) -> None:
        if write.HasField("with_clause"):
            for cte in write.with_clause.ctes:
                if cte.common_table_expr.ctequery.WhichOneof("node") in _WRITES:
                    raise _unsupported("a common table expression that writes, in an INSERT into a tiered table,")
        hidden = self._with(write, frozenset())
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, ("InsertStmt", name), _Scope())

    def _probe(self, write: Any, target: Tiered) -> tuple[str, tuple[int, ...]]:
        """The same rows into a temporary table, which tells their keys; and the parameters that takes."""
        copy = type(write)()
        copy.CopyFrom(write)
        before, self._uses = self._uses, {}
        self._statement_of_insert(copy)
        reads, self._uses = self._uses, before
        if reads:
            raise _unsupported("INSERT … SELECT from a tiered table with ON CONFLICT")
        copy.ClearField("on_conflict_clause")
        for message in walk(copy):
            if type(message).__name__ == "SubLink" or (
                type(message).__name__ == "FuncCall" and message.funcname[-1].string.sval not in _STABLE
            ):
                raise _unsupported("an upsert into a tiered table whose rows come from functions or sub-selects")
        copy.ClearField(
            "returning_clause" if "returning_clause" in copy.DESCRIPTOR.fields_by_name else "returning_list"
        )
        copy.relation.schemaname = "pg_temp"
        copy.relation.relname = target.probe.partition(".")[2]
        numbers = renumber(copy)
        return deparsed("insert_stmt", copy), numbers

    def _change(self, kind: str, tree: Any, write: Any, target: Tiered) -> Plan:
        rekey = False
        if kind == "update_stmt":
            changed = {t.res_target.name for t in write.target_list if t.WhichOneof("node") == "res_target"}
            rekey = bool(changed & set(target.key))
        if rekey and (write.from_clause or write.HasField("with_clause")):
            raise _unsupported("UPDATE … FROM of the primary key of a tiered table")
        if write.HasField("where_clause") and write.where_clause.WhichOneof("node") == "current_of_expr":
            raise _unsupported("WHERE CURRENT OF on a tiered table")
        alias = write.relation.alias.aliasname if write.relation.HasField("alias") else write.relation.relname
        mine = self._about(target, alias, self._conditions(write))
        for message in walk(write):
            if type(message).__name__ == "ColumnRef":
                self._column(message)
        where, numbers, whole = condition(write)
        quick = not whole and not rekey and self._pinned(target, alias, write)
        hidden, scope = self._with(write, frozenset()), self._conditions(write)
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, (type(write).__name__, name), scope)
        quick = quick and not self._uses
        if rekey:
            _refuse_versions(write)
        write.relation.inh = False
        returning, shown = _shown(write)
        self._uses.setdefault(target, []).append(mine)
        sql = str(postgast.deparse(tree))
        if rekey:
            return_all(write)
            sql = self._noting(target.pass_, deparsed(kind, write), shown, target, alias)
        return Plan(
            "update" if kind == "update_stmt" else "delete", sql, self._uses, target, alias, where, numbers, whole,
            returning, quick=sql if quick else None, rekey=rekey,
        )  # fmt: skip

    @staticmethod
    def _noting(let: str, inner: str, shown: str, target: Tiered, alias: str) -> str:
        """A write whose new keys are noted."""
        return (
            f"{let} WITH howdah_new AS ({inner}),"
            f" howdah_keys AS (INSERT INTO {target.written} SELECT {target.keys()} FROM howdah_new)"
            f" SELECT {shown} FROM howdah_new AS {quoted(alias)}"
        )


def _shown(write: Any) -> tuple[bool, str]:
    """Whether a write returns rows, and what is selected of them, or else their count."""
    returning = returned_text(write)
    return returning is not None, "count(*) AS n" if returning is None else returning


def _refuse_versions(write: Any) -> None:
    """RETURNING of ``old`` and ``new`` is not there behind a common table expression."""
    for message in (m for item in returned(write) for m in walk(item)):
        if type(message).__name__ == "ColumnRef" and len(message.fields) > 1:
            if message.fields[0].string.sval in ("old", "new"):
                raise _unsupported("RETURNING of old or new values of rows whose keys are noted")


def _unsupported(what: str) -> Unsupported:
    return Unsupported(f"{what} is not supported")
