"""Timing in interleaved rounds, and the table of results."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

Run = Callable[[], Awaitable[object]]


@dataclass
class Results:
    """Rows for the report."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def add(
        self, what: str, ours: float, peer: str, theirs: float, target: str, *, unit: str = "µs", per: int = 1
    ) -> None:
        """One comparison: seconds of a round for us and the peer, divided by ``per`` operations."""
        scale = {"µs": 1e6, "ms": 1e3, "s": 1.0}[unit] / per
        row = (
            what,
            f"{ours * scale:.1f} {unit}",
            f"{peer}: {theirs * scale:.1f} {unit}",
            f"{ours / theirs:.2f}x",
            target,
        )
        self.show(row)

    def fact(self, what: str, value: str, target: str = "") -> None:
        """A figure without a peer."""
        self.show((what, value, "", "", target))

    def show(self, row: tuple[str, str, str, str, str]) -> None:
        """Keep and print a row."""
        self.rows.append(row)
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (52, 12, 34, 9, 20), strict=True)), flush=True)


async def rounds(runs: Mapping[str, Run], count: int = 7) -> dict[str, float]:
    """Median seconds of each, run in turn so that a noisy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            await run()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def write(results: Results, page: Path, command: str) -> None:
    """The page of results."""
    lines = [
        "# Benchmarks" + (": the database" if "database" in command else ""),
        "",
        f"`{command}` prints and writes this page. Each row compares with the peer in the same run, on the same data: medians of",
        "interleaved rounds. The machine is shared and noisy: the ratios are what counts.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, 2 cores.",
        "",
        "| what | Howdah | peer | ratio | target |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in results.rows),
        "",
    ]
    page.write_text("\n".join(lines))


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
