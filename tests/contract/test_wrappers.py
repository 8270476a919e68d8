"""Around stores: telemetry, and stores that only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

import howdah
from howdah import InvalidInput, Store, Unsupported
from tests.conftest import open_store

ITEMS = {"title": "items", "properties": {"id": {"type": "integer"}, "note": {"type": "string"}}, "required": ["id"]}


def test_a_read_only_store_reads_and_refuses_writes(store: Store) -> None:
    store.kv("k").put("a", 1)
    store.table(ITEMS, key="id").put({"id": 1, "note": "x"})
    store.queue("q").add(1)
    store.blobs("b").put("x", b"1")
    reader = store.read_only()
    assert reader.kv("k").get("a") == 1
    assert reader.table(ITEMS, key="id").query().all() == [{"id": 1, "note": "x"}]
    assert reader.blobs("b").get("x") == b"1"
    assert reader.queue("q").count() == 1
    table = reader.table(ITEMS, key="id")
    for write in (
        lambda: reader.kv("k").put("a", 2),
        lambda: reader.kv("k").delete("a"),
        lambda: table.put({"id": 2}),
        lambda: table.update_where({"id": 1}, {"note": "y"}),
        lambda: table.clear(),
        lambda: table.drop(),
        lambda: reader.queue("q").add(2),
        lambda: reader.blobs("b").put("y", b"2"),
    ):
        with pytest.raises(Unsupported):
            write()
    with pytest.raises(howdah.SetupRequired):
        reader.kv("nothing was ever put here").get("a")
    with pytest.raises(Unsupported), reader.transaction():
        pass
    with store.read_only() as again:
        assert again.kv("k").get("a") == 1
    assert store.kv("k").get("a") == 1


Seen = list[tuple[str, dict[str, str], str | None]]


def hook(seen: Seen) -> Any:
    @contextmanager
    def trace(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append((name, dict(attributes), type(error).__name__))
            raise
        seen.append((name, dict(attributes), None))

    return trace


def test_every_operation_is_one_span_without_keys_or_values(engine: str, url_for: Callable[[str], str]) -> None:
    if engine == "sqlite-loop":
        pytest.skip("the same as sqlite")
    seen: Seen = []
    with howdah.connect(url_for(engine), telemetry=hook(seen)) as store:
        kv, table = store.kv("cache"), store.table(ITEMS, key="id", text=["note"])
        kv.put("the key", "the value")
        assert kv.get("the key") == "the value"
        table.put_many([{"id": 1, "note": "the note"}])
        list(table.pages(size=1))
        table.search(text="note")
        with pytest.raises(howdah.InvalidValue):
            table.put({"id": "the wrong key"})
        queue = store.queue("jobs")
        queue.add("the input")
        claim = queue.claim("w")
        assert claim is not None
        claim.ack("the output")
        assert list(queue.stream(claim.id)) == []
        store.scoped("tenant").records("r").put("a", {})
    names = [name for name, _, _ in seen]
    for name in (
        "howdah.kv.put", "howdah.kv.get", "howdah.table.put_many", "howdah.table.pages", "howdah.table.search",
        "howdah.queue.add", "howdah.queue.claim", "howdah.queue.stream", "howdah.records.put",
    ):  # fmt: skip
        assert name in names
    by_name = {name: attributes for name, attributes, _ in seen}
    assert by_name["howdah.kv.put"] == {
        "db.system.name": "postgres" if engine in ("pg", "server") else "sqlite",
        "db.operation.name": "put",
        "db.collection.name": "cache",
    }
    assert "InvalidValue" in [error for _, _, error in seen]
    assert "the " not in str(seen)


def test_without_telemetry_nothing_is_wrapped(store: Store) -> None:
    assert type(store.kv("k")._async) is howdah.AsyncKV
    assert type(store.table(ITEMS, key="id")._async) is howdah.AsyncTable
    with pytest.raises(InvalidInput):
        open_store("memory", "memory:", telemetry="loud")


def test_open_telemetry(url_for: Callable[[str], str]) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    with howdah.connect("memory:", telemetry="otel") as store:
        with trace.get_tracer("test").start_as_current_span("outer"):
            store.kv("k").put("secret key", 1)
        with pytest.raises(howdah.InvalidValue):
            store.kv("k").put("k", object())
    spans = {span.name: span for span in exporter.get_finished_spans() if span.name == "howdah.kv.put" and span.parent}
    put = spans["howdah.kv.put"]
    assert put.attributes is not None
    assert put.attributes["db.collection.name"] == "k"
    failed = [s for s in exporter.get_finished_spans() if s.attributes and "error.type" in s.attributes]
    assert failed[0].attributes is not None
    assert failed[0].attributes["error.type"] == "InvalidValue"
    assert not failed[0].status.is_ok
    data = reader.get_metrics_data()
    assert data is not None
    points = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    assert [m.name for m in points] == ["db.client.operation.duration"]
    assert "secret" not in str(exporter.get_finished_spans())
