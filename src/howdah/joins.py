"""Joining two tables: the checks, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .criteria import Order
from .errors import InvalidInput
from .schema import UNSORTABLE, Schema

_NUMBERS = {"integer", "real", "decimal"}


def check_on(on: Any, left: Schema, right: Schema) -> dict[str, str]:
    """``on`` as pairs of columns that exist and can be equal."""
    if not isinstance(on, Mapping) or not on:
        raise InvalidInput(f"on={on!r:.80}: expected a mapping of left columns to right columns")
    for mine, theirs in on.items():
        a, b = left.column(mine), right.column(theirs)
        if a.kind in UNSORTABLE or (a.kind != b.kind and not {a.kind, b.kind} <= _NUMBERS):
            raise InvalidInput(
                f"on: {left.name}.{mine} is {a.describe()} and {right.name}.{theirs} is {b.describe()}: never equal"
            )
    return dict(on)


def check_order(order_by: Any, left: Schema, right: Schema) -> list[tuple[bool, Order]]:
    """``"left.date"``, ``"-right.name"`` or a list of them; then the keys of both sides."""
    given = [] if order_by is None else [order_by] if isinstance(order_by, str) else list(order_by)
    orders: list[tuple[bool, Order]] = []
    for item in given:
        side, dot, name = item.removeprefix("-").partition(".") if isinstance(item, str) else ("", "", "")
        if side not in ("left", "right") or not dot:
            raise InvalidInput(f"order_by: {item!r:.60}: expected 'left.column', 'right.column' or one with - in front")
        column = (right if side == "right" else left).column(name)
        if column.kind in UNSORTABLE:
            raise InvalidInput(f"order_by: column {item!r} is {column.describe()} and has no order")
        orders.append((side == "right", Order(name, item.startswith("-"))))
    orders += [(False, Order(k)) for k in left.key] + [(True, Order(k)) for k in right.key]
    return orders
