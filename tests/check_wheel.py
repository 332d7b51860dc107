"""Use an installed wheel as someone would who has nothing else of ours.

`make wheel` builds it, installs it into an environment of its own, and runs this with the wheel and
the folder of that environment's programs; nothing is imported from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
TOYBOX, SUBJECT, ADAPTER = (
    SAMPLES / p for p in ("toybox", "subjects/blue_car", "adapters/blue_car")
)
FOLDERS = {
    "svfit_diffusion": SAMPLES.parent / "svfit_diffusion",
    "svfit_diffusion/app": SAMPLES.parent / "app",
}
"""Where the modules in the wheel come from, by their place in it."""
DATA = (
    "svfit_diffusion/py.typed",
    "svfit_diffusion/app/pages/crop.js",
    "svfit_diffusion/app/pages/page.js",
    "svfit_diffusion/app/pages/style.css",
    "svfit_diffusion/comfyui/README.md",
)
"""What else of these folders is in it."""
ABOUT = (
    *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"),
    "licenses/LICENSE",
)
SECONDS_OF_HELP = 1.0
STEPS = [
    ("python", "-c", "import svfit_diffusion; print(svfit_diffusion.__version__)"),
    ("svfit", "--help"),
    ("svfit", "doctor"),
    ("svfit", "fleet", "train", "--help"),
    ("svfit", "plan", TOYBOX),
    ("svfit", "info", ADAPTER, "--base", TOYBOX, "--layers", "2"),
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
REFUSED = ("svfit", "export", ADAPTER, "--base", TOYBOX, "--output", "lora.safetensors")
PEFT = ("pip", "install", "--quiet", "peft")
STEPS_WITH_PEFT = [
    REFUSED,
    ("svfit", "import", "lora.safetensors", "--base", TOYBOX, "--output", "back"),
    ("python", "-c", "from svfit_diffusion.peft import SVFitConfig; print(SVFitConfig())"),
]
LEFT = ("lora.safetensors", "back", "trained/training_config.yaml", "car.png")


def check_contents(wheel: Path) -> None:
    """The modules of the package and the app, `DATA`, what is said of them, and nothing else."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    about = wheel.name.split("-py3")[0] + ".dist-info"
    wanted = {*DATA, *(f"{about}/{name}" for name in ABOUT)}
    for package, folder in FOLDERS.items():
        wanted |= {f"{package}/{p.relative_to(folder).as_posix()}" for p in folder.rglob("*.py")}
    assert names == wanted, (
        f"the wheel holds {sorted(names - wanted)} and lacks {sorted(wanted - names)}"
    )
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {len(names)} files")


def use(programs: Path, work: Path) -> None:
    """Run every step in an empty folder.

    Args:
        programs: folder of the environment's programs.
        work: the folder.
    """
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env = {**clean, "HF_HUB_OFFLINE": "1", "SVFIT_CACHE": str(work / "cache")}

    def run(program: str, *words: object) -> subprocess.CompletedProcess[bytes]:
        print("$", program, *words, flush=True)
        command = [str(programs / program), *map(str, words)]
        return subprocess.run(command, cwd=work, env=env, stderr=subprocess.PIPE)

    def succeed(*words: object) -> None:
        ended = run(*map(str, words))
        assert ended.returncode == 0, ended.stderr.decode()

    for words in STEPS:
        succeed(*words)
    refused = run(*map(str, REFUSED))
    assert refused.returncode == 1, "exports without PEFT"
    assert b"pip install" in refused.stderr.splitlines()[-1]
    for words in (PEFT, *STEPS_WITH_PEFT):
        succeed(*words)
    missing = [name for name in LEFT if not (work / name).exists()]
    assert not missing, f"no {missing}"
    started = time.perf_counter()
    succeed("svfit", "--help")
    seconds = time.perf_counter() - started
    print(f"svfit --help took {seconds:.2f} s")
    assert seconds < SECONDS_OF_HELP


def main() -> None:
    """Check the wheel and the programs on the command line."""
    wheel, programs = (Path(word).absolute() for word in sys.argv[1:])
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        use(programs, Path(folder))
    print("The wheel works.")


if __name__ == "__main__":
    main()
