"""Plans come from configurations alone, and say what training then takes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import ConfigError, TargetError
from svfit_diffusion.planning import Plan, make_plan
from svfit_diffusion.planning import plan as plan_module
from svfit_diffusion.planning import step as step_module
from svfit_diffusion.planning.duration import _work
from svfit_diffusion.planning.methods import svfit
from svfit_diffusion.planning.sizes import bases_bytes
from svfit_diffusion.spectrum import one_sided
from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.layers import PlannedLayer

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))
from command import done, refused

NAMES = ("sd", "sdxl", "sd3", "flux", "qwen_image", "z_image", "flux2", "sana", "pixart_sigma")


def without_weights(folder: Path) -> Path:
    """A pipeline's folder of which the configurations are left."""
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert files
    for path in files:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def bare(saved_pipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "base"
    return without_weights(Path(shutil.copytree(saved_pipe, folder)))


def plan(base: Path, resolutions: tuple[int, ...] = (16,), **settings: Any) -> Plan:
    sizes = settings.pop("batch_sizes", (1,))
    config = TrainingConfig(str(base), "photos", "a photo of sks dog", **settings)
    return make_plan(config, resolutions, sizes, show_progress=False)


@pytest.mark.parametrize(
    "settings", [{}, {"rank": "4"}, {"target": ["all"]}, {"train_identifier": "sks"}]
)
def test_sizes_are_those_of_a_training(
    settings: dict[str, Any], bare: Path, saved_pipe: Path, tmp_path: Path, empty_cache: Path
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "0.png")
    config = TrainingConfig(
        str(bare),
        str(tmp_path),
        "a photo of sks dog",
        max_train_steps=2,
        seed=7,
        lr_warmup_steps=0,
        **settings,
    )
    planned = make_plan(config, (16,), (1,), show_progress=False)
    here = dataclasses.replace(config, pretrained_model_name_or_path=str(saved_pipe))
    trainer = Trainer(here, show_progress=False)
    for _ in trainer.steps():
        pass
    assert planned.values == sum(p.numel() for p in trainer.subject.shifts())
    file = trainer.save(tmp_path / "out")
    # The base's path stands in the header; a value that is zero by chance is left out.
    other_paths = 4 * abs(len(str(bare)) - len(str(saved_pipe)))
    assert abs(planned.adapter_bytes - file.stat().st_size) <= other_paths + 64
    cached = sum(path.stat().st_size for path in empty_cache.glob("*.safetensors"))
    bases = len(list(empty_cache.glob("*.safetensors")))
    assert cached <= planned.basis_bytes <= cached + 256 * bases


def test_leading_triplets_of_large_weights_are_planned_as_what_they_take() -> None:
    flux = {str(number): PlannedLayer(3072, 3072, 64) for number in range(266)}
    every = {path: dataclasses.replace(layer, rank=3072) for path, layer in flux.items()}
    assert bases_bytes({"transformer": flux}) < 0.25e9 < 9e9 < bases_bytes({"transformer": every})
    work = {rank: _work(PlannedLayer(3072, 3072, rank)) for rank in (16, 64, 256)}
    assert sorted(work.values()) == list(work.values())


def test_lora_is_counted_as_peft_makes_it(bare: Path) -> None:
    planned = plan(bare, train_text_encoder=False)
    pipe: Any = tiny_pipelines.build("sd")
    unet = models_of(pipe)["unet"]
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.requires_grad_(False)
    expected = _lora_values(unet, LoraConfig(r=8, target_modules=targets))
    if pipe.unet.config.block_out_channels == [32, 64]:
        assert planned.lora[8].values == expected
    assert planned.lora[16].values == 2 * planned.lora[8].values
    assert planned.lora[8].file_bytes > 4 * planned.lora[8].values


def _lora_values(model: Any, config: LoraConfig) -> int:
    inject_adapter_in_model(config, model)
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


def test_memory_grows_with_pictures_and_with_what_is_trained(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = plan(bare, (16, 32), batch_sizes=(1, 4)).steps
    small, many, large, _ = steps
    for method in ("frozen", "SVFit", "LoRA r=8"):
        assert small.memory[method].saved < many.memory[method].saved
        assert small.memory[method].saved < large.memory[method].saved
        assert small.memory[method].weights >= steps[0].memory["frozen"].weights
    for step in steps:
        assert step.memory["frozen"].total < step.memory["SVFit"].total
        assert step.memory["LoRA r=8"].state < step.memory["LoRA r=16"].state
        assert step.memory["SVFit"].state < step.memory["LoRA r=8"].state
    (recomputed,) = plan(bare, (16,), batch_sizes=(4,), gradient_checkpointing=True).steps
    assert recomputed.memory["SVFit"].saved < many.memory["SVFit"].saved
    monkeypatch.setattr(step_module, "_BLOCKS_HELD", 1)  # of a tiny model's few
    (by_block,) = plan(bare, (16,), batch_sizes=(4,), group_offload=True).steps
    assert 0 < by_block.memory["SVFit"].weights < many.memory["SVFit"].weights
    assert by_block.memory["SVFit"].saved == many.memory["SVFit"].saved
    (half,) = plan(bare, (16,), batch_sizes=(4,), mixed_precision="bf16").steps
    # Positions are integers in either.
    ratio = many.memory["frozen"].weights / half.memory["frozen"].weights
    assert ratio == pytest.approx(2, rel=1e-3)


def test_a_cpu_holds_the_vectors_of_small_weights_alone(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_methods", lambda _: {"SVFit": svfit})
    monkeypatch.setattr(one_sided, "_SMALL", 64 * 64 - 1)
    (step,) = plan(bare, (16,), batch_sizes=(1,)).steps
    memory = step.memory["SVFit"]
    assert 0 < memory.basis_in_turn < memory.basis
    assert memory.total_on_cpu == memory.total - memory.basis_in_turn


def test_a_prompt_is_encoded_once_for_all_photos(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_methods", lambda _: {"SVFit": svfit})
    saved = {
        trains: [step.memory["SVFit"].saved for step in own.steps]
        for trains in (False, True)
        if (own := plan(bare, batch_sizes=(1, 4), train_text_encoder=trains))
    }
    one, four = (with_ - without for with_, without in zip(saved[True], saved[False], strict=True))
    assert 0 < four < 2 * one


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_plan(name: str, tmp_path: Path) -> None:
    tiny_pipelines.build(name).save_pretrained(tmp_path / "base")
    planned = plan(without_weights(tmp_path / "base"), (64,))
    assert planned.values > 0
    (step,) = planned.steps
    assert bool(step.memory) != bool(step.unknown)
    assert not step.unknown, f"{name}: {step.unknown}"
    assert step.memory["SVFit"].saved > 0


def test_what_cannot_be_planned_is_said(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single file"):
        plan(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not the folder or hub id of a pipeline"):
        plan(tmp_path)
    with pytest.raises(ConfigError, match="budget"):
        plan(bare, budget=10**9)
    with pytest.raises(ConfigError, match="65"):
        plan(bare, rank="65")
    with pytest.raises(TargetError):
        plan(bare, target=["to_nothing"])


def test_the_command_tells_it(bare: Path) -> None:
    words = ("plan", bare, "--resolution", 16, "--train_batch_size", 1, "--train_batch_size", 2)
    facts = json.loads(done(*words, "--json"))
    assert facts["values"] == plan(bare).values
    assert [step["batch_size"] for step in facts["steps"]] == [1, 2]
    total = facts["steps"][0]["memory"]["SVFit"]["total"]
    told = done(*words)
    assert f"{facts['values']:,}" in told
    assert f"{total / 1e9:.3f}" in told
    memory = facts["steps"][0]["memory"]["SVFit"]
    assert memory["basis_in_turn"] == 0 and "On a CPU" not in told  # all of its weights are small
    assert facts["whole_bytes"] > facts["largest_bytes"] >= facts["encoders_bytes"] > 0
    assert ", group offload" in done(*words, "--group_offload")
    assert "at most" in done(*words, "--rank", "0.9")
    assert "ConfigError" in refused("plan", bare / "unet", "--resolution", 16)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", "[" * 20_000),
        ("model_index.json", "null"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline", "unet": [3, 4]}'),
        ("unet/config.json", '{"a": ' * 20_000),
        ("unet/config.json", '{"cross_attention_dim": -1}'),
        ("text_encoder/config.json", '{"hidden_size": "x"}'),
    ],
)
def test_damaged_configurations_are_refused(
    file: str, text: str, bare: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bare, tmp_path / "base"))
    (base / file).write_text(text)
    with pytest.raises(ConfigError, match="not the folder or hub id of a pipeline"):
        plan(base)
