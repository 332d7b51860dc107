"""Families stand on torch and diffusers, and on nothing of this package but its errors."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from svfit_diffusion import families

MODULES = sorted(Path(families.__file__).parent.glob("*.py"))
ALLOWED = {"torch", "diffusers", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            own = name.startswith(("svfit_diffusion.families", "svfit_diffusion.errors"))
            assert own or name.partition(".")[0] in ALLOWED, f"{path.name} imports {name}"
