"""Jobs: servers that work on a queue, clients that wait for results, and what limits them. Names are imported when first
used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..blocking.jobs import (
        JobClient as JobClient,
        JobHandle as JobHandle,
        JobServer as JobServer,
    )
    from .client import (
        AsyncJobClient as AsyncJobClient,
        AsyncJobHandle as AsyncJobHandle,
        ProgressUpdate as ProgressUpdate,
    )
    from .context import (
        JobContext as JobContext,
    )
    from .failures import (
        register_error_code as register_error_code,
    )
    from .limits import (
        AllOf as AllOf,
        Concurrency as Concurrency,
        Delay as Delay,
        EvenlySpaced as EvenlySpaced,
        Limiter as Limiter,
        NoLimit as NoLimit,
        Window as Window,
    )
    from .server import (
        AsyncJobServer as AsyncJobServer,
        Stats as Stats,
    )

_WHERE: Final = {
    "howdah.blocking.jobs": "JobClient JobHandle JobServer",
    "howdah.jobs.client": "AsyncJobClient AsyncJobHandle ProgressUpdate",
    "howdah.jobs.context": "JobContext",
    "howdah.jobs.failures": "register_error_code",
    "howdah.jobs.limits": "AllOf Concurrency Delay EvenlySpaced Limiter NoLimit Window",
    "howdah.jobs.server": "AsyncJobServer Stats",
}
_MODULES: Final = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = [*sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'howdah.jobs' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
