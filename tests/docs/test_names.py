"""What the documentation names exists: flags, settings, modules, files, messages."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer
from doc_pages import NAMES, PAGES, ROOT, blocks, codes, commands, tokens

from app.settings import AppSettings, Limits
from svfit_diffusion.cli.main import app
from svfit_diffusion.errors import SVFitError
from svfit_diffusion.training.arguments import parse_args
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.flags import FlagParser

_OF_OTHERS = {"--multi_gpu", "--num_processes", "--nproc_per_node", "--install-completion"}
_OF_OTHERS |= {"--install", "--select", "--strict"}
_FOLDERS = "samples|benchmarks|docs|svfit_diffusion|tests|app"
_PATH = re.compile(rf"(?<![\w/.])(?:{_FOLDERS})/[\w./-]*[\w/]")
_MODULE = re.compile(r"(?<![\w/.])(?:svfit_diffusion|benchmarks)(?:\.\w+)+")
_PLACEHOLDER = re.compile(r"path/to|photos/|\brex\b|\btom\b|\bfoo\b|my[-_](?:dog|cat)")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not run."""
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        for words in commands(block.text) if block.language in ("bash", "powershell") else ():
            try:
                understand(words)
            except (SVFitError, typer.Exit, Exception) as error:
                pytest.fail(f"{page}:{block.line}: {' '.join(words)}: {error}")


def understand(words: list[str]) -> None:
    """Have a command's own parser read its words, if it is one of ours."""
    if "train_dreambooth_svfit.py" in words:
        parse_args(words[words.index("train_dreambooth_svfit.py") + 1 :])
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True)
    elif words[:2] == ["svfit", "train"]:
        parse_args(words[2:])
    elif words[:2] == ["svfit", "app"]:
        FlagParser((AppSettings, Limits)).values(words[2:])
    elif words[0] == "svfit":
        command, rest = typer.main.get_command(app), words[1:]
        context = command.make_context("svfit", rest)
        while hasattr(command, "resolve_command"):
            name, command, rest = command.resolve_command(
                context, context._protected_args + context.args
            )
            context = command.make_context(name, rest, parent=context)


@cache
def known_flags() -> set[str]:
    """Every flag of a command, the script, the app, the benchmarks and the builders of samples."""
    files = [f for folder in ("svfit_diffusion", "benchmarks", "samples") for f in python(folder)]
    written = re.findall(r'"(--[\w-]+)', "\n".join(file.read_text() for file in files))
    written += [
        part
        for text in re.findall(r'"(--\w+/--\w+)"', "\n".join(map(Path.read_text, files)))
        for part in text.split("/")
    ]
    names = [
        f.name for kind in (TrainingConfig, AppSettings, Limits) for f in dataclasses.fields(kind)
    ]
    own = {f"--{prefix}{name}" for name in names for prefix in ("", "no_")}
    options = {o for command in all_commands() for p in command.params for o in p.opts}
    return own | set(written) | options | _OF_OTHERS


def all_commands() -> list:
    command = typer.main.get_command(app)
    basis = command.commands["basis"]
    return [*command.commands.values(), *basis.commands.values()]


def python(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_flags_exist(page: Path) -> None:
    named = {flag for code in codes(page) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    assert named <= known_flags() | {"--no_"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_and_modules_exist(page: Path) -> None:
    written = [*codes(page), *(block.text for block in blocks(page))]
    paths = {path for text in written for path in _PATH.findall(text)}
    assert not [path for path in paths if not (ROOT / path).exists()]
    for name in {name for text in written for name in _MODULE.findall(text)}:
        assert find(name) is not None


def find(name: str) -> object:
    """The module or the thing in a module of that name."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_is_named_that_exists_nowhere(page: Path) -> None:
    assert not _PLACEHOLDER.findall(page.read_text(encoding="utf-8"))


def test_settings_in_words_exist() -> None:
    """Commands of `svfit` that pages name in their text."""
    top = typer.main.get_command(app).commands
    for page in PAGES:
        for code in codes(page):
            if found := re.match(r"svfit (\w+)(?: (\w+))?", code):
                assert found[1] in top, f"{page}: {code}"
                if found[1] == "basis" and found[2]:
                    assert found[2] in top["basis"].commands, f"{page}: {code}"


@cache
def messages() -> list[str]:
    """Texts in the code, with … for what is put in."""
    found = []
    for file in [f for folder in ("svfit_diffusion", "app") for f in python(folder)]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(getattr(v, "value", "…")) if isinstance(v, ast.Constant) else "…"
                        for v in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_trouble_are_those_of_the_code() -> None:
    page = ROOT / "docs" / "trouble.md"
    found = tokens(page)
    titles = [found[i + 1] for i, token in enumerate(found) if token.type == "heading_open"]
    quoted = [
        c.content for title in titles for c in title.children or () if c.type == "code_inline"
    ]
    assert len(quoted) > 25
    everything = "\n".join(messages())
    unknown = [
        text
        for text in quoted
        for part in re.split(r"…|'|nan", text)
        if part.strip() and part.strip(" ;:,") not in everything
    ]
    assert unknown == [
        "'StableDiffusionPipeline' object has no attribute 'load_svfit_weights'"
    ] * len(unknown)
