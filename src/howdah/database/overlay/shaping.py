"""Plans statements that make, change or drop tables, where a tiered table is concerned."""

from __future__ import annotations

from typing import Any

from .columns import quoted
from .plans import Plan, Verified, unsupported
from .tiered import Known
from .tree import expression_text, range_vars, walk

TABLE = 42
"""What CREATE TABLE … AS makes (a materialized view would not follow what is flushed) and DROP TABLE drops."""
_CHECK = 6
_TYPE = 50
"""What ALTER TYPE … ADD ATTRIBUTE is about."""
_NARROWS = ("O", "C")
"""ALTER DOMAIN … SET NOT NULL and ADD."""
_ALTERS = frozenset(f"AT_{name}" for name in (
    *("AddColumn", "DropColumn", "AlterColumnType", "AddConstraint", "DropConstraint", "ColumnDefault", "DropNotNull", "SetStatistics"),
    *("SetStorage", "SetCompression", "SetOptions", "ResetOptions", "SetRelOptions", "ResetRelOptions", "ChangeOwner", "ClusterOn"),
    *("DropCluster", "ReplicaIdentity"),
))  # fmt: skip
"""Parts of ALTER TABLE that the base follows, or need not."""


def altering(sql: str, node: Any, known: Known) -> Plan | None:
    """The plan of ALTER TABLE."""
    kind = str(node.WhichOneof("node"))
    relation = getattr(node, kind).relation
    tiered = known.table(relation.schemaname, relation.relname)
    if tiered is None:
        if kind == "alter_table_stmt" and any(known.table(r.schemaname, r.relname) for r in range_vars(node)):
            raise unsupported("a foreign key to a tiered table, whose checks see hot rows only,")
        return None
    verified = []
    for item in node.alter_table_stmt.cmds if kind == "alter_table_stmt" else ():
        command = item.alter_table_cmd
        names = command.DESCRIPTOR.fields_by_name["subtype"].enum_type.values_by_number
        what = names[command.subtype].name
        made = getattr(command, "def")
        if what == "AT_AddColumn":
            column = made.column_def
            serial = column.type_name.names[-1].string.sval in (
                "serial",
                "bigserial",
                "smallserial",
                "serial2",
                "serial4",
                "serial8",
            )
            if column.constraints or serial:
                raise unsupported(
                    f"a new column {column.colname} with a default or constraint on a tiered table, which rows on object storage would"
                    " not have (add it without, UPDATE, then set the default)"
                )
        elif what == "AT_AlterColumnType" and made.column_def.HasField("raw_default"):
            raise unsupported("ALTER COLUMN … TYPE … USING on a tiered table")
        elif what == "AT_AlterColumnType" and _is_jsonb(made.column_def.type_name):
            # It refuses some values that json takes.
            name = quoted(command.name)
            verified.append(
                Verified(f"{name} IS NULL OR {name}::jsonb IS NOT NULL", frozenset({command.name}), "22P05", "", "")
            )
        elif what == "AT_AddConstraint":
            if made.constraint.contype != _CHECK:
                raise unsupported("a new constraint on a tiered table, but for a CHECK,")
            if made.constraint.is_enforced:
                verified.append(_check(made.constraint, relation.relname))
        elif what == "AT_SetNotNull":
            text = f'column "{command.name}" of relation "{relation.relname}" contains null values'
            verified.append(
                Verified(f"{quoted(command.name)} IS NOT NULL", frozenset({command.name}), "23502", text, "")
            )
        elif what not in _ALTERS:
            raise unsupported(f"{what.removeprefix('AT_')} in ALTER TABLE of a tiered table")
    dropped = {i.alter_table_cmd.name for i in node.alter_table_stmt.cmds} if kind == "alter_table_stmt" else set()
    if any(dropped & one.columns and one.state == "23514" for one in verified):
        raise unsupported("a CHECK on a column that the same ALTER TABLE changes, of a tiered table,")
    made_plan = Plan("alter", sql, {tiered: []}, verified=tuple(verified))
    made_plan.names[tiered] = (".".join(quoted(n) for n in (relation.schemaname, relation.relname) if n),)
    return made_plan


def _is_jsonb(name: Any) -> bool:
    return bool(name.names[-1].string.sval == "jsonb" and not name.array_bounds)


def _check(constraint: Any, table: str) -> Verified:
    """A CHECK, which rows of the base must fulfil even if it is NOT VALID: they come back to the heap before they are changed."""
    name = f' "{constraint.conname}"' if constraint.conname else ""
    text = f'check constraint{name} of relation "{table}" is violated by some row on object storage'
    columns = {m.fields[-1].string.sval for m in walk(constraint.raw_expr) if type(m).__name__ == "ColumnRef"}
    return Verified(expression_text(constraint.raw_expr), frozenset(columns), "23514", text, str(constraint.conname))


def typing(sql: str, node: Any) -> Plan | None:
    """The plan of a change of a type or domain by which what a base has as text would mean something else, or nothing."""
    kind = node.WhichOneof("node")
    if kind == "alter_enum_stmt" and node.alter_enum_stmt.old_val:
        names = [n.string.sval for n in node.alter_enum_stmt.type_name]
    elif kind == "alter_domain_stmt" and node.alter_domain_stmt.subtype in _NARROWS:
        names = [n.string.sval for n in node.alter_domain_stmt.type_name]
    elif kind == "alter_table_stmt" and node.alter_table_stmt.objtype == _TYPE:
        relation = node.alter_table_stmt.relation
        names = [n for n in (relation.schemaname, relation.relname) if n]
    else:
        return None
    return Plan("type", sql, of_type=".".join(map(quoted, names)))


def check_create(made: Any, known: Known) -> None:
    """Refuse a new table that hangs on a tiered one."""
    for parent in (r for item in made.inh_relations for r in range_vars(item)):
        if known.find(parent.schemaname, parent.relname) is not None:
            raise unsupported(f"a child of the tiered table {parent.relname}")
    for there in (m.pktable for m in walk(made) if type(m).__name__ == "Constraint"):
        if known.find(there.schemaname, there.relname) is not None:
            raise unsupported(f"a foreign key to the tiered table {there.relname}, whose checks see hot rows only,")


def dropping(sql: str, node: Any, known: Known) -> Plan | None:
    """The plan of DROP TABLE."""
    made = Plan("drop", sql)
    for item in node.drop_stmt.objects if node.WhichOneof("node") == "drop_stmt" else ():
        names = [part.string.sval for part in item.list.items]
        tiered = known.table("" if len(names) == 1 else names[0], names[-1]) if 1 <= len(names) <= 2 else None
        if tiered is not None and node.drop_stmt.remove_type == TABLE:
            made.uses[tiered] = []
            made.names[tiered] = (".".join(map(quoted, names)),)
    return made if made.uses else None
