"""The pages of the documentation as text, blocks of code and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_MARK = re.compile(r"<!-- not run: (.+) -->\s*")
_MARKDOWN = MarkdownIt().enable("table")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: what stands after the fence; empty for an indented block.
        text: the code.
        line: of the page where it begins, from 1.
        reason: why it is not run, from the comment before it; empty if it is.
    """

    language: str
    text: str
    line: int
    reason: str


def tokens(page: Path) -> list[Token]:
    """What a page is made of, outermost first."""
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page."""
    reason = ""
    for token in tokens(page):
        if token.type == "html_block":
            found = _MARK.fullmatch(token.content)
            reason = found[1] if found else ""
        elif token.type in ("fence", "code_block"):
            yield Block(token.info, token.content, (token.map or [0])[0] + 1, reason)
            reason = ""


def inline(page: Path, *types: str) -> Iterator[Token]:
    """Tokens of these types in the running text of a page."""
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type in types)


def codes(page: Path) -> list[str]:
    """What is written as code in the running text of a page."""
    return [token.content for token in inline(page, "code_inline")]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block of bash, as words; comments are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found = tokens(page)
    titles = [
        found[i + 1].children or () for i, token in enumerate(found) if token.type == "heading_open"
    ]
    return {_slug("".join(child.content for child in title)) for title in titles}


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
