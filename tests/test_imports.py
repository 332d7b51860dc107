"""Imports point down one list of modules, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import svfit_diffusion

PACKAGE = Path(svfit_diffusion.__file__).parent
# From the bottom up: a module may import from groups before its own, and from nothing else of
# this package. Keep this list when you add a module.
GROUPS = [
    {"errors", "version", "products", "files"},
    {"spectral", "budget"},
    {"linear"},
    {"layers", "basis"},
    {"attention", "mixing", "config", "checkpoint"},
    {"injection"},
    {"components"},
    {"loaders"},
    {"data", "objective"},
    {"class_images", "photo_set", "training_setup"},
    {"training"},
    {"training_state"},
    {"grid", "hub"},
]
RANKS = {module: rank for rank, group in enumerate(GROUPS) for module in group}


def imports(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            module = node.module or ""
            # `from svfit_diffusion import spectral` names a module after the import.
            names = [f"{module}.{alias.name}" for alias in node.names]
            if module != "svfit_diffusion":
                names = [module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("svfit_diffusion.")}
    return found


def graph() -> dict[str, set[str]]:
    files = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    return {module: imports(path) for module, path in sorted(files.items())}


def test_every_module_has_its_place() -> None:
    unknown = sorted(set(graph()) - set(RANKS))
    assert not unknown, (
        f"new modules {unknown}: add each to GROUPS in {Path(__file__).name}, above all that it "
        f"imports"
    )


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, found in graph().items()
        for imported in sorted(found)
        if RANKS[imported] >= RANKS[module]
    ]
    assert not wrong


def test_there_is_no_circle() -> None:
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert set(order) >= set(graph())


def test_the_mathematics_needs_torch_alone() -> None:
    for module in ("errors", "products", "spectral", "linear", "layers", "mixing", "version"):
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        text = " ".join(
            ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
        )
        assert not any(name in text for name in ("diffusers", "transformers", "accelerate"))
