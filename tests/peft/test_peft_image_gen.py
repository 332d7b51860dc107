"""The experiments for PEFT's image-gen comparison, and how its results are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from peft import PeftConfig, get_peft_model
from peft_kinds import layers

import svfit_diffusion.peft
from benchmarks.peft_image_gen.__main__ import COMPARISON, HERE, experiments, main, pending
from benchmarks.peft_image_gen.table import as_markdown, best_under, read_result


def write_result(folder: Path, name: str, similarity: float, size: int, status: str) -> Path:
    """As PEFT's `run.py` writes it, of what is read; other entries left out."""
    train = {
        "accelerator_memory_max": 10536091648,
        "train_time": 768.7,
        "file_size": size,
        "num_trainable_params": 44800,
        "status": status,
        "metrics": [
            {"step": 700, "valid dino_similarity": 0.39},
            {"step": 750, "test dino_similarity": similarity, "drift": 0.1546},
        ],
    }
    file = folder / f"{name.replace('/', '--')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"run_info": {"experiment_name": name}, "train_info": train}))
    return file


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    comparison = tmp_path / COMPARISON
    write_result(comparison / "results", "psoft/flux2-klein-default", 0.5984, 211320, "success")
    write_result(comparison / "results", "lora/flux2-klein-default", 0.7, 30_000_000, "success")
    write_result(comparison / "results", "oft/broken", 0.9, 10, "canceled")
    (comparison / "run.py").write_text("import sys; print(sys.argv); sys.exit('utils' in sys.path)")
    return tmp_path


@pytest.mark.parametrize("name", experiments())
def test_an_experiment_is_one_of_pefts(name: str) -> None:
    folder = HERE / "experiments" / name
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, svfit_diffusion.peft.SVFitConfig)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written.keys() == config.to_dict().keys()
    assert set(json.loads((folder / "training_params.json").read_text())) == {"optimizer_kwargs"}


def test_targets_are_flux2s() -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    channels = {"in_channels": 8, "attention_head_dim": 16, "joint_attention_dim": 24}
    axes = {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16}
    transformer = Flux2Transformer2DModel(**sizes, **channels, **axes)
    config = PeftConfig.from_pretrained(str(HERE / "experiments" / "svfit" / "flux2-klein-all"))
    # 12 in a double block and 1 in a single one: 80 in the 5 and 20 of klein.
    assert len(layers(get_peft_model(transformer, config))) == 13


def test_a_result_is_read(checkout: Path) -> None:
    found = read_result(next((checkout / COMPARISON / "results").glob("psoft*")))
    assert found and (found.name, found.size) == ("psoft/flux2-klein-default", 211320)
    assert (found.values, found.similarity, found.drift) == (44800, 0.5984, 0.1546)


def test_a_canceled_run_has_no_result(checkout: Path) -> None:
    assert read_result(next((checkout / COMPARISON / "results").glob("oft*"))) is None


def test_something_else_is_refused(tmp_path: Path) -> None:
    for text in ("{", "{}", "[]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json is no result of PEFT's"):
            read_result(tmp_path / "a.json")


def test_the_table(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(checkout), "--table"])
    printed = capsys.readouterr().out
    names = [line.split(" ")[1] for line in printed.splitlines() if "klein" in line][:2]
    assert names == ["lora/flux2-klein-default", "psoft/flux2-klein-default"]
    assert "Under 0.25 MB: psoft/flux2-klein-default leads with 0.598." in printed
    assert best_under([], 10) is None and "Under 1.2 MB: nobody." in as_markdown([])


def run_here(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of Python with `-c`, in this process, where all is imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command[2:])
        patch.setattr(sys, "path", [*sys.path])
        try:
            exec(command[2], {})
        except SystemExit as ended:
            return subprocess.CompletedProcess(command, int(ended.code or 0))
    raise AssertionError("the script did not end")


def test_pending_experiments_are_run(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", run_here)
    comparison = checkout / COMPARISON
    done = "svfit/flux2-klein-rank64"
    write_result(comparison / "temporary_results", f"{done}--2026-07-01T00-00", 0.6, 9, "success")
    assert pending(comparison) == [name for name in experiments() if name != done]
    main([str(checkout), "--only", "svfit/flux2-klein-rank256"])
    assert "['run.py', '-v', 'experiments/svfit/flux2-klein-rank256']" in capsys.readouterr().out
    copied = comparison / "experiments" / "svfit" / "flux2-klein-rank256"
    assert {file.name for file in copied.iterdir()} == {
        "adapter_config.json",
        "training_params.json",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "holds no run.py"), (["CHECKOUT", "--only", "x"], "x is none of svfit/")],
)
def test_refusals(
    arguments: list[str], words: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([word.replace("CHECKOUT", str(checkout)) for word in arguments])
    assert words in capsys.readouterr().err
