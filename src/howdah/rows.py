"""Row types: how a pydantic model, dataclass, TypedDict or JSON Schema maps to columns, and rows to dicts and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

import pydantic

from .errors import InvalidInput, InvalidValue
from .schema import Auto, Column, Kind, VectorType
from .values import MISSING

Row = dict[str, Any]

_SCALARS: dict[type, Kind] = {
    str: "text",
    bool: "boolean",
    int: "integer",
    float: "real",
    datetime: "timestamp",
    UUID: "uuid",
    Decimal: "decimal",
    bytes: "bytes",
    date: "text",
    time: "text",
}


@dataclass(frozen=True, slots=True)
class RowType:
    """A declared row type: its columns, and functions from a caller's row to a dict and from a dict to a row."""

    name: str | None
    columns: tuple[Column, ...]
    to_dict: Callable[[Any], Row]
    from_dict: Callable[[Row], Any] | None


def row_type(model: Any) -> RowType:
    """Read ``model``: a pydantic model, dataclass or TypedDict class, or a JSON Schema object."""
    if isinstance(model, Mapping):
        return _from_json_schema(model)
    if isinstance(model, type) and issubclass(model, pydantic.BaseModel):
        return _from_class(model, _pydantic_defaults(model), _model_dict)
    if isinstance(model, type) and dataclasses.is_dataclass(model):
        return _from_class(model, _dataclass_defaults(model), _dataclass_dict)
    if typing.is_typeddict(model):
        return _from_class(model, {}, None)
    raise InvalidInput(
        f"{model!r} does not describe rows: give a pydantic model, a dataclass, a TypedDict or a JSON Schema mapping"
    )


