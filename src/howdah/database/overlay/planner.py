"""Plans statements over tiered tables on Postgres' own parse tree: what they read of the base, and how they are written then."""

from __future__ import annotations

from typing import Any

import postgast

from .columns import quoted
from .joined import Joined
from .limited import Limited, limited, ordered_by, tail_of
from .plans import GIVEN, Kind, Once, Plan, Promotion, Summary, unsupported
from .reading import WRITES, Reader, Scope, conditions, items, lets, refuse_versions, returns, said, versions
from .shaping import TABLE, altering, check_create, dropping, typing
from .sources import from_source, keys_of
from .summing import summary
from .tiered import Known, Tiered
from .tree import (
    condition,
    deparsed,
    fields,
    functions_of,
    name_of,
    parsed,
    range_vars,
    renumber,
    return_all,
    returned,
    spelled,
    walk,
)
from .upserts import given_of, mixed, probe_of

_HEAP = ("index_stmt", "vacuum_stmt", "grant_stmt", "comment_stmt", "cluster_stmt", "lock_stmt", "view_stmt",
         "create_trig_stmt")  # fmt: skip
"""Statements about the heap alone."""
_PLAIN = frozenset((
    *("Node", "SelectStmt", "ResTarget", "ColumnRef", "A_Const", "ParamRef", "A_Expr", "TypeCast", "RangeVar", "Alias", "String"),
    *("Integer", "Float", "Boolean", "A_Star", "BoolExpr", "NullTest", "BooleanTest", "List", "TypeName", "SortBy", "CaseExpr"),
    *("CaseWhen", "CoalesceExpr", "MinMaxExpr", "A_Indirection", "A_Indices", "CollateClause", "A_ArrayExpr", "SQLValueFunction"),
))  # fmt: skip
"""What a query may consist of that has a row if, and only if, its table has one."""
_UPDATE, _NOTHING, _BY_SOURCE = 3, 8, 2
"""What a MERGE does, and when."""
_SKIP, _NOWAIT = 2, 3
"""Wait policies of FOR UPDATE."""


def plan(sql: str, known: Known, mode: str = "") -> Plan | None:
    """The plan of a statement; ``None`` when it names no tiered table; ``Unsupported`` when it cannot be answered rightly."""
    found = parsed(sql)
    if found is not None and len(found.stmts) == 1 and (made := dropping(sql, found.stmts[0].stmt, known)) is not None:
        return made
    if (
        found is not None
        and known.tables
        and len(found.stmts) == 1
        and (made := typing(sql, found.stmts[0].stmt)) is not None
    ):
        return made
    if found is None or not any(known.find(r.schemaname, r.relname) for r in range_vars(found)):
        return None
    if len(found.stmts) > 1:
        raise unsupported("several statements at once over tiered tables in query()")
    kind = found.stmts[0].stmt.WhichOneof("node")
    if kind in ("alter_table_stmt", "rename_stmt", "alter_object_schema_stmt"):
        return altering(sql, found.stmts[0].stmt, known)
    if kind == "create_stmt":
        check_create(found.stmts[0].stmt.create_stmt, known)
        return None
    if kind in _HEAP:
        if kind == "index_stmt" and found.stmts[0].stmt.index_stmt.unique:
            raise unsupported("a unique index on a tiered table, which would not see the base,")
        return None
    tree = type(found)()
    tree.CopyFrom(found)
    return _Planner(known, mode).plan(sql, tree)


