"""The registry: services by name, and names in inputs turned into objects."""

from __future__ import annotations

import asyncio
from typing import Any

import pydantic
import pytest

import howdah
from howdah import AsyncRegistry, EnvSecrets, InvalidInput, NotRegistered, Registry


@pytest.fixture
def store() -> Any:
    with howdah.connect("memory:") as opened:
        yield opened


def test_instances_and_factories(store: Any) -> None:
    registry = Registry()
    made: list[str] = []

    def factory() -> Any:
        made.append("kv")
        return store.kv("lazy")

    registry.register("settings", store.kv("settings"))
    registry.register("lazy", factory)
    registry.register("fresh", lambda registry: object(), singleton=False)
    assert made == []
    assert registry.get("lazy") is registry.get("lazy", kind="kv")
    assert made == ["kv"]
    assert registry.get("fresh") is not registry.get("fresh")
    assert registry.has("settings")
    assert not registry.has("nothing")
    with pytest.raises(NotRegistered, match="nothing"):
        registry.get("nothing")
    with pytest.raises(NotRegistered, match="is a kv"):
        registry.get("settings", kind="queue")
    registry.register("settings", store.kv("other"), replace=False)
    first = registry.get("settings")
    registry.register("settings", store.kv("other"))
    assert registry.get("settings") is not first
    wrong: Any
    for wrong in ("", None, 5):
        with pytest.raises(InvalidInput):
            registry.register(wrong, 1)


def test_factories_in_a_circle_tell_the_path() -> None:
    registry = Registry()
    registry.register("a", lambda r: r.get("b"))
    registry.register("b", lambda r: r.get("a"))
    with pytest.raises(NotRegistered, match="a → b → a"):
        registry.get("a")


def test_children_see_their_parents_entries_later_ones_too(store: Any) -> None:
    parent = Registry()
    child = parent.child()
    parent.register("x", store.kv("parent"))
    assert child.get("x") is parent.get("x")
    child.register("x", store.kv("child"))
    assert child.get("x") is not parent.get("x")
    parent.resolver("thing", lambda text, registry: ("parent's", text, registry is child))
    schema = {"properties": {"t": {"format": "thing:any"}}}
    assert child.resolve({"t": "id"}, schema) == {"t": ("parent's", "id", True)}
    child.resolver("thing:any", lambda text, registry: ("child's", text))
    assert child.resolve({"t": "id"}, schema) == {"t": ("child's", "id")}
    assert parent.resolve({"t": "id"}, schema) == {"t": ("parent's", "id", False)}


def test_every_kind_of_store_is_resolved(store: Any) -> None:
    registry = Registry()
    schema = {"properties": {"id": {"type": "integer"}}, "required": ["id"], "title": "t"}
    objects = {
        "table": store.table(schema, key="id"),
        "tabular": store.table(schema, key="id"),
        "kv": store.kv("k"),
        "records": store.records("r"),
        "vector": store.vectors("v", dim=2),
        "queue": store.queue("q"),
        "limiter": store.limiter("l", limit=1, per=1),
        "blobs": store.blobs("b"),
    }
    for kind, value in objects.items():
        registry.register(f"my {kind}", value)
        form = {"properties": {"x": {"type": "string", "format": f"storage:{kind}"}}}
        assert registry.resolve({"x": f"my {kind}", "y": f"my {kind}"}, form) == {"x": value, "y": f"my {kind}"}
        assert registry.compact(value, f"storage:{kind}") == f"my {kind}"
        with pytest.raises(NotRegistered):
            registry.resolve({"x": "unknown"}, form)
    assert registry.compact(object()) is None
    with pytest.raises(NotRegistered):
        registry.resolve({"x": "my kv"}, {"properties": {"x": {"format": "storage:queue"}}})


def test_formats_are_found_wherever_a_schema_puts_them(store: Any) -> None:
    registry = Registry()
    registry.register("k", kv := store.kv("k"))
    f = {"format": "storage:kv"}
    schema = {
        "$defs": {"Ref": {"type": "string", **f}},
        "properties": {
            "one": {"oneOf": [{"type": "null"}, f]},
            "any": {"anyOf": [f, {"type": "string"}]},
            "all": {"allOf": [{"type": "string"}, f]},
            "ref": {"$ref": "#/$defs/Ref"},
            "list": {"type": "array", "items": f},
            "list2": {"type": "array", **f},
            "nested": {"type": "object", "properties": {"deep": f, "plain": {"type": "string"}}},
            "plain": {"type": "string", "format": "date-time"},
        },
    }
    inputs = {
        "one": "k", "any": "k", "all": "k", "ref": "k", "list": ["k", 5, None], "list2": ["k"], "plain": "k", "more": "k",
        "nested": {"deep": "k", "plain": "k"},
    }  # fmt: skip
    assert registry.resolve(inputs, schema) == {
        "one": kv, "any": kv, "all": kv, "ref": kv, "list": [kv, 5, None], "list2": [kv], "plain": "k", "more": "k",
        "nested": {"deep": kv, "plain": "k"},
    }  # fmt: skip
    assert inputs["one"] == "k"
    circle: dict[str, Any] = {"one": "k"}
    circle["nested"] = circle
    loop = {"properties": {"one": f, "nested": {"$ref": "#"}}}
    found = registry.resolve(circle, loop)
    assert found["nested"] is found or found["nested"]["nested"] is found["nested"]
    assert registry.resolve({"one": kv, "any": 5}, schema) == {"one": kv, "any": 5}


def test_pydantic_models_and_credentials(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inputs(pydantic.BaseModel):
        jobs: str = pydantic.Field(json_schema_extra={"format": "storage:queue"})
        key: str | None = pydantic.Field(default=None, json_schema_extra={"format": "credential"})

    async def main() -> None:
        registry = AsyncRegistry()
        registry.register("jobs", queue := store.queue("q"))
        with pytest.raises(NotRegistered):
            await registry.resolve({"key": "api"}, Inputs)
        registry.register("env", EnvSecrets({"api": "sk-1"}))
        assert isinstance(registry.default("secrets", "env"), EnvSecrets)
        assert await registry.resolve({"jobs": "jobs", "key": "api"}, Inputs) == {"jobs": queue, "key": "sk-1"}
        assert await registry.child().resolve({"key": "api"}, Inputs) == {"key": "sk-1"}
        with pytest.raises(NotRegistered, match="unknown"):
            await registry.resolve({"key": "unknown"}, Inputs)
        with pytest.raises(InvalidInput):
            await registry.resolve([], Inputs)  # type: ignore[arg-type]  # the mistake under test

    asyncio.run(main())
    with pytest.raises(NotRegistered):
        Registry().default("queue")


def test_closing_ends_what_was_built_in_reverse_order() -> None:
    closed: list[str] = []

    class Service:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise ValueError("b does not want to")

    registry = Registry()
    given = Service("given")
    registry.register("given", given)
    for name in "abc":
        registry.register(name, lambda name=name: Service(name))
    for name in ("given", "a", "b", "c"):
        registry.get(name)
    with pytest.raises(ExceptionGroup) as caught:
        registry.close()
    assert closed == ["c", "b", "a"]
    assert len(caught.value.exceptions) == 1
    registry.close()
    assert len(closed) == 3