def _pydantic_defaults(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    return {n: f.get_default(call_default_factory=False) for n, f in model.model_fields.items() if not f.is_required()}


def _dataclass_defaults(model: type) -> dict[str, Any]:
    found = {}
    for item in dataclasses.fields(model):
        if item.default is not dataclasses.MISSING:
            found[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            found[item.name] = None
    return found


def _model_dict(row: pydantic.BaseModel) -> Row:
    return dict(row.__dict__)


def _dataclass_dict(row: Any) -> Row:
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


@dataclass(frozen=True, slots=True)
class _Field:
    kind: Kind
    nullable: bool
    auto: bool
    vector: VectorType | None
    adapter: pydantic.TypeAdapter[Any] | None
    as_list: bool


def _analyse(annotation: Any, where: str, *, optional: bool = False) -> _Field:
    nullable, auto = optional, False
    vector: VectorType | None = None
    while True:
        origin = get_origin(annotation)
        if origin is typing.Annotated:
            annotation, *extras = get_args(annotation)
            for extra in extras:
                auto = auto or extra is Auto or isinstance(extra, Auto)
                vector = extra if isinstance(extra, VectorType) else vector
        elif origin in (typing.Union, types.UnionType):
            rest = [a for a in get_args(annotation) if a is not type(None)]
            nullable = nullable or len(rest) < len(get_args(annotation))
            if len(rest) != 1:
                annotation = typing.Union[tuple(rest)]
                break
            annotation = rest[0]
        elif origin in (typing.Required, typing.NotRequired):
            # The classes' own lists of required keys are wrong where annotations are strings.
            nullable = origin is typing.NotRequired
            annotation = get_args(annotation)[0]
        else:
            break
    if vector is not None:
        kind: Kind = "sparse" if vector.sparse else "vector"
        return _Field(kind, nullable, auto, vector, None, get_origin(annotation) in (list, tuple))
    if annotation in _SCALARS:
        adapter = pydantic.TypeAdapter(annotation) if annotation in (date, time) else None
        return _Field(_SCALARS[annotation], nullable, auto, None, adapter, False)
    if get_origin(annotation) is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        values = get_args(annotation) or [m.value for m in annotation]
        kinds = {type(v) for v in values}
        if len(kinds) == 1 and (only := kinds.pop()) in (str, int, bool):
            return _Field(_SCALARS[only], nullable, auto, None, pydantic.TypeAdapter(annotation), False)
    try:
        return _Field("json", nullable or annotation is Any, auto, None, pydantic.TypeAdapter(annotation), False)
    except pydantic.errors.PydanticSchemaGenerationError as error:
        raise InvalidInput(f"{where}: type {annotation!r} cannot be stored; use plain types or a vector(…)") from error


def _from_class(
    model: Any,
    defaults: Mapping[str, Any],
    instance_dict: Callable[[Any], Row] | None,
) -> RowType:
    hints = typing.get_type_hints(model, include_extras=True)
    names = list(model.model_fields) if issubclass(model, pydantic.BaseModel) else list(hints)
    if instance_dict is _dataclass_dict:
        names = [f.name for f in dataclasses.fields(model)]
    partial = instance_dict is None and not model.__total__
    fields = {n: _analyse(hints[n], f"{model.__name__}.{n}", optional=partial) for n in names}
    columns = []
    for name, item in fields.items():
        default = defaults.get(name, MISSING)
        if default is not MISSING and item.adapter is not None and default is not None:
            default = item.adapter.dump_python(default, mode="json")
        columns.append(Column(name, item.kind, item.nullable, default, item.auto, item.vector))
    dumpers = {n: f.adapter for n, f in fields.items() if f.adapter is not None}
    auto = next((n for n, f in fields.items() if f.auto), None)

    def to_dict(row: Any) -> Row:
        if instance_dict is not None and isinstance(row, model):
            found = instance_dict(row)
        elif isinstance(row, Mapping):
            found = dict(row)
            if instance_dict is not None:
                found = _validated(found)
        else:
            raise InvalidValue(f"row: expected {model.__name__} or a mapping, got {type(row).__name__}")
        for name, adapter in dumpers.items():
            value = found.get(name)
            if value is not None:
                try:
                    found[name] = adapter.dump_python(adapter.validate_python(value), mode="json")
                except (pydantic.ValidationError, pydantic.PydanticUserError, ValueError) as error:
                    raise InvalidValue(f"column {name!r}: {_first(error)}") from error
        return found

    # A TypedDict's rows are dicts as they are; pydantic cannot even read one of typing's before Python 3.12.
    adapter: Any = None
    if instance_dict is not None:
        try:
            adapter = pydantic.TypeAdapter(model)
        except pydantic.PydanticSchemaGenerationError as error:
            raise InvalidInput(
                f"{model.__name__}: {str(error).splitlines()[0]} Use a type that pydantic knows; for vectors list[float]"
            ) from error

    def _validated(found: Row) -> Row:
        unknown = [n for n in found if n not in fields]
        if unknown or (auto is not None and found.get(auto) is None):
            return found  # the table names the column that is wrong; a generated key is not there yet
        try:
            made = adapter.validate_python(found, by_name=True, by_alias=False)
        except pydantic.ValidationError as error:
            raise InvalidValue(f"row: {_first(error)}") from error
        assert instance_dict is not None
        # The model checks constraints and fills defaults; given values stay, so that the columns refuse a wrong type.
        return {**instance_dict(made), **found}

    lists = [n for n, f in fields.items() if f.as_list]

    def from_dict(found: Row) -> Any:
        for name in lists:
            value = found[name]
            if hasattr(value, "tolist"):
                found[name] = value.tolist()
        try:
            return adapter.validate_python(found, by_name=True, by_alias=False)
        except pydantic.ValidationError as error:
            raise InvalidValue(f"a stored row does not fit {model.__name__}: {_first(error)}") from error

    return RowType(model.__name__, tuple(columns), to_dict, None if instance_dict is None else from_dict)


def _first(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        detail = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)


_JSON_KINDS: dict[str, Kind] = {
    "string": "text",
    "integer": "integer",
    "number": "real",
    "boolean": "boolean",
    "object": "json",
    "array": "json",
}
_TYPED = ("timestamp", "uuid", "decimal", "bytes")
_CONSTRAINTS_APART = {"type", "default", "title", "description", "format", "x-auto-generated", "x-type", "x-dim"}


def _json_column(name: str, found: Mapping[str, Any], required: bool) -> tuple[Column, bool]:
    options = [found, *found.get("anyOf", ()), *found.get("oneOf", ())]
    kinds: set[str] = set()
    for option in options:
        kind = option.get("type")
        kinds.update([kind] if isinstance(kind, str) else kind or ())
    nullable = "null" in kinds or not required
    kinds.discard("null")
    form = next((str(o["format"]) for o in options if "format" in o), "")
    typed = found.get("x-type")
    vector: VectorType | None = None
    plain = False
    if form.startswith("TypedArray") or form == "vector":
        dim = found.get("x-dim") or found.get("maxItems") or (form.rpartition(":")[2] if ":" in form else None)
        if not str(dim).isdigit():
            raise InvalidInput(f"column {name!r}: a TypedArray needs its length as x-dim or maxItems")
        vector, column_kind = VectorType(int(str(dim))), "vector"
    elif typed is not None:
        if typed not in _TYPED:
            raise InvalidInput(f"column {name!r}: x-type {typed!r} is none of {', '.join(_TYPED)}")
        column_kind = typed
    elif any(o.get("contentEncoding") in ("blob", "binary", "base64") for o in options):
        column_kind = "bytes"
    else:
        column_kind = _JSON_KINDS[kinds.pop()] if len(kinds) == 1 and next(iter(kinds)) in _JSON_KINDS else "json"
        plain = True
    auto = bool(found.get("x-auto-generated"))
    column = Column(name, typing.cast("Kind", column_kind), nullable, found.get("default", MISSING), auto, vector)
    return column, plain


def _from_json_schema(schema: Mapping[str, Any]) -> RowType:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise InvalidInput("a JSON Schema of rows needs 'type': 'object' and 'properties'")
    required = set(schema.get("required", ()))
    columns, checked = [], {}
    for name, found in properties.items():
        found = {} if found is True else found
        column, plain = _json_column(name, found, name in required)
        columns.append(column)
        if plain and set(found) - _CONSTRAINTS_APART:
            checked[name] = found
    validate = _json_validator(schema, checked) if checked else None
    auto = next((c.name for c in columns if c.auto), None)
    defaults = {c.name: c.default for c in columns if c.default is not MISSING}

    def to_dict(row: Any) -> Row:
        if not isinstance(row, Mapping):
            raise InvalidValue(f"row: expected a mapping, got {type(row).__name__}")
        found = dict(row)
        if validate is not None:
            part = {n: found[n] if n in found else defaults.get(n) for n in checked if n in found or n in defaults}
            if auto is not None and part.get(auto) is None:
                part.pop(auto, None)
            validate({n: v for n, v in part.items() if v is not None or n in required})
        return found

    name = schema.get("title")
    return RowType(name if isinstance(name, str) else None, tuple(columns), to_dict, None)


def _json_validator(schema: Mapping[str, Any], checked: Mapping[str, Any]) -> Callable[[Row], None]:
    import fastjsonschema  # only tables declared by JSON Schema with constraints need it

    reduced = {"type": "object", "properties": dict(checked)}
    for shared in ("$defs", "definitions"):
        if shared in schema:
            reduced[shared] = schema[shared]
    try:
        run = fastjsonschema.compile(reduced, use_default=False)
    except fastjsonschema.JsonSchemaDefinitionException as error:
        raise InvalidInput(f"the JSON Schema cannot be used: {error}") from error

    def validate(row: Row) -> None:
        try:
            run(row)
        except fastjsonschema.JsonSchemaValueException as error:
            place = ".".join(str(p) for p in error.path[1:])
            raise InvalidValue(f"column {place!r}: {error.message.replace('data.', '', 1)}") from error

    return validate
