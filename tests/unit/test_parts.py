"""URLs, identifiers, cursors, errors and the public surface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

import howdah
from howdah import errors, urls
from howdah.embed.wordpiece import tokenize
from howdah.ids import uuid7


@pytest.mark.parametrize(
    ("text", "scheme", "rest"),
    [
        ("agent.db", "sqlite", "agent.db"),
        ("sqlite:///agent.db", "sqlite", "agent.db"),
        ("sqlite:////abs/agent.db", "sqlite", "/abs/agent.db"),
        ("memory:", "memory", ""),
        ("memory:name", "memory", "name"),
        ("pg:./my data", "pg", "./my data"),
        ("postgres://u@h/d", "postgresql", "//u@h/d"),
        ("C:\\agent.db", "sqlite", "C:\\agent.db"),
    ],
)
def test_urls(text: str, scheme: str, rest: str) -> None:
    found = urls.parse(text)
    assert (found.scheme, found.rest) == (scheme, rest)


def test_url_options_and_secrets() -> None:
    assert urls.parse("agent.db?busy_timeout=5").options == {"busy_timeout": "5"}
    assert urls.parse(Path("x.db")).rest == "x.db"
    assert "secret" not in urls.parse("postgresql://me:secret@host/db").shown()
    for bad in ("", None, 5, "  ", "a\0b"):
        with pytest.raises(howdah.InvalidInput):
            urls.parse(bad)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nope://x", howdah.InvalidInput),
        ("/no/such/dir/agent.db", howdah.StartupError),
        ("/", howdah.StartupError),
        ("agent.db?nope=1", howdah.InvalidInput),
        ("agent.db?busy_timeout=soon", howdah.InvalidInput),
        ("postgresql://nobody@127.0.0.1:1/x", howdah.StartupError),
        ("postgresql://h/d?schema=bad name", howdah.InvalidName),
        ("postgresql://[bad", howdah.InvalidInput),
    ],
)
def test_bad_urls_have_a_remedy(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        howdah.connect(url)
    assert len(str(caught.value)) > 20


def test_a_corrupt_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.db"
    path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(howdah.Corrupt, match=r"bad\.db"):
        howdah.connect(str(path))


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = howdah.connect(str(tmp_path / "a.db"))
    kv = store.kv()
    kv.put("a", 1)
    store.close()
    store.close()
    for call in (lambda: kv.get("a"), lambda: kv.put("a", 1), lambda: store.kv("b").put("a", 1)):
        with pytest.raises(howdah.Closed):
            call()


def test_uuid7_ascends() -> None:
    made = [uuid7() for _ in range(5000)]
    assert made == sorted(set(made))
    assert all(u.version == 7 and u.variant == UUID(int=0x8 << 60).variant for u in made[:5])
    assert uuid7(1_700_000_000_000 + 10**12) > made[-1]


def test_every_error_has_a_code_and_one_root() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert all(issubclass(k, howdah.Error) for k in kinds)
    codes = [k.code for k in kinds if issubclass(k, howdah.Error)]
    assert len(set(codes)) == len(codes)
    assert howdah.DimensionMismatch.code == "dimension_mismatch"
    assert issubclass(howdah.InvalidInput, ValueError)
    assert issubclass(howdah.Timeout, TimeoutError)


def test_public_names_exist_and_are_documented() -> None:
    for name in howdah.__all__:
        value = getattr(howdah, name)
        if callable(value) and not isinstance(value, type(howdah.NULL)):
            assert value.__doc__, name
            if isinstance(value, type):
                for attribute, member in vars(value).items():
                    if callable(member) and not attribute.startswith("_"):
                        assert member.__doc__, f"{name}.{attribute}"
    with pytest.raises(AttributeError):
        _ = howdah.nope


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, howdah; heavy = {'apsw', 'numpy', 'asyncpg', 'onnxruntime', 'usearch', 'pydantic', 'typer'}; sys.exit(bool(heavy & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wordpiece() -> None:
    assert tokenize("Hello, world!") == [7592, 1010, 2088, 999]
    assert tokenize("unaffable") == [14477, 20961, 3468]
    assert tokenize("naïve 東京 x_y") == [15743, 1879, 1755, 1060, 1035, 1061]
    assert tokenize("") == []
