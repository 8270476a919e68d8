"""Spans and metrics of what stores do, by OpenTelemetry's API or a hook of your own; nothing is there when it is off.

A store that is traced makes its handles from a traced subclass, made once per class: the plain classes know nothing of it.
Span names are ``howdah.<store>.<method>``; attributes follow the semantic conventions for databases: ``db.system.name``,
``db.operation.name``, ``db.collection.name``, ``error.type``. No key, value or secret is in them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

from .errors import InvalidInput, ModelUnavailable

T = TypeVar("T")
LABELS = {
    "AsyncTable": "table",
    "AsyncKV": "kv",
    "AsyncRecords": "records",
    "AsyncVectors": "vectors",
    "AsyncBlobs": "blobs",
    "AsyncQueue": "queue",
    "FairQueue": "queue",
    "AsyncLimiter": "limiter",
    "AsyncSecrets": "secrets",
    "AsyncCorpus": "corpus",
}
DURATION = "db.client.operation.duration"


class Trace(Protocol):
    """A hook: called with a span's name and attributes, it gives a context in which the operation runs. The context sees
    the exception of an operation that fails."""

    def __call__(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[Any]: ...


class Tracer:
    """Makes traced handles."""

    def __init__(self, trace: Trace, system: str) -> None:
        self._trace = trace
        self._system = system
        self._classes: dict[type, type] = {}

    def traced(self, handle: T, name: str) -> T:
        """The same handle, traced."""
        plain = type(handle)
        if plain not in self._classes:
            self._classes[plain] = self._subclass(plain, LABELS[plain.__name__])
        handle.__class__ = self._classes[plain]
        handle._traced_as = name  # type: ignore[attr-defined]  # of the traced subclass
        return handle

    def _subclass(self, plain: type, label: str) -> type:
        body: dict[str, Any] = {"__doc__": plain.__doc__, "__module__": plain.__module__, "_traced_as": ""}
        for name, method in inspect.getmembers(plain, inspect.isfunction):
            if name.startswith("_") or name in ("reading", "put_stored"):
                continue
            if inspect.iscoroutinefunction(method):
                body[name] = self._call(method, f"howdah.{label}.{name}", name)
            elif inspect.isasyncgenfunction(method):
                body[name] = self._stream(method, f"howdah.{label}.{name}", name)
        return type(plain.__name__, (plain,), body)

    def _attributes(self, operation: str, collection: str) -> dict[str, str]:
        return {
            "db.system.name": self._system,
            "db.operation.name": operation,
            "db.collection.name": collection,
        }

    def _call(self, method: Any, span: str, operation: str) -> Any:
        @wraps(method)
        async def call(handle: Any, *arguments: Any, **options: Any) -> Any:
            with self._trace(span, self._attributes(operation, handle._traced_as)):
                return await method(handle, *arguments, **options)

        return call

    def _stream(self, method: Any, span: str, operation: str) -> Any:
        @wraps(method)
        async def stream(handle: Any, *arguments: Any, **options: Any) -> Any:
            with self._trace(span, self._attributes(operation, handle._traced_as)):
                async for item in method(handle, *arguments, **options):
                    yield item

        return stream


def tracer(telemetry: Any, system: str) -> Tracer | None:
    """The tracer of ``connect(telemetry=…)``: ``"otel"``, a hook, or ``None`` for none."""
    if telemetry is None:
        return None
    if telemetry == "otel":
        return Tracer(_otel(), system)
    if callable(telemetry):
        return Tracer(telemetry, system)
    raise InvalidInput(
        f"telemetry={telemetry!r:.60}: 'otel', a function (name, attributes) that gives a context, or None"
    )


def _otel() -> Trace:
    try:
        from opentelemetry import metrics, trace
    except ImportError as error:
        raise ModelUnavailable("telemetry='otel' needs its API: pip install 'howdah[otel]'") from error
    spans = trace.get_tracer("howdah")
    durations = metrics.get_meter("howdah").create_histogram(DURATION, "s", "Duration of database client operations.")

    @contextmanager
    def span(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        began = time.perf_counter()
        more: dict[str, str] = {}
        with spans.start_as_current_span(
            name,
            kind=trace.SpanKind.CLIENT,
            attributes=dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                # Its text may hold keys or values.
                more["error.type"] = type(error).__qualname__
                current.set_attribute("error.type", more["error.type"])
                current.set_status(trace.StatusCode.ERROR)
                raise
            finally:
                durations.record(time.perf_counter() - began, {**attributes, **more})

    return span
