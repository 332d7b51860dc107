"""What the site has beyond the pages in this folder.

Pages made from the code: the commands and the settings of a training. And the files elsewhere in
the repository that pages link to, so that links work on the site as they do among the files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_ELSEWHERE = "repository/"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made from the code, and what pages link to outside this folder."""
    for name, text in (("commands", _commands()), ("settings", _settings())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for target in map(str, _targets(page, text)):
            uri = _site_path(target)
            if files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                added = File.generated(config, uri, abs_src_path=str(ROOT / target))
                files.append(added)
                if added.is_documentation_page():
                    waiting.append((uri, added.content_string))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links among the repository's files into links among the site's."""
    here = page.file.src_uri

    def on_site(link: str) -> str:
        return relpath(_site_path(_target(here, link)), dirname(here) or ".")

    return _outside_code(markdown, lambda text: _LINK.sub(lambda m: on_site(m[1]), text))


def _targets(page: str, text: str) -> list[str]:
    """The files of the repository that a page links to, outside of its code."""
    return [_target(page, link) for link in _LINK.findall(_FENCE.sub("", text))]


def _target(page: str, link: str) -> str:
    """Where in the repository a link of a page of the site leads."""
    own = page.removeprefix(_ELSEWHERE) if page.startswith(_ELSEWHERE) else f"docs/{page}"
    return normpath(join(dirname(own), link))


def _site_path(target: str) -> str:
    """Where on the site a file of the repository is."""
    return target.removeprefix("docs/") if target.startswith("docs/") else _ELSEWHERE + target


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """A page whose text is changed, but not its blocks of code."""
    parts, end = [], 0
    for block in _FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def _commands() -> str:
    """`svfit` and its commands, as their own help tells of them."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from svfit_diffusion.cli.main import app

    command = get_command(app)
    context: Any = command.make_context("svfit", [], resilient_parsing=True)
    text: str = get_docs_for_click(obj=command, ctx=context, name="svfit", title="Commands")
    return text + (
        "\n`svfit train` takes the [settings of a training](settings.md) as flags, `svfit fleet "
        "train` after its file these and [those of a fleet](settings.md#of-a-fleet); "
        "`svfit app --help` lists those of the [app](../app.md).\n"
    )


def _settings() -> str:
    """Every setting of a training, and of a fleet, its default and its meaning."""
    from svfit_diffusion.fleet.settings import FleetSettings
    from svfit_diffusion.training import TrainingConfig

    lines = [
        "# Settings of a training",
        "",
        "Flags of `svfit train` and `train_dreambooth_svfit.py`, names in a `--config` file, and "
        "attributes of `svfit_diffusion.training.TrainingConfig`. A switch that is on is turned "
        "off by `--no_` before its name. Flags go before what the file says.",
        "",
    ]
    lines += [*_fields(TrainingConfig), "## Of a fleet", ""]
    lines += ["Further flags of [`svfit fleet train`](../fleet.md).", "", *_fields(FleetSettings)]
    return "\n".join(lines) + "\n"


def _fields(kind: Any) -> Iterator[str]:
    """The settings of a dataclass, as lines."""
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "" if default in (None, "", []) else f", by default `{_plain(default)}`"
        yield from (f"**`--{field.name}`**{shown}", "", field.metadata["help"], "")


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
