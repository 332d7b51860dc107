"""What the documentation names exists: flags, settings, modules, files, messages."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_pages import NAMES, PAGES, ROOT, blocks, codes, commands, tokens

from app.settings import AppSettings, Limits
from svfit_diffusion.cli.main import app
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.subjects import parse_fleet
from svfit_diffusion.training.arguments import parse_command
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.flags import FlagParser

_OF_OTHERS = {"--multi_gpu", "--num_processes", "--nproc_per_node", "--install-completion"}
_OF_OTHERS |= {"--install", "--select", "--strict", "--use_deepspeed", "--zero_stage"}
SVFIT: Any = typer.main.get_command(app)
_FOLDERS = "samples|benchmarks|docs|svfit_diffusion|tests|app"
_OF_DIFFUSERS = "'StableDiffusionPipeline' object has no attribute 'load_svfit_weights'"
_PATH = re.compile(rf"(?<![\w/.])(?:{_FOLDERS})/[\w./-]*[\w/]")
_MODULE = re.compile(r"(?<![\w/.])(?:svfit_diffusion|benchmarks)(?:\.\w+)+")
_PLACEHOLDER = re.compile(r"path/to|photos/|\brex\b|\btom\b|\bfoo\b|my[-_](?:dog|cat)")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_are_not_run_are_understood(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        if block.reason:
            for words in commands(block.text):
                understand(words)


def understand(words: list[str]) -> None:
    """Have a command's own parser read its words, if it is one of ours."""
    if "train_dreambooth_svfit.py" in words:
        parse_command(words[words.index("train_dreambooth_svfit.py") + 1 :])
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True)
    elif words[:2] == ["svfit", "train"]:
        parse_command(words[2:])
    elif words[:3] == ["svfit", "fleet", "train"]:
        parse_fleet(words[3:])
    elif words[:2] == ["svfit", "app"]:
        FlagParser((AppSettings, Limits)).values(words[2:])
    elif words[0] == "svfit":
        command = SVFIT.commands[words[1]]
        command.make_context(words[1], words[2:])


@cache
def known_flags() -> set[str]:
    """Every flag of a command, the script, the app, the benchmarks and the builders of samples."""
    files = [f for folder in ("svfit_diffusion", "benchmarks", "samples") for f in python(folder)]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    written = re.findall(r'(?<=["/])--\w[\w-]*', text)
    kinds = (TrainingConfig, FleetSettings, AppSettings, Limits)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    settings = {f"--{prefix}{name}" for name in names for prefix in ("", "no_")}
    groups = [SVFIT, SVFIT.commands["basis"], SVFIT.commands["fleet"]]
    commands_ = [command for group in groups for command in group.commands.values()]
    options = {option for command in commands_ for p in command.params for option in p.opts}
    return settings | set(written) | options | _OF_OTHERS


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


def test_commands_named_in_the_text_exist() -> None:
    for page in PAGES:
        for code in codes(page):
            if found := re.match(r"svfit ([a-z]\w*)(?: ([a-z]\w*))?", code):
                assert found[1] in SVFIT.commands, f"{page}: {code}"
                if found[1] == "basis" and found[2]:
                    assert found[2] in SVFIT.commands["basis"].commands, f"{page}: {code}"


@cache
def messages() -> str:
    """All texts in the code; what is put into one is …."""
    found = []
    for file in [*python("svfit_diffusion"), *python("app")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_constant, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def _constant(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) else "…"


def test_messages_in_trouble_are_those_of_the_code() -> None:
    found = tokens(ROOT / "docs" / "trouble.md")
    titles = [found[i + 1] for i, token in enumerate(found) if token.type == "heading_open"]
    children = [child for title in titles for child in title.children or ()]
    quoted = [c.content for c in children if c.type == "code_inline"]
    assert len(quoted) > 25
    unknown = {text for text in quoted if not all(part in messages() for part in _parts(text))}
    assert unknown == {_OF_DIFFUSERS}


def _parts(message: str) -> list[str]:
    """A message between what was put in."""
    return [part.strip(" '-?;:,") for part in re.split(r"…|nan", message)]
