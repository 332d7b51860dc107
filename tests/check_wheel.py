"""Build nothing, trust nothing: install a wheel into an empty environment and use it.

python tests/check_wheel.py dist/svfit_diffusion-….whl

Torch comes from where pip finds it, so set PIP_EXTRA_INDEX_URL and PIP_CONSTRAINT for another build.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
TOYBOX, SUBJECT, ADAPTER = (
    SAMPLES / p for p in ("toybox", "subjects/blue_car", "adapters/blue_car")
)
SECONDS_OF_HELP = 1.0
STEPS = [
    ("python", "-c", "import svfit_diffusion; print(svfit_diffusion.__version__)"),
    ("svfit", "--help"),
    ("svfit", "doctor"),
    ("svfit", "plan", TOYBOX),
    ("svfit", "export", ADAPTER, "--base", TOYBOX, "--output", "lora.safetensors"),
    ("svfit", "import", "lora.safetensors", "--base", TOYBOX, "--output", "back"),
    (
        *("svfit", "train", f"--pretrained_model_name_or_path={TOYBOX}"),
        *(f"--instance_data_dir={SUBJECT}", "--instance_prompt=a photo of sks car"),
        *("--max_train_steps=2", "--num_inference_steps=2", "--output_dir=trained"),
    ),
    (
        *("svfit", "generate", "a photo of sks car", "--adapter", "trained:0.8", "--base", TOYBOX),
        *("--num_inference_steps", "2", "--output", "car.png"),
    ),
]
LEFT = ("lora.safetensors", "back", "trained/training_config.yaml", "car.png")


def check_contents(wheel: Path) -> None:
    """The package, and what is said of it; no tests, samples or pictures."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    foreign = [n for n in names if not n.startswith(("svfit_diffusion/", "svfit_diffusion-"))]
    suffixes = {Path(name).suffix for name in names if name.startswith("svfit_diffusion/")}
    assert not foreign, f"the wheel holds {foreign[:5]}"
    assert suffixes <= {".py", ".typed", ".css", ".md", ".toml"}, f"the wheel holds {suffixes}"
    assert {"svfit_diffusion/app/pages/style.css", "svfit_diffusion/cli/main.py"} <= set(names)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {len(names)} files")


def use(wheel: Path, folder: Path) -> None:
    """Install a wheel into an environment of its own, and run every step in an empty folder."""
    venv.create(folder / "env", with_pip=True)
    programs, work = folder / "env" / "bin", folder / "work"
    work.mkdir()
    subprocess.run([programs / "pip", "install", "--quiet", wheel], check=True)
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env = {**clean, "HF_HUB_OFFLINE": "1", "SVFIT_CACHE": str(folder / "cache")}
    for program, *words in STEPS:
        print("$", program, *words, flush=True)
        subprocess.run([programs / program, *words], cwd=work, env=env, check=True)
    missing = [name for name in LEFT if not (work / name).exists()]
    assert not missing, f"no {missing}"
    started = time.perf_counter()
    subprocess.run([programs / "svfit", "--help"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    print(f"svfit --help took {seconds:.2f} s")
    assert seconds < SECONDS_OF_HELP


def main() -> None:
    """Check the wheel on the command line."""
    (wheel,) = (Path(word).resolve() for word in sys.argv[1:])
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder))


if __name__ == "__main__":
    main()
