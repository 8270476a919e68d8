"""Makes the blocking twins in ``src/howdah/blocking`` from the async classes; ``--check`` only tells whether they fit."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "howdah"
SOURCES = {
    "query": "query",
    "changes": "changes",
    "cached": "cached",
    "table": "table",
    "kv": "stores/kv",
    "keyed": "stores/keyed",
    "records": "stores/records",
    "secrets": "stores/secrets",
    "secret_sources": "stores/secret_sources",
    "vectors": "stores/vectors",
    "blobs": "stores/blobs",
    "claim": "stores/claim",
    "limiter": "stores/limiter",
    "queue": "stores/queue",
    "corpus": "corpus/corpus",
    "statements": "database/statements",
    "sql_transaction": "database/transaction",
    "database": "database/database",
    "store": "store",
}
WAITING = {"AsyncBlobs", "AsyncBlob", "AsyncCorpus", "AsyncCollections"}
BY_HAND = {"AsyncTransaction"}
LATE = {"AsyncDatabase"}
"""Classes whose modules take long to import, which few callers need."""
AHEAD = {("AsyncQuery", "__aiter__"), ("AsyncRecords", "scan"), ("AsyncStatements", "stream")}
"""Iterators over rows, which may be fetched a little ahead."""
INTERNAL = {
    "key_of",
    "put_stored",
    "mapped",
    "polled",
    "resync",
    "reading",
    "stream_snapshot",
    "exchange",
    "complete",
    "needed",
    "forget",
}
HEADER = '"""{doc} Blocking twin of ``howdah.{module}``, made by tools/blocking.py: change that, not this."""\n'
TRANSACT = '''
    def transact(self, fn: Callable[[Store], T], *, retries: int = 3) -> T:
        """Run ``fn(store)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                with self.transaction() as tx:
                    return fn(tx)
            except Conflict:
                if attempt == retries or innermost(self._async._engine) is not None:
                    raise
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Release what this store opened; a caller's own pool stays open."""
        if not self._run.closed:
            if self._async._engine.users:
                self._run.wait(self._async._stop_users())
            self._run(self._async.close())
            if not self._async._borrowed:
                self._run.close()
'''

DATABASE = '''
    @classmethod
    def open(cls, {arguments}) -> Self:
        """{doc}"""
        return cls(AsyncDatabase.open({call}), Portal())

    def transact(
        self, fn: Callable[[SqlTransaction], T], *, retries: int = 3, isolation: Isolation = "read committed"
    ) -> T:
        """Run ``fn(tx)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                with self.transaction(isolation=isolation) as tx:
                    return fn(tx)
            except Conflict:
                if attempt == retries:
                    raise
                time.sleep(0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def close(self, *, timeout: float | timedelta = PATIENCE) -> None:
        """{close}"""
        if not self._run.closed:
            self._run(self._async.close(timeout=timeout))
            if not self._async.lent:
                self._run.close()
'''
MADE_BY_CALLERS = {
    "AsyncEnvSecrets": """    def __init__(self, mapping: Mapping[str, str] | None = None, prefix: str | None = None) -> None:
        self._async = AsyncEnvSecrets(mapping, prefix)
        self._run = Inline()
""",
    "AsyncChainedSecrets": """    def __init__(self, sources: Sequence[Any]) -> None:
        self._async = AsyncChainedSecrets([Waiting(source) for source in sources])
        self._run = Inline()
""",
}
"""Constructors of twins that no store hands out."""
OWN = {"AsyncStore": ("transact", "close"), "AsyncDatabase": ("open", "transact", "close")}
"""Methods whose twins are written above."""


def public_classes() -> dict[str, str]:
    """Every async class by name, with the output module of its twin."""
    found = {}
    for module, source in SOURCES.items():
        path = PACKAGE / f"{source}.py"
        if not path.exists():
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Async"):
                found[node.name] = module
    return found


CLASSES = public_classes()
MIXINS = {"Adding": "stores/adding", "Emitting": "events", "Finding": "stores/finding", "Listing": "listing",
          "TableTiering": "database/tiering", "VectorIndexing": "database/vectors"}  # fmt: skip


def mixin_sources(node: ast.ClassDef) -> dict[str, str]:
    """Bases that are made for several classes, or split off for length, with their modules."""
    names = [(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases]
    found = {n.id: MIXINS[n.id] for n in names if isinstance(n, ast.Name) and n.id in MIXINS}
    return {**found, "Emitting": MIXINS["Emitting"]} if "Listing" in found else found


def mixed_in(node: ast.ClassDef) -> list[ast.stmt]:
    """What a class has from such bases."""
    found: list[ast.stmt] = []
    for name, source in mixin_sources(node).items():
        tree = ast.parse((PACKAGE / f"{source}.py").read_text())
        found += next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return found


def rename(text: str) -> str:
    """A type or text with async names replaced by blocking ones."""
    text = re.sub(r"\bAsyncIterator\b", "Iterator", text)
    return re.sub(r"\bAsync([A-Z]\w+)", lambda m: m[1] if m[0] in CLASSES else m[0], text)


def told(text: str) -> str:
    """A docstring for blocking callers."""
    return rename(text).replace("async with", "with").replace("async for", "for")


def twin_of(annotation: ast.expr | None) -> str | None:
    """The async class that a result annotation names at its top."""
    node = annotation
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) and node.id in CLASSES else None


def is_stream(function: ast.AsyncFunctionDef) -> bool:
    """Whether an async function is itself a generator; functions inside it do not count."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def call_arguments(arguments: ast.arguments) -> str:
    """The arguments of a delegating call."""
    parts = [a.arg for a in (*arguments.posonlyargs, *arguments.args)[1:]]
    if arguments.vararg:
        parts.append(f"*{arguments.vararg.arg}")
    parts += [f"{a.arg}={a.arg}" for a in arguments.kwonlyargs]
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    return ", ".join(parts)


