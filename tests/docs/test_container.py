"""The Dockerfile as far as it can be checked without Docker, and the hooks of pre-commit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from doc_pages import ROOT

from app.settings import AppSettings, Limits
from svfit_diffusion.training.flags import FlagParser

DOCKERFILE = ROOT / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_no_lint() -> None:
    run(str(Path(sys.executable).with_name("hadolint")), str(DOCKERFILE))


def test_what_it_copies_exists_and_is_let_through() -> None:
    through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in through


def test_it_starts_the_app_with_flags_that_exist() -> None:
    found = re.search(r"^ENTRYPOINT (\[.*?\])", TEXT.replace("\\\n", ""), re.MULTILINE)
    assert found
    words = json.loads(found[1])
    assert words[:2] == ["svfit", "app"]
    FlagParser((AppSettings, Limits)).values(words[2:])


def test_the_hooks_are_valid() -> None:
    run(sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml")
