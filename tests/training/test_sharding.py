"""A denoiser in parts, over two processes or in the host's memory, trains what a whole one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import make_tiny_pipeline
from tiny_training import make_config
from torch import nn

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.files.hub import PICTURE_NAME
from svfit_diffusion.training import sharding
from svfit_diffusion.training.output import PICTURES
from svfit_diffusion.training.sharding import check_in_parts, outermost_blocks
from svfit_diffusion.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
OVER_TWO = """
import sys, torch
from pathlib import Path
from accelerate import Accelerator
from tiny import make_tiny_pipeline
from tiny_training import advance, make_config, shifts
from svfit_diffusion.training.run import train
from svfit_diffusion.training.trainer import Trainer

folder = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
PRIOR = {"with_base_prior": True, "class_prompt": "a dog", "num_class_images": 2}
CASES = {
    "all": {"target": ["all"], "gradient_checkpointing": True, "train_text_encoder": True},
    "prior": {**PRIOR, "gradient_accumulation_steps": 2},
}
for name, settings in CASES.items():
    found = {}
    for sharded in (False, True):
        own = folder / f"{name}-{sharded}-{accelerator.process_index}"
        own.mkdir()
        config = make_config(own, max_train_steps=3, shard_base=sharded, **settings)
        trainer = Trainer(config, accelerator, make_tiny_pipeline(), show_progress=False)
        advance(trainer, 3)
        found[sharded] = shifts(trainer)
        trainer.save(own / "out")
        held = [p.to_local() if sharded else p for p in trainer.pipe.unet.parameters()]
        found[f"held {sharded}"] = sum(part.numel() for part in held)
    torch.save(found, folder / f"{name}-{accelerator.process_index}.pt")
base = {"pretrained_model_name_or_path": sys.argv[2]}
train(make_config(folder, max_train_steps=2, shard_base=True, **base))
"""


BY_BLOCK = """
import sys, torch
from pathlib import Path
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from tiny import make_tiny_pipeline
from tiny_training import advance, make_config, shifts
from svfit_diffusion.errors import StateError
from svfit_diffusion.training.run import train
from svfit_diffusion.training.sharding import outermost_blocks
from svfit_diffusion.training.trainer import Trainer

folder, found, whole = Path(sys.argv[1]), {}, []
CASES = {
    "all": {"target": ["all"], "train_text_encoder": True},
    "again": {"gradient_checkpointing": True, "with_base_prior": True, "class_prompt": "a dog"},
}
for name, settings in CASES.items():
    for by_block in (False, True):
        own = folder / f"{name}-{by_block}"
        own.mkdir()
        config = make_config(own, max_train_steps=2, group_offload=by_block, **settings)
        pipe = make_tiny_pipeline()
        trainer = Trainer(config, Accelerator(cpu=True), pipe, show_progress=False)
        if by_block:
            blocks = outermost_blocks(pipe.unet)

            def count(*_):
                held = [any(type(p) is nn.Parameter for p in b.parameters()) for b in blocks]
                whole.append(sum(held))

            for module in pipe.unet.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(count)
                    module.register_full_backward_pre_hook(count)
        advance(trainer, 2)
        found[name, by_block] = shifts(trainer)
        trainer.save(own / "out")
    try:
        trainer.generate(["a dog"], 1)
    except StateError as error:
        assert "in parts" in str(error)
    else:
        raise AssertionError("drew")
    assert all(type(p) is DTensor and p.device.type == "cpu" for p in pipe.unet.parameters())
torch.save((found, max(whole), len(whole)), folder / "found.pt")
base = {"pretrained_model_name_or_path": sys.argv[2]}
train(make_config(folder, max_train_steps=2, group_offload=True, **base))
"""


def run(program: str, folder: Path, *words: str, processes: int = 1) -> str:
    """What a program prints whose first argument is a folder; FSDP2 would stay in this process."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    several = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else ()), str(file), str(folder), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_by_block_it_trains_what_a_whole_one_does(tmp_path: Path, saved_pipe: Path) -> None:
    check_no_pictures(run(BY_BLOCK, tmp_path, str(saved_pipe)), tmp_path)
    found, most, looks = torch.load(tmp_path / "found.pt")
    assert 1 <= most <= 2 < looks  # the block that runs, and the one that comes next
    for name in ("all", "again"):
        by_block, plain = found[name, True], found[name, False]
        # Sums in another order, magnified by Adam's division where gradients are tiny.
        assert (by_block - plain).norm() <= 1e-3 * plain.norm() > 0


def check_no_pictures(said: str, folder: Path) -> None:
    assert "svfit generate draws them" in said
    kept = {path.name for path in (folder / "out").iterdir()}
    assert WEIGHTS_NAME in kept and not kept & {PICTURE_NAME, PICTURES}


def test_in_parts_it_trains_what_a_whole_one_does(tmp_path: Path, saved_pipe: Path) -> None:
    check_no_pictures(run(OVER_TWO, tmp_path, str(saved_pipe), processes=2), tmp_path)
    for name in ("all", "prior"):
        one, two = (torch.load(tmp_path / f"{name}-{process}.pt") for process in range(2))
        assert torch.equal(one[True], two[True])
        # Sums in another order, magnified by Adam's division where gradients are tiny.
        assert (one[True] - one[False]).norm() <= 1e-3 * one[False].norm() > 0
        # A dimension that two do not divide is padded.
        assert one["held True"] + two["held True"] >= one["held False"]
        assert max(one["held True"], two["held True"]) <= 0.52 * one["held False"]


def test_what_it_does_not_go_with_is_refused(tmp_path: Path) -> None:
    others: list[dict[str, Any]] = [
        {"offload": True},
        {"quantization": "int8"},
        {"validation_prompt": ["a dog"]},
    ]
    for setting in ("shard_base", "group_offload"):
        for other in others:
            with pytest.raises(ConfigError, match=f"{setting}.* {next(iter(other))}"):
                make_config(tmp_path, **{setting: True}, **other)
    config = make_config(tmp_path, shard_base=True)
    with pytest.raises(ConfigError, match="several processes, and there is one; start more"):
        Trainer(config, pipe=make_tiny_pipeline(), show_progress=False)


def test_several_subjects_are_refused() -> None:
    class Two(Accelerator):
        num_processes = 2

    for spread in (True, False):
        with pytest.raises(ConfigError, match="one subject at a time"):
            check_in_parts(Two(cpu=True), spread, not spread, several=True)


def test_deepspeed_has_an_offloading_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "zero_settings", lambda: {"stage": 3})
    with pytest.raises(ConfigError, match="offload_param"):
        check_in_parts(Accelerator(cpu=True), False, True, several=False)


def test_blocks_are_those_of_the_outermost_lists() -> None:
    unet = make_tiny_pipeline().unet
    assert outermost_blocks(unet) == [*unet.down_blocks, *unet.up_blocks, *_middle(unet.mid_block)]


def _middle(block: nn.Module) -> list[nn.Module]:
    return [part for child in block.children() for part in child]
