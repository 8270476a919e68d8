"""The documentation holds: examples run, commands are listed, rows of the comparison pages have tests that exist."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import tempfile
import types
from pathlib import Path

import pytest
from typer.main import get_command

from howdah.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        ):
            found.append((f"{page.name}-{number}", block))
    return found


@pytest.mark.parametrize(("name", "code"), examples(), ids=[n for n, _ in examples()])
def test_examples_run(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="howdah-docs-") as folder:
        Path(folder).chmod(0o755)  # a server that root starts runs as somebody else
        monkeypatch.chdir(folder)
        module = types.ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)  # where classes look up their annotations
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, name, "exec"), module.__dict__)
        assert out.getvalue()
        monkeypatch.undo()


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    command = get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]  # a group
        names = [f"{name} {inner}" for inner in sub.commands] if hasattr(sub, "commands") else [name]
        for full in names:
            assert f"`howdah {full}" in text, full


def _tests_in(path: Path) -> set[str]:
    return {
        n.name
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
    }


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "coming-from").glob("*.md")), ids=lambda p: p.stem)
def test_rows_name_tests_that_exist(page: Path) -> None:
    known = {
        path.relative_to(ROOT / "tests").as_posix(): _tests_in(path) for path in (ROOT / "tests").rglob("test_*.py")
    }
    rows = 0
    for line in page.read_text().split("\n"):
        if not line.startswith("| ") or set(line) <= set("|- ") or "Proven by" in line:
            continue
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[-1])
        assert named, f"{page.name}: no test in row: {line[:80]}"
        for file, test in named:
            assert test in known.get(file, set()), f"{page.name}: no test {file}::{test}"
        rows += 1
    assert rows > 10


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "docs" / "coming-from").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_modules_stay_small() -> None:
    for path in (ROOT / "src" / "howdah").rglob("*.py"):
        assert len(path.read_text().split("\n")) <= 560, path
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_part_of_the_contract_is_on_the_page_of_engines() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    for path in sorted((ROOT / "tests" / "contract").glob("test_*.py")):
        assert path.name in page, f"{path.name}: run make support"
