"""Loading and cutting documents, without storage."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from howdah import InvalidInput
from howdah.corpus.chunking import Chunking, chunk, pieces, token_count
from howdah.corpus.loaders import Skip, front_matter, glob_pattern, load, read_file, walk


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=3000), st.integers(16, 60))
@settings(max_examples=150, deadline=None)
def test_chunks_cover_the_text_without_a_gap(text: str, tokens: int) -> None:
    options = Chunking(tokens=tokens, overlap=tokens // 5, window=tokens // 3)
    made = chunk(text, options=options)
    if not text.strip():
        assert made == []
        return
    assert made[0].start == 0
    assert made[-1].stop == len(text)
    for first, second in itertools.pairwise(made):
        assert first.start < second.start <= first.stop < second.stop
    for part in made:
        assert part.text == text[part.start : part.stop]
        assert part.line == text.count("\n", 0, part.start) + 1


def test_cuts_prefer_headings_and_spare_fences() -> None:
    body = "".join(f"Sentence number {i} of the text.\n" for i in range(40))
    text = f"# One\n\n{body}\n# Two\n\n{body}\n```\n# not a heading\n```\n"
    made = chunk(text, options=Chunking(tokens=400, overlap=0, window=200))
    assert made[1].text.startswith("# Two")
    assert made[1].heading == "Two"
    fenced = "intro\n" * 60 + "```py\n" + "code = 1\n" * 40 + "```\n" + "after\n" * 100
    for part in chunk(fenced, options=Chunking(tokens=180, overlap=0, window=150)):
        assert part.text.count("```") in (0, 2)


def test_code_is_cut_at_definitions() -> None:
    code = "import os\n\n" + "\n".join(f"def function_{i}(x):\n    y = x + {i}\n    return y * 2\n" for i in range(60))
    made = chunk(code, path="a.py", options=Chunking(tokens=200, overlap=0, window=60))
    assert all(c.text.lstrip().startswith(("import", "def ")) for c in made)
    assert chunk(code, path="a.py", options=Chunking(tokens=200, overlap=0, window=60, code="off")) != made


def test_tokens_and_options() -> None:
    assert token_count("abcd" * 10) == 10
    assert token_count("東京") == 2
    for bad in ({"tokens": 1}, {"overlap": 800}, {"window": 0}, {"code": "maybe"}):
        with pytest.raises(InvalidInput):
            Chunking(**bad)
    parts = pieces("one two three. " * 100, 200)
    assert "".join(parts) == "one two three. " * 100
    assert all(len(p) <= 200 for p in parts)


@pytest.mark.parametrize(
    ("path", "text", "title"),
    [
        ("a.md", "---\ntitle: 'Front'\n---\n# Other", "Front"),
        ("a.md", "```\n# code\n```\n# Real", "Real"),
        ("a.md", "# Notes\n\n## The thing", "The thing"),
        ("a.md", "# Notes", "Notes"),
        ("a.md", "text only", "a"),
        ("a.rst", "=====\nTitle\n=====\n\ntext", "Title"),
        ("a.rst", "Title\n-----\n", "Title"),
        ("a.org", "#+TITLE: Org title\n* H", "Org title"),
        ("a.html", "<html><head><title>Page &amp; co</title></head><body><h1>X</h1></body></html>", "Page & co"),
        ("dir/script.py", "# comment\nprint()", "script"),
    ],
)
def test_titles(path: str, text: str, title: str) -> None:
    assert load(text, path).title == title


def test_html_keeps_its_lines() -> None:
    page = "<html>\n<head><style>\np {}\n</style></head>\n<body>\n<h2>Head</h2>\n<p>one <b>two</b>\nthree</p>\n<script>\nx()\n</script>\n<p>last</p>"
    lines = load(page, "a.html").text.split("\n")
    assert lines[5].strip() == "## Head"
    assert lines[7].strip() == "three"
    assert lines[11].strip() == "last"
    assert "x()" not in "".join(lines)


def test_front_matter() -> None:
    found = front_matter("---\ntags: [a, 'b']\nlist:\n  - x\n  - 2\nn: 5\nf: 1.5\nyes: true\n---\nbody")
    assert found == {"tags": ["a", "b"], "list": ["x", 2], "n": 5, "f": 1.5, "yes": True}
    assert front_matter("no front matter") == {}


@pytest.mark.parametrize(
    ("mask", "yes", "no"),
    [
        ("**/*.md", ["a.md", "b/c.md"], ["a.txt", "a.mdx"]),
        ("*.md", ["a.md"], ["b/a.md"]),
        ("**/*.{md,txt}, src/**", ["x.txt", "src/y/z.py"], ["z.py"]),
        ("a?.md", ["ab.md"], ["a/.md", "abc.md"]),
        ("[ab].md", ["a.md"], ["c.md"]),
    ],
)
def test_masks(mask: str, yes: list[str], no: list[str]) -> None:
    pattern = glob_pattern(mask)
    assert all(pattern.fullmatch(p) for p in yes)
    assert not any(pattern.fullmatch(p) for p in no)


def test_walking_and_reading(tmp_path: Path) -> None:
    for name in ("a.md", "sub/b.txt", "node_modules/c.md", ".hidden/d.md", "build/e.md", "x.bin.md", "skip/f.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    (tmp_path / "link").symlink_to(tmp_path)
    assert [p for p, _ in walk(tmp_path, None, ["skip", "!build"])] == ["a.md", "build/e.md", "sub/b.txt", "x.bin.md"]
    (tmp_path / "x.bin.md").write_bytes(b"a\0b")
    outside = tmp_path.parent / "outside.md"
    outside.write_text("secret")
    (tmp_path / "out.md").symlink_to(outside)
    (tmp_path / "blank.md").write_text(" \n")
    (tmp_path / "latin.md").write_bytes("é".encode("latin-1"))
    for name, reason in (
        ("x.bin.md", "not_text"),
        ("out.md", "outside_collection"),
        ("blank.md", "blank"),
        ("latin.md", "not_text"),
        ("gone.md", "No such file"),
    ):
        with pytest.raises(Skip, match=reason):
            read_file(tmp_path, name)
    (tmp_path / "crlf.md").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_file(tmp_path, "crlf.md")[0] == "a\nb"
