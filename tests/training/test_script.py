"""The training script as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_dreambooth_svfit
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train_dreambooth_svfit.py"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(["red", "orange", "brown"]):
        Image.new("RGB", (24, 24), colour).save(folder / f"{i}.png")
    return folder


def run(
    *arguments: str, launcher: tuple[str, ...] = (), script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    # One thread per process: several must share two cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def flags(base: Path, photos: Path, output: Path) -> list[str]:
    return [
        f"--pretrained_model_name_or_path={base}",
        f"--instance_data_dir={photos}",
        "--instance_prompt=a photo of sks dog",
        f"--output_dir={output}",
        "--num_inference_steps=2",
        "--lr_warmup_steps=0",
        "--learning_rate=0.05",
        "--seed=0",
    ]


def values(output: Path) -> torch.Tensor:
    adapter = read_adapter(output / WEIGHTS_NAME)
    return torch.cat([delta for paths in adapter.deltas.values() for delta in paths.values()])


def test_whole_run_and_exact_resume(saved_pipe: Path, photos: Path, tmp_path: Path) -> None:
    settings = ["--max_train_steps=4", "--checkpointing_steps=2", "--train_batch_size=2"]
    watching = ["--validation_prompt", "sks dog on a beach", "sks dog", "--validation_steps=2"]
    whole = run(*flags(saved_pipe, photos, tmp_path / "a"), *settings, *watching)
    assert whole.returncode == 0, whole.stderr
    assert "Adapter:" in whole.stdout
    for name in ("before_after.png", "validation/step_00002.png"):
        with Image.open(tmp_path / "a" / name) as picture:
            assert min(picture.size) > 100
    resumed = run(
        *flags(saved_pipe, photos, tmp_path / "b"),
        *settings,
        f"--resume_from_checkpoint={tmp_path / 'a' / 'checkpoint-2'}",
    )
    assert resumed.returncode == 0, resumed.stderr
    assert torch.equal(values(tmp_path / "a"), values(tmp_path / "b"))


def test_two_processes_train_what_one_does(saved_pipe: Path, photos: Path, tmp_path: Path) -> None:
    settings = [
        "--max_train_steps=3",
        "--with_prior_preservation",
        "--class_prompt=a photo of a dog",
        "--num_class_images=3",
    ]
    one = run(*flags(saved_pipe, photos, tmp_path / "one"), *settings, "--train_batch_size=4")
    assert one.returncode == 0, one.stderr
    # Without --multi_gpu, accelerate launches a single process where there is no GPU.
    launcher: tuple[str, ...] = ("-m", "accelerate.commands.launch", "--multi_gpu")
    launcher += (
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    )
    two = run(
        *flags(saved_pipe, photos, tmp_path / "two"),
        *settings,
        "--train_batch_size=2",
        launcher=launcher,
    )
    assert two.returncode == 0, two.stderr
    expected, found = values(tmp_path / "one"), values(tmp_path / "two")
    # Sums in another order, magnified by Adam's division where gradients are tiny.
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    for name in ("one", "two"):
        assert len(list((tmp_path / name / "class_images").glob("*.png"))) == 3


TRAIN_AND_SHOW = """
import sys, torch
from pathlib import Path
from svfit_diffusion.training.trainer import Trainer
from svfit_diffusion.training.arguments import parse_args

trainer = Trainer(parse_args(sys.argv[1:]), show_progress=False)
for _ in trainer.steps():
    pass
deltas = torch.cat([parameter.detach() for parameter in trainer.sigma_parameters()])
shown = {"deltas": deltas, **trainer.pruner.state_dict()}
torch.save(shown, f"{trainer.config.output_dir}-{trainer.accelerator.process_index}.pt")
trainer.accelerator.end_training()
"""


def test_processes_prune_alike(saved_pipe: Path, photos: Path, tmp_path: Path) -> None:
    program = tmp_path / "train_and_show.py"
    program.write_text(TRAIN_AND_SHOW, encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    result = run(
        *flags(saved_pipe, photos, tmp_path / "out"),
        "--max_train_steps=5",
        "--budget=50",
        launcher=launcher,
        script=program,
    )
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / f"out-{i}.pt") for i in range(2))
    assert one["deltas"].count_nonzero() == one["live"].sum() == 50
    assert all(torch.equal(one[name], two[name]) for name in one)


TRAIN_AND_STOP_ONE = """
import signal
from accelerate import PartialState
from svfit_diffusion.training.arguments import parse_args
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.run import train

plain, calls = Objective.losses, []

def losses(objective, positions):
    calls.append(positions)
    if len(calls) == 2 and not PartialState().is_main_process:
        signal.raise_signal(signal.SIGTERM)
    return plain(objective, positions)

Objective.losses = losses
train(parse_args())
"""


def test_processes_stop_together(saved_pipe: Path, photos: Path, tmp_path: Path) -> None:
    program = tmp_path / "train_and_stop_one.py"
    program.write_text(TRAIN_AND_STOP_ONE, encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = [*flags(saved_pipe, photos, tmp_path / "out"), "--max_train_steps=5"]
    result = run(*arguments, launcher=launcher, script=program)
    assert result.returncode == 0, result.stderr
    assert "Stopped after step 2 of 5" in result.stdout
    assert torch.equal(values(tmp_path / "out"), values(tmp_path / "out" / "checkpoint-2"))


TRAIN_AND_KILL_ONE = """
import os, signal
from accelerate import PartialState
from svfit_diffusion.training.objective import Objective
from train_dreambooth_svfit import main

plain, calls = Objective.losses, []

def losses(objective, positions):
    calls.append(positions)
    if len(calls) == 3 and PartialState().process_index == {dying}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(objective, positions)

Objective.losses = losses
main()
"""


@pytest.mark.parametrize("dying", [0, 1], ids=["main", "other"])
def test_when_a_process_dies_the_others_keep_what_was_learned(
    dying: int, saved_pipe: Path, photos: Path, tmp_path: Path
) -> None:
    program = tmp_path / "train_and_kill_one.py"
    program.write_text(TRAIN_AND_KILL_ONE.format(dying=dying), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = [*flags(saved_pipe, photos, tmp_path / "out"), "--max_train_steps=5"]
    result = run(*arguments, launcher=launcher, script=program)
    assert result.returncode != 0
    assert "LostProcessError: another process of this training has ended" in result.stderr
    assert "What was learned in 2 steps is kept" in result.stdout
    assert torch.equal(values(tmp_path / "out"), values(tmp_path / "out" / "checkpoint-2"))


def test_an_error_is_one_message(saved_pipe: Path, photos: Path, tmp_path: Path) -> None:
    result = run(*flags(saved_pipe, photos, tmp_path / "out"), "--instance_data_dir=/nowhere")
    assert result.returncode == 1
    assert "DataError: there is no image folder '/nowhere'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--instance_prompt="], "DataError: no prompt"),
        (["--with_prior_preservation"], "ConfigError: with_prior_preservation needs class_prompt"),
        (["--rank=-3"], "ConfigError: rank must be at least 1, got -3"),
        (["--rank=1", "--budget=99"], "ConfigError: budget 99 exceeds the 40 trainable"),
        (["--pretrained_model_name_or_path="], "--pretrained_model_name_or_path is missing"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    saved_pipe: Path,
    photos: Path,
    tmp_path: Path,
    changes: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In this process: to start another takes longer than all the rest.
    arguments = [*flags(saved_pipe, photos, tmp_path / "out"), *changes]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as end:
        train_dreambooth_svfit.main()
    assert message in str(end.value)
    assert not (tmp_path / "out").exists()
