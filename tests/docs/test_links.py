"""Links and pictures of the documentation lead to files and headings that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import NAMES, PAGES, headings, inline

_MADE = {"settings.md", "commands.md"}
"""Pages of the reference that the site makes from the code."""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for token in inline(page, "link_open", "image"):
        link = str(token.attrs.get("href") or token.attrs["src"])
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.parent.name == "reference" and target.name in _MADE:
            continue
        assert target.is_file(), f"{page}: {link}"
        if anchor:
            assert anchor in headings(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pictures_say_what_is_on_them(page: Path) -> None:
    assert all(len(token.content) > 20 for token in inline(page, "image"))