def method(cls: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The blocking twin of one method."""
    name = node.name
    run = "self._run.wait" if cls in WAITING else "self._run"
    special = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
    if (name.startswith("_") and name not in special) or name in OWN.get(cls, ()):
        return None
    if name in INTERNAL:
        return None
    result = rename(ast.unparse(node.returns)) if node.returns else "None"
    if name == "subscribe":
        return subscription(node)
    if name == "wait_for":
        return (
            f"    def wait_for({rename(ast.unparse(node.args))}) -> {result}:\n"
            f'        """{ast.get_docstring(node, clean=False)}"""\n        return waited(self._async, name, timeout)\n'
        )
    signature = rename(ast.unparse(node.args))
    doc = ast.get_docstring(node, clean=False)
    body_doc = f'        """{told(doc)}"""\n' if doc else ""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    twin = twin_of(node.returns)
    inner = f"self._async.{name}" if "property" in decorators else f"self._async.{name}({call_arguments(node.args)})"
    if name == "__aiter__":
        ahead = ", ahead=True" if (cls, name) in AHEAD else ""
        return f"    def __iter__(self) -> {result}:\n        return iterate({run}, self._async{ahead})\n"
    if cls == "AsyncSqlTransaction" and name == "__aenter__":
        return "    def __enter__(self) -> Self:\n        self._run(self._async.__aenter__())\n        return self\n"
    if cls == "AsyncSqlTransaction" and name == "__aexit__":
        return f"    def __exit__({signature}) -> None:\n        self._run(self._async.__aexit__(kind, error, trace))\n"
    if name == "__aenter__":
        return "    def __enter__(self) -> Self:\n        return self\n"
    if name == "__aexit__":
        return f"    def __exit__({signature}) -> None:\n        self.close()\n"
    head = "".join(f"    @{d}\n" for d in decorators) + f"    def {name}({signature}) -> {result}:\n{body_doc}"
    if isinstance(node, ast.AsyncFunctionDef):
        if is_stream(node):
            ahead = ", ahead=True" if (cls, name) in AHEAD else ""
            return f"{head}        return iterate({run}, {inner}{ahead})\n"
        inner = f"{run}({inner})"
    if twin == "AsyncTransaction":
        return f"{head}        return Transaction({inner}, self._run, self)\n"
    if twin:
        late = f"        from .{CLASSES[twin]} import {rename(twin)}\n\n" if twin in LATE else ""
        return f"{head}{late}        return {rename(twin)}({inner}, self._run)\n"
    if result == "Claim | None":
        return f"{head}        found = {inner}\n        return None if found is None else Claim(found, self._run)\n"
    if result == "list[Claim]":
        return f"{head}        return [Claim(found, self._run) for found in {inner}]\n"
    return f"{head}        return {inner}\n"


def subscription(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The blocking twin of ``subscribe``, which needs a thread."""
    names = [a.arg for a in node.args.kwonlyargs if a.arg != "poll"]
    passed = ", ".join(f"{n}={n}" for n in names)
    return (
        f"    def subscribe({rename(ast.unparse(node.args))}) -> Callable[[], None]:\n"
        f'        """{ast.get_docstring(node, clean=False)}"""\n'
        f"        return subscribed(self.changes({passed}), callback, poll)\n"
    )


def twin(node: ast.ClassDef) -> str:
    """The blocking twin of a class."""
    name = rename(node.name)
    # Of its bases a twin only needs the type variables.
    bases = ", ".join(
        f"Generic[{ast.unparse(b.slice)}]" if isinstance(b, ast.Subscript) else rename(ast.unparse(b))
        for b in node.bases
        if isinstance(b, ast.Subscript) or (isinstance(b, ast.Name) and b.id in CLASSES)
    )
    parameters = "".join(f"[{ast.unparse(b.slice)}]" for b in node.bases if isinstance(b, ast.Subscript))
    doc = told(ast.get_docstring(node, clean=False) or "")
    lines = [f'class {name}{f"({bases})" if bases else ""}:\n    """{doc}"""\n']
    constructor = MADE_BY_CALLERS.get(node.name)
    lines.append(
        constructor
        or f"    def __init__(self, inner: {node.name}{parameters}, run: Runner) -> None:\n"
        f"        self._async{': ' + node.name if bases and not parameters else ''} = inner\n        self._run = run\n"
    )
    body = [*node.body, *mixed_in(node)]
    lines.extend(
        m for n in body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) if (m := method(node.name, n))
    )
    attributes = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    for init in attributes:
        for item in ast.walk(init):
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Attribute):
                attribute = item.targets[0].attr
                if attribute == "ref":
                    lines.append(
                        '    @property\n    def ref(self) -> BlobRef:\n        """What describes it."""\n        return self._async.ref\n'
                    )
    if node.name == "AsyncStore":
        lines.append(TRANSACT)
    if node.name == "AsyncDatabase":
        found = {n.name: n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
        made, close = found["open"], ast.get_docstring(found["close"], clean=False)
        arguments = ast.unparse(made.args).removeprefix("cls, ")
        lines.append(
            DATABASE.format(
                arguments=arguments,
                doc=ast.get_docstring(made, clean=False),
                call=call_arguments(made.args),
                close=close,
            )
        )
    return "\n".join(lines)


def imports(tree: ast.Module, source: str) -> list[str]:
    """The source's imports, as they read from the ``blocking`` package."""
    package = source.split("/")[:-1]
    lines = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [a.name for a in node.names]
            lines.append(f"from ..{module} import {', '.join(names)}")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            lines.append(ast.unparse(node))
    return lines


def module_text(module: str, source: str) -> str:
    """The text of one generated module."""
    path = PACKAGE / f"{source}.py"
    tree = ast.parse(path.read_text())
    doc = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in CLASSES and n.name not in BY_HAND]
    own = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        own |= {t.id for t in targets if isinstance(t, ast.Name)}
    body = "\n\n".join(twin(c) for c in classes)
    lines = [HEADER.format(doc=doc, module=source.replace("/", "."))]
    lines += [
        "from __future__ import annotations",
        "from collections.abc import Iterator",
        "from typing import Generic, Self",
    ]
    lines += imports(tree, source)
    lines += [
        f"from ..{source.replace('/', '.')} import {name}" for name in sorted(own) if re.search(rf"\b{name}\b", body)
    ]
    others = [(c, m) for c, m in sorted(CLASSES.items()) if m != module and c not in BY_HAND]
    lines += [f"from .{m} import {rename(c)}" for c, m in others if c not in LATE]
    late = [
        f"    from .{m} import {rename(c)}" for c, m in others if c in LATE and re.search(rf"\b{rename(c)}\b", body)
    ]
    for mixin in sorted({m for c in classes for m in mixin_sources(c).values()}):
        lines += imports(ast.parse((PACKAGE / f"{mixin}.py").read_text()), mixin)
    lines += ["from ..events import Listener", "from .subscription import subscribed, waited"]
    lines += ["from .runner import Runner, iterate", "from .transaction import Transaction"]
    if module == "secret_sources":
        lines += ["from ..stores.secret_sources import Waiting", "from .runner import Inline"]
    if module == "database":
        lines += [
            "import time",
            "from ..errors import Conflict",
            "from ..values import check_retries",
            "from ..database.transaction import Isolation",
            "from .runner import Portal",
        ]
    if module == "store":
        lines += [
            "from ..errors import Conflict",
            "from ..values import check_retries",
            "from ..engines.base import innermost",
        ]
    lines += ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", *late] if late else []
    return "\n".join(lines) + "\n\n\n" + body


def formatted(text: str, name: str) -> str:
    """The text without unused imports, sorted and formatted."""
    base = [sys.executable, "-m", "ruff"]
    for command in (["check", "--select", "F401,I,UP", "--fix", "--quiet", "--exit-zero"], ["format", "--quiet"]):
        done = subprocess.run(
            [*base, *command, "--stdin-filename", f"src/howdah/blocking/{name}.py", "-"],
            input=text, capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        text = done.stdout
    return text


def main() -> int:
    """Write the twins, or with ``--check`` say which are out of date."""
    stale = []
    for module, source in SOURCES.items():
        if not (PACKAGE / f"{source}.py").exists():
            continue
        path = PACKAGE / "blocking" / f"{module}.py"
        text = formatted(module_text(module, source), module)
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.relative_to(ROOT)))
        else:
            path.write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python tools/blocking.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
