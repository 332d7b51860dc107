"""Run SVFit's experiments by PEFT's own script, and show the table of all methods.

    python -m benchmarks.peft_image_gen ../peft            # what has no result yet, then the table
    python -m benchmarks.peft_image_gen ../peft --table    # the table alone

`README.md` in this folder says what is needed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peft_image_gen.table import as_markdown, read_result

HERE = Path(__file__).resolve().parent
COMPARISON = Path("method_comparison") / "image-gen"
RESULTS = ("results", "temporary_results")
"""Where PEFT writes: of its branch `main`, and of others."""

_RUN = """
import runpy, sys
import svfit_diffusion.peft
sys.path.insert(0, ".")
runpy.run_path("run.py", run_name="__main__")
"""


def experiments() -> list[str]:
    """Names of the experiments here, such as `svfit/flux2-klein-rank64`."""
    folder = HERE / "experiments"
    return sorted(
        file.parent.relative_to(folder).as_posix()
        for file in folder.glob("*/*/adapter_config.json")
    )


def result_files(comparison: Path) -> list[Path]:
    """All results in a checkout's comparison."""
    return sorted(file for name in RESULTS for file in (comparison / name).glob("*.json"))


def pending(comparison: Path) -> list[str]:
    """Our experiments that have no result yet."""
    stems = [file.stem for file in result_files(comparison)]
    return [
        name
        for name in experiments()
        # Results of other branches than `main` end in the time.
        if not any(f"{stem}--".startswith(f"{name.replace('/', '--')}--") for stem in stems)
    ]


def run(comparison: Path, name: str) -> int:
    """Run an experiment in a checkout's comparison; its exit status."""
    target = comparison / "experiments" / name
    shutil.copytree(HERE / "experiments" / name, target, dirs_exist_ok=True)
    command = [sys.executable, "-c", _RUN, "-v", f"experiments/{name}"]
    return subprocess.run(command, cwd=comparison).returncode


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a git checkout of huggingface/peft")
    parser.add_argument("--only", metavar="NAME", help="run this experiment alone")
    parser.add_argument("--table", action="store_true", help="run nothing")
    settings = parser.parse_args(arguments)
    comparison = settings.checkout / COMPARISON
    if not (comparison / "run.py").is_file():
        parser.error(f"{comparison} holds no run.py: give a checkout of huggingface/peft")
    if settings.only and settings.only not in experiments():
        parser.error(f"{settings.only} is none of {', '.join(experiments())}")
    wanted = [settings.only] if settings.only else pending(comparison)
    failed = [] if settings.table else [name for name in wanted if run(comparison, name)]
    found = [result for file in result_files(comparison) if (result := read_result(file))]
    print(as_markdown(found))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
