"""A registry of stores, tables and other services by name, and the resolution of names in inputs that a JSON Schema describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self

from .errors import InvalidInput, NotFound

Resolver = Callable[[str, "_Registry"], Any]
KINDS: Final = {
    "table": ("AsyncTable", "Table"),
    "kv": ("AsyncKV", "KV"),
    "records": ("AsyncRecords", "Records"),
    "vector": ("AsyncVectors", "Vectors"),
    "queue": ("AsyncQueue", "Queue"),
    "limiter": ("AsyncLimiter", "Limiter"),
    "blobs": ("AsyncBlobs", "Blobs"),
    "secrets": ("AsyncSecrets", "Secrets", "AsyncEnvSecrets", "EnvSecrets", "AsyncChainedSecrets", "ChainedSecrets"),
}
SAME: Final = {"tabular": "table"}
_building: ContextVar[tuple[str, ...]] = ContextVar("howdah_registry_building", default=())


class NotRegistered(NotFound):
    """The registry has nothing of this name and kind."""


@dataclass(slots=True)
class _Entry:
    value: Any
    kind: str | None
    factory: Callable[..., Any] | None
    singleton: bool


def kind_of(value: Any) -> str | None:
    """The kind of a store object, by its class."""
    names = {cls.__name__ for cls in type(value).__mro__}
    return next((kind for kind, classes in KINDS.items() if names & set(classes)), None)


class _Registry:
    """What both faces share."""

    def __init__(self, parent: Self | None = None) -> None:
        self._parent = parent
        self._entries: dict[str, _Entry] = {}
        self._resolvers: dict[str, Resolver] = {}
        self._defaults: dict[str, str] = {}
        self._built: list[Any] = []

    def register(
        self, id: str, value: Any, *, kind: str | None = None, singleton: bool = True, replace: bool = True
    ) -> None:
        """Give a name to an object, or to a factory that makes it on first use (with ``singleton=False`` on each).

        A factory is a plain function of the registry, or of nothing. ``kind`` is told from the object where it is a store.
        With ``replace=False`` what is there stays.
        """
        if not isinstance(id, str) or not id:
            raise InvalidInput(f"id={id!r:.60}: expected text that is not empty")
        if not replace and id in self._entries:
            return
        factory = value if kind_of(value) is None and (inspect.isfunction(value) or inspect.ismethod(value)) else None
        if inspect.iscoroutinefunction(factory):
            raise InvalidInput(f"{id!r}: a factory is a plain function; opening stores and tables does no I/O")
        self._entries[id] = _Entry(None if factory else value, kind or kind_of(value), factory, singleton)

    def _entry(self, id: str) -> tuple[_Registry, _Entry] | None:
        found = self._entries.get(id)
        if found is not None:
            return self, found
        return None if self._parent is None else self._parent._entry(id)

    def has(self, id: str) -> bool:
        """Whether the name is registered here or in a parent."""
        return self._entry(id) is not None

    def get(self, id: str, *, kind: str | None = None) -> Any:
        """The object of a name; ``NotRegistered`` when there is none (of this kind)."""
        found = self._entry(id)
        if found is None:
            raise NotRegistered(
                f"nothing is registered as {id!r}; there are {', '.join(sorted(self._ids())) or 'no names'}"
            )
        owner, entry = found
        value = entry.value
        if entry.factory is not None and not (entry.singleton and value is not None):
            value = self._build(owner, id, entry)
        actual = entry.kind or kind_of(value)
        if kind is not None and actual is not None and actual != kind:
            raise NotRegistered(f"{id!r} is a {actual}, not a {kind}")
        return value

    def _build(self, owner: _Registry, id: str, entry: _Entry) -> Any:
        path = _building.get()
        if id in path:
            raise NotRegistered(f"the factories need each other in a circle: {' → '.join((*path, id))}")
        assert entry.factory is not None
        token = _building.set((*path, id))
        try:
            wants = any(p.default is p.empty for p in inspect.signature(entry.factory).parameters.values())
            value = entry.factory(self) if wants else entry.factory()
        finally:
            _building.reset(token)
        if entry.singleton:
            entry.value = value
            owner._built.append(value)
        return value

    def _ids(self) -> set[str]:
        return set(self._entries) | (set() if self._parent is None else self._parent._ids())

    def default(self, kind: str, id: str | None = None) -> Any:
        """The default ``"queue"``, ``"limiter"``, ``"secrets"`` or other kind; with ``id``, that name becomes it."""
        if id is not None:
            self._defaults[kind] = id
        found: _Registry | None = self
        while found is not None:
            if kind in found._defaults:
                return self.get(found._defaults[kind], kind=kind if kind in KINDS else None)
            found = found._parent
        raise NotRegistered(f"the registry has no default {kind}: registry.default({kind!r}, id)")

    # Resolving ---------------------------------------------------------------------------------------------------

    def resolver(self, format: str, fn: Resolver) -> None:
        """Resolve strings of a format (``"storage:table"``, or ``"storage"`` for all of its kind) by ``fn(text, registry)``."""
        if not isinstance(format, str) or not format or not callable(fn):
            raise InvalidInput("resolver takes a format that is not empty and a function of text and registry")
        self._resolvers[format] = fn

    def _find_resolver(self, format: str) -> Resolver | None:
        for name in (format, format.partition(":")[0]):
            registry: _Registry | None = self
            while registry is not None:
                if name in registry._resolvers:
                    return registry._resolvers[name]
                registry = registry._parent
            built_in = _BUILT_IN.get(name)
            if built_in is not None:
                return built_in(format)
        return None

    async def _resolved(self, inputs: Mapping[str, Any], schema: Any) -> dict[str, Any]:
        if not isinstance(inputs, Mapping):
            raise InvalidInput(f"resolve takes a mapping of inputs, got {type(inputs).__name__}")
        root = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
        if not isinstance(root, Mapping):
            raise InvalidInput("resolve takes a JSON Schema or a pydantic model")
        return dict(await self._walk(inputs, root, root, {}))

    async def _walk(self, value: Any, schema: Any, root: Mapping[str, Any], seen: dict[int, Any]) -> Any:
        schemas = list(_parts(schema, root))
        if isinstance(value, str):
            for part in schemas:
                resolver = self._find_resolver(part["format"]) if isinstance(part.get("format"), str) else None
                if resolver is not None:
                    found = resolver(value, self)
                    return await found if inspect.isawaitable(found) else found
            return value
        if isinstance(value, list):
            items = {"anyOf": [p["items"] for p in schemas if isinstance(p.get("items"), Mapping)] + _formats(schemas)}
            return [await self._walk(item, items, root, seen) for item in value]
        if not isinstance(value, Mapping):
            return value
        if id(value) in seen:
            return seen[id(value)]
        made: dict[str, Any] = {}
        seen[id(value)] = made
        for name, item in value.items():
            inner = [p["properties"][name] for p in schemas if name in (p.get("properties") or {})]
            made[name] = await self._walk(item, {"anyOf": inner}, root, seen) if inner else item
        return made

    def compact(self, value: Any, format: str = "") -> str | None:
        """The name of an object, or ``None``: the way back of ``resolve``."""
        kind = SAME.get(format.partition(":")[2], format.partition(":")[2])
        registry: _Registry | None = self
        while registry is not None:
            for id, entry in registry._entries.items():
                if entry.value is value and value is not None and (not kind or (entry.kind or kind_of(value)) == kind):
                    return id
            registry = registry._parent
        return None

    async def _closed(self) -> None:
        errors: list[Exception] = []
        built, self._built = self._built, []
        for value in reversed(built):
            close = getattr(value, "close", None)
            if close is None:
                continue
            try:
                result = close()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                errors.append(error)
        for entry in self._entries.values():
            if entry.factory is not None:
                entry.value = None
        if errors:
            raise ExceptionGroup("some services could not be closed", errors)


def _parts(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A schema with what it refers to and is put together from."""
    if not isinstance(schema, Mapping) or depth > 32:
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(target, Mapping) else {}
        yield from _parts(target, root, depth + 1)
    yield schema
    for word in ("oneOf", "anyOf", "allOf"):
        for part in schema.get(word) or ():
            yield from _parts(part, root, depth + 1)