class _Planner(Reader):
    def plan(self, sql: str, tree: Any) -> Plan:
        """The plan of a statement, whose tree is changed."""
        self._mentioned.update(m.number for m in walk(tree) if type(m).__name__ == "ParamRef")
        self._named(tree)
        made = self._plan(tree)
        made.mode = self._mode
        made.text = sql
        if self._mode and made.kind != "read":
            raise unsupported("tier= or as_of= for a statement that writes")
        made.names = {t: tuple(sorted(n)) for t, n in self._names.items()}
        made.views = self._views
        made.columns = None if self._columns is None else frozenset(self._columns)
        made.also = self._also
        made.functions = frozenset(self._functions)
        made.tables = frozenset(self._tables)
        made.inserted = tuple(self._inserted)
        made.sql = " ".join([*self._inserted.values(), made.sql])
        return made

    def _plan(self, tree: Any) -> Plan:
        node = tree.stmts[0].stmt
        kind = str(node.WhichOneof("node"))
        if kind == "select_stmt":
            if node.select_stmt.locking_clause:
                if (made := self._lock(tree, node.select_stmt)) is not None:
                    return made
                self._locking = node.select_stmt  # what it locks is in no base
            if not node.select_stmt.HasField("with_clause"):
                self._group(node.select_stmt, frozenset())
            quick, summed = self._quick(tree, node.select_stmt), self._summary(node.select_stmt)
            reach = self._limited(node.select_stmt)
            self._statement(node.select_stmt, frozenset())
            made = Plan(self._purity(node), postgast.deparse(tree), self._uses, quick=quick, summary=summed)
            made.limited = reach if [len(mentions) for mentions in self._uses.values()] == [1] else None
            return made
        if kind == "explain_stmt" and node.explain_stmt.query.WhichOneof("node") == "select_stmt":
            reach = self._limited(node.explain_stmt.query.select_stmt)
            self._statement(node.explain_stmt.query.select_stmt, frozenset())
            made = Plan(self._purity(node), postgast.deparse(tree), self._uses)
            made.limited = reach if [len(mentions) for mentions in self._uses.values()] == [1] else None
            options = {o.def_elem.defname: o.def_elem.arg.string.sval for o in node.explain_stmt.options}
            made.explains = options.get("format", "text").lower() == "text"
            return made
        if kind == "truncate_stmt":
            return self._truncate(node.truncate_stmt)
        if kind == "create_table_as_stmt" and node.create_table_as_stmt.objtype == TABLE:
            self._statement(node.create_table_as_stmt.query.select_stmt, frozenset())
            return Plan("mixed", postgast.deparse(tree), self._uses)
        if kind not in WRITES:
            raise unsupported(f"{kind.removesuffix('_stmt').replace('_', ' ').upper()} over a tiered table")
        write = getattr(node, kind)
        target = self._known.table(write.relation.schemaname, write.relation.relname)
        if target is None:
            self._statement(write, frozenset())
            return Plan("mixed", postgast.deparse(tree), self._uses)
        if kind == "merge_stmt":
            return self._merge(write, target)
        return self._insert(write, target) if kind == "insert_stmt" else self._change(kind, tree, write, target)

    def _purity(self, node: Any) -> Kind:
        inner = [m for m in walk(node) if type(m).__name__ == "CommonTableExpr"]
        return "mixed" if any(c.ctequery.WhichOneof("node") in WRITES for c in inner) else "read"

    # Reading -----------------------------------------------------------------------------------------------------

    def _quick(self, tree: Any, select: Any) -> str | None:
        """The query on the heap alone, if it is one for the row of a key."""
        if self._mode or select.op != 1 or (found := self._alone(select)) is None:
            return None
        others = ("with_clause", "having_clause", "locking_clause", "group_clause", "distinct_clause", "window_clause")
        if any(name in others for name, _ in fields(select)):
            return None
        if any(type(m).__name__ not in _PLAIN for m in walk(select)):
            return None
        if not self._pinned(*found, select):
            return None
        copy = type(tree)()
        copy.CopyFrom(tree)
        copy.stmts[0].stmt.select_stmt.from_clause[0].range_var.inh = False
        return str(postgast.deparse(copy))

    def _alone(self, select: Any) -> tuple[Tiered, str] | None:
        """The tiered table that a query is of alone, and what it is called there."""
        items = select.from_clause
        if len(items) != 1 or items[0].WhichOneof("node") != "range_var":
            return None
        relation = items[0].range_var
        tiered = self._known.table(relation.schemaname, relation.relname)
        alias = relation.alias if relation.HasField("alias") else None
        if tiered is None or not relation.inh or (alias is not None and len(alias.colnames) > 0):
            return None
        return tiered, relation.relname if alias is None else alias.aliasname

    def _summary(self, select: Any) -> Summary | None:
        """How base rows are summed up where they are, if the query only asks for sums of one table."""
        if self._mode or (found := self._alone(select)) is None:
            return None
        return summary(select, *found, self._about(*found, conditions(select)))

    def _limited(self, select: Any) -> Limited | None:
        """Which base rows the LIMIT of a query of one table can reach."""
        if (found := self._alone(select)) is None:
            return None
        made = limited(select, *found, self._about(*found, conditions(select)))
        return None if made is None else made._replace(shared=self._shared(made.params))

    def _pinned(self, tiered: Tiered, name: str, statement: Any) -> bool:
        """Whether a statement's WHERE gives the whole key."""
        found = self._about(tiered, name, conditions(statement))
        return set(tiered.key) <= {c.column for c in found if c.op == "="}

    def _lock(self, tree: Any, select: Any) -> Plan | None:
        """The plan of SELECT … FOR UPDATE of tiered tables; ``None`` if it locks none: what is locked is in the heap then."""
        clauses = [c.locking_clause for c in select.locking_clause]
        skips = any(c.wait_policy == _SKIP for c in clauses)
        every = any(not c.locked_rels for c in clauses)
        listed = {r.range_var.relname for c in clauses for r in c.locked_rels}
        hidden = frozenset(c.common_table_expr.ctename for c in select.with_clause.ctes)
        locked: list[tuple[Any, Tiered, str]] = []
        for item in items(select.from_clause):
            if item.WhichOneof("node") != "range_var":
                inside = [r for r in range_vars(item) if self._meant(r, hidden) is not None]
                if inside and every:
                    raise unsupported("SELECT … FOR UPDATE of a sub-select over a tiered table")
                continue
            relation = item.range_var
            name = name_of(relation)
            found = self._meant(relation, hidden)
            if found is None or not (every or name in listed):
                continue
            if not isinstance(found, Tiered) or not relation.inh or self._mode:
                raise unsupported(
                    "SELECT … FOR UPDATE of a view over a tiered table, of ONLY it, or with tier= or as_of="
                )
            if relation.HasField("alias") and len(relation.alias.colnames) > 0:
                raise unsupported("an alias with column names in SELECT … FOR UPDATE")
            locked.append((relation, found, name))
        if not locked:
            return None
        alone = len(items(select.from_clause)) == 1 and not select.HasField("with_clause")
        where, numbers, whole = condition(select) if alone else (None, (), True)
        quick = alone and not whole and self._pinned(locked[0][1], locked[0][2], select)
        wanted = Scope()
        if not alone:
            wanted = conditions(select)
            wanted.joined = Joined(select, lambda relation: self._ordinary(relation, hidden))
        for relation, target, name in locked:
            found_of = self._about(target, name, conditions(select) if alone else wanted)
            # What is asked of other tables may be another answer when the rows are locked.
            self._uses.setdefault(target, []).append([c for c in found_of if all(k != "k" for k, _ in c.values)])
            tail = (
                tail_of(select)
                if alone and not whole and {c.name for c in target.columns} >= ordered_by(select)
                else None
            )
            # Who waits for a row may find it gone: then the next one must be there. Who skips it does not wait.
            order, limit, offset = (tail if skips else None) or ("", None, None)
            self._also.append((target, Promotion(name, where, numbers, self._shared(numbers), order, limit, offset)))
            relation.inh = False
        self._locking, self._locked = select, [relation for relation, _, _ in locked]
        self._statement(select, frozenset())
        policies = {c.wait_policy for c in clauses}
        sql = str(postgast.deparse(tree))
        return Plan(
            "update", sql, self._uses, quick=sql if quick and len(self._uses) == 1 else None,
            nowait=_NOWAIT in policies, skips=_SKIP in policies,
        )  # fmt: skip

    def _truncate(self, statement: Any) -> Plan:
        relations = [r for item in statement.relations for r in range_vars(item)]
        target = self._known.table(relations[0].schemaname, relations[0].relname)
        if len(relations) != 1 or target is None:
            raise unsupported("TRUNCATE of several tables of which one is tiered")
        statement.relations[0].range_var.inh = False
        return Plan("truncate", f"{target.pass_} {deparsed('truncate_stmt', statement)}", self._uses, target)

    # Writing -----------------------------------------------------------------------------------------------------

    def _insert(self, write: Any, target: Tiered) -> Plan:
        if write.relation.HasField("alias") and write.relation.alias.colnames:
            raise unsupported("an alias with column names in INSERT")
        probe: str | None = None
        numbers: tuple[int, ...] = ()
        once: Once | None = None
        writes = write.HasField("with_clause") and any(
            cte.common_table_expr.ctequery.WhichOneof("node") in WRITES for cte in write.with_clause.ctes
        )
        upserts = write.HasField("on_conflict_clause")
        if writes and upserts:
            raise unsupported("a common table expression that writes, in an upsert into a tiered table,")
        if upserts:
            self._check_upsert(write, target)
        self.inserts(write, frozenset())
        if upserts:
            probe, numbers = probe_of(write, target)
            once = self._once(write, target)
            if mixed(write) and not (once.must or once.functions):  # which the table may have to fill in itself
                once = None
        # What writes must be on top.
        before = _hoisted(write) if writes else "WITH"
        if versions(write):
            if writes or upserts:
                refuse_versions(write)
            return self._returning_versions(write, target)
        alias = name_of(write.relation)
        returning, shown = returns(write)
        return_all(write)
        inner = deparsed("insert_stmt", write)
        named = quoted(alias)
        let = lets(write, target)
        if upserts:
            let += target.rekey
        sql = self._noting(let, inner, shown, target, alias, before)
        quick = None
        if target.ranked and not self._uses and probe is None and not writes:
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
            once=once,
            quick=quick,
        )

    def _check_upsert(self, write: Any, target: Tiered) -> None:
        """Beside its rows an upsert must not read the table itself, nor its common table expressions: the rows are made before."""
        rest = type(write)()
        rest.CopyFrom(write)
        rest.ClearField("select_stmt")
        names = {c.common_table_expr.ctename for c in rest.with_clause.ctes}
        rest.ClearField("with_clause")
        if any(
            not r.schemaname and r.relname in names
            for name, child in fields(rest)
            if name != "relation"
            for r in range_vars(child)
        ):
            raise unsupported(
                "ON CONFLICT or RETURNING that names a common table expression, in an upsert into a tiered table,"
            )
        before, self._uses = self._uses, {}
        self.inserts(rest, frozenset())
        reads, self._uses = self._uses, before
        if target in reads:
            raise unsupported("ON CONFLICT or RETURNING that reads the tiered table itself")

    def _once(self, write: Any, target: Tiered) -> Once:
        """How an upsert is done whose rows must not be made twice."""
        source = write.select_stmt
        given = given_of(write, target)
        must = bool(self._uses) or any(type(m).__name__ in ("SubLink", "RangeTableSample") for m in walk(source))
        tables = {spelled(r) for part in (source, write.with_clause) for r in range_vars(part)}
        final = type(write)()
        final.CopyFrom(write)
        final.ClearField("with_clause")
        example = postgast.parse(f"INSERT INTO t ({GIVEN}) SELECT {GIVEN} FROM {target.probe} ORDER BY ctid")
        insert = example.stmts[0].stmt.insert_stmt
        final.select_stmt.CopyFrom(insert.select_stmt)
        del final.cols[:]
        final.cols.extend(insert.cols)
        returning, shown = returns(final)
        return_all(final)
        alias = name_of(write.relation)
        tree = postgast.parse(f"SELECT {shown}")
        numbers = renumber(final, tree) if returning else renumber(final)
        shown = str(postgast.deparse(tree)).removeprefix("SELECT ")
        sql = self._noting(lets(write, target) + target.rekey, deparsed("insert_stmt", final), shown, target, alias)
        functions = functions_of(source, write.with_clause)
        return Once(sql, numbers, self._shared(numbers), given, tuple(sorted(functions)), tuple(sorted(tables)), must)

    def _returning_versions(self, write: Any, target: Tiered) -> Plan:
        """The plan of an INSERT that returns old or new values: as they are there, with the keys behind them."""
        alias = name_of(write.relation)
        plain = f"{lets(write, target)} {deparsed('insert_stmt', write)}"
        made = Plan("insert", plain, self._uses, target, alias, returning=True)
        made.noting = self._returned_keys(lets(write, target), "insert_stmt", write, target, alias)
        return made

    @staticmethod
    def _returned_keys(let: str, kind: str, write: Any, target: Tiered, alias: str) -> str:
        """A write that returns, behind what it is to return, the key of each row, as one that is new."""
        example = f"UPDATE t SET a = 1 RETURNING {target.keys(quoted(alias))}, 'INSERT'"
        returned(write).extend(returned(postgast.parse(example).stmts[0].stmt.update_stmt))
        return f"{let} WITH howdah_new ({{columns}}) AS ({deparsed(kind, write)})"

    def _change(self, kind: str, tree: Any, write: Any, target: Tiered) -> Plan:
        rekey = False
        if kind == "update_stmt":
            changed = {t.res_target.name for t in write.target_list if t.WhichOneof("node") == "res_target"}
            rekey = bool(changed & set(target.key))
        if rekey and any(c.common_table_expr.ctequery.WhichOneof("node") in WRITES for c in write.with_clause.ctes):
            raise unsupported(
                "a common table expression that writes, in an UPDATE of the primary key of a tiered table,"
            )
        if write.HasField("where_clause") and write.where_clause.WhichOneof("node") == "current_of_expr":
            raise unsupported("WHERE CURRENT OF on a tiered table")
        alias = name_of(write.relation)
        mine = self._about(target, alias, conditions(write))
        for message in walk(write):
            if type(message).__name__ == "ColumnRef":
                self._column(message)
        where, numbers, whole = condition(write)
        quick = not whole and not rekey and self._pinned(target, alias, write)
        hidden, scope = self._with(write, frozenset()), conditions(write)
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, (type(write).__name__, name), scope)
        # What is run twice would call triggers of statements twice.
        quick = quick and not self._uses and not target.triggers
        write.relation.inh = False
        self._uses.setdefault(target, []).append(mine)
        sql = str(postgast.deparse(tree))
        made = Plan(
            "update" if kind == "update_stmt" else "delete", sql, self._uses, target, alias, where, numbers,
            returning=bool(returned(write)), quick=sql if quick else None, rekey=rekey,
        )  # fmt: skip
        if rekey:
            made.sql = f"{target.rekey} {sql}"
            made.noting = self._returned_keys(target.rekey, kind, write, target, alias)
        return made

    def _merge(self, write: Any, target: Tiered) -> Plan:
        alias = name_of(write.relation)
        actions = [w.merge_when_clause for w in write.merge_when_clauses]
        for action in actions:
            if action.command_type == _UPDATE and {t.res_target.name for t in action.target_list} & set(target.key):
                raise unsupported("MERGE that changes the primary key of a tiered table")
        # Without a source any row may be changed.
        every = any(a.match_kind == _BY_SOURCE and a.command_type != _NOTHING for a in actions)
        mine = [] if every else self._about(target, alias, Scope(said(write.join_condition)))
        hidden = self._with(write, frozenset())
        for name, child in fields(write):
            if name not in ("with_clause", "relation"):
                self._visit(child, hidden, ("MergeStmt", name), Scope())
        own = not self._uses
        self._uses.setdefault(target, []).append(mine)
        write.relation.inh = False
        for part in (write.source_relation, write.join_condition, write.with_clause):
            self._functions |= functions_of(part)
            self._tables |= {spelled(r) for r in range_vars(part) if r.schemaname != "pg_temp"}
            if any(type(m).__name__ == "RangeTableSample" for m in walk(part)):
                raise unsupported("MERGE into a tiered table from a sample")
        made = Plan("merge", deparsed("merge_stmt", write), self._uses, target, alias)
        if not every:
            text, made.where_params = from_source(write, "1", write.join_condition)
            made.where = f"EXISTS ({text})"
            keys = keys_of(write.join_condition, alias, target) if own else None
            if keys is not None:
                made.lookup, made.lookup_params = from_source(write, keys, None)
        made.returning = bool(returned(write))
        items = returned(write)
        example = f"MERGE INTO t USING s ON true WHEN MATCHED THEN DO NOTHING RETURNING {target.keys(quoted(alias))}, merge_action()"
        items.extend(returned(postgast.parse(example).stmts[0].stmt.merge_stmt))
        let = lets(write, target)
        made.noting = f"{let} WITH howdah_new ({{columns}}) AS ({deparsed('merge_stmt', write)})"
        return made

    @staticmethod
    def _noting(let: str, inner: str, shown: str, target: Tiered, alias: str, before: str = "WITH") -> str:
        """A write whose new keys are noted, behind common table expressions that come before."""
        return (
            f"{let} {before} howdah_new AS ({inner}),"
            f" howdah_keys AS (INSERT INTO {target.written} SELECT {target.keys()} FROM howdah_new)"
            f" SELECT {shown} FROM howdah_new AS {quoted(alias)}"
        )


def _hoisted(write: Any) -> str:
    """The common table expressions of a write, which has none then, as text to which others can be added."""
    tree = postgast.parse("SELECT 1")
    tree.stmts[0].stmt.select_stmt.with_clause.CopyFrom(write.with_clause)
    write.ClearField("with_clause")
    return str(postgast.deparse(tree)).removesuffix(" SELECT 1") + ","
