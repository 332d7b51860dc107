"""Imports point down from room to room, never in a circle, and files stay small."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

import svfit_diffusion

PACKAGE = Path(svfit_diffusion.__file__).parent
ROOT = PACKAGE.parent
# From the bottom up: a room is a folder or a module of the package. It may import from itself, from
# the rooms of floors below its own, and from nothing else of this package. Keep this list when you
# add a room (DESIGN section 5).
FLOORS = [
    {"errors", "version", "imports", "calls"},
    {"files", "families", "pipeline_methods"},
    {"spectrum"},
    {"adapters"},
    {"training", "interchange", "peft"},
    {"fleet", "comfyui", "planning"},
    {"serving"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = 300
LONGEST_SCRIPT = 100


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name below the package; `""` is the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        parts = inside.parent.parts if path.stem == "__init__" else inside.with_suffix("").parts
        found[".".join(parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """The names that a file imports, wherever in it, such as `torch.nn`, or a module's members."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            # `from svfit_diffusion.spectrum import solver` names a module after the import.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph() -> dict[str, set[str]]:
    """The package's modules that each of them imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        inside = {n.partition(".")[2] for n in imports(path) if n.startswith("svfit_diffusion.")}
        # A name is a module, or what one defines.
        edges[module] = {n if n in known else n.rpartition(".")[0] for n in inside}
        assert edges[module] <= set(known), f"{module} imports {edges[module] - set(known)}"
    return edges


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_floor() -> None:
    unknown = sorted({room(module) for module in modules()} - set(FLOOR_OF) - {""})
    assert not unknown, (
        f"new rooms {unknown}: add each to FLOORS in {Path(__file__).name}, above all that it "
        f"imports"
    )
    folders = {path.parent for path in modules().values()}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_all_of_it_is_installed() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^ {4}"(svfit_diffusion[\w.]*)",$', settings, re.MULTILINE))
    ours = {path.parent.relative_to(ROOT) for path in modules().values()}
    app = {Path("svfit_diffusion") / p.parent.relative_to(ROOT) for p in ROOT.glob("app/**/*.py")}
    assert listed == {".".join(path.parts) for path in ours | app}


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {imported or 'the whole package'}"
        for module, found in graph().items()
        for imported in sorted(found)
        if module
        and room(imported) != room(module)
        and FLOOR_OF.get(room(imported), len(FLOORS)) >= FLOOR_OF[room(module)]
    ]
    assert not wrong


def test_there_is_no_circle() -> None:
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert set(order) == set(graph())


def test_the_mathematics_needs_no_model_library() -> None:
    allowed = ("torch", "huggingface_hub.constants", "tqdm", "svfit_diffusion")
    foreign = {
        f"{module} imports {name}"
        for module, path in modules().items()
        if room(module) in ("errors", "version", "imports", "calls", "pipeline_methods", "spectrum")
        for name in imports(path)
        if not any(f"{name}.".startswith(f"{library}.") for library in allowed)
        and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("folder", ["svfit_diffusion", "app"])
def test_no_file_has_two_subjects(folder: str) -> None:
    lengths = {path: lines(path) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert lengths
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > LONGEST]
    assert not long


def test_the_script_parses_trains_and_saves() -> None:
    assert lines(ROOT / "train_dreambooth_svfit.py") <= LONGEST_SCRIPT


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by their names alone and refuses the second.
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len({path.name for path in files}) == len(files)