def _formats(schemas: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a format beside a list says of its elements."""
    return [{"format": p["format"]} for p in schemas if isinstance(p.get("format"), str)]


def _storage(format: str) -> Resolver | None:
    wanted = format.partition(":")[2]
    kind = SAME.get(wanted, wanted)
    if kind not in KINDS:
        return None
    return lambda text, registry: registry.get(text, kind=kind)


def _credential(format: str) -> Resolver:
    async def resolve(text: str, registry: _Registry) -> str:
        secrets = registry.default("secrets")
        value = secrets.get(text)
        value = await value if inspect.isawaitable(value) else value
        if value is None:
            raise NotRegistered(f"no credential {text!r}")
        return str(value)

    return resolve


_BUILT_IN: Final[dict[str, Callable[[str], Resolver | None]]] = {"storage": _storage, "credential": _credential}


class AsyncRegistry(_Registry):
    """Services by name. A child sees its parent's entries, later ones too, and may shadow them."""

    def child(self) -> AsyncRegistry:
        """A registry that falls back to this one."""
        return AsyncRegistry(self)

    async def resolve(self, inputs: Mapping[str, Any], schema: Any) -> dict[str, Any]:
        """Inputs with names replaced by objects where the schema (JSON Schema or pydantic model) has a ``format``.

        ``storage:table``, ``storage:kv``, ``storage:records``, ``storage:vector``, ``storage:queue``, ``storage:limiter``,
        ``storage:blobs`` and ``credential`` are known, others by ``resolver``. Raises ``NotRegistered`` for unknown names.
        """
        return await self._resolved(inputs, schema)

    async def close(self) -> None:
        """Close what factories have made here, the last first; errors come as one ``ExceptionGroup``."""
        await self._closed()


class Registry(_Registry):
    """As ``AsyncRegistry``, for blocking stores."""

    def child(self) -> Registry:
        """A registry that falls back to this one."""
        return Registry(self)

    def resolve(self, inputs: Mapping[str, Any], schema: Any) -> dict[str, Any]:
        """As ``AsyncRegistry.resolve``; resolvers and secrets must be blocking ones."""
        return dict(_now(self._resolved(inputs, schema)))

    def close(self) -> None:
        """Close what factories have made here, the last first; errors come as one ``ExceptionGroup``."""
        _now(self._closed())


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise InvalidInput("a resolver or service of this registry is async: use AsyncRegistry")
