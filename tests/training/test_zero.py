"""Under DeepSpeed's ZeRO-3 each of two processes holds a part, and they train what one does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# No weight is so small that it is whole everywhere, nor needed again so soon that it is kept.
ZERO = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
}
PROGRAM = """
import os, sys, torch
from pathlib import Path
from tiny import make_tiny_pipeline
from tiny_training import advance, make_config, shifts
from svfit_diffusion.training.trainer import Trainer

folder, process = Path(sys.argv[1]), os.environ["RANK"]
CASES = {
    "all": {"target": ["all"], "gradient_checkpointing": True, "train_text_encoder": True},
    "attention": {},
}
for name, settings in CASES.items():
    found = {}
    for sharded in (False, True):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = str(sharded).lower()
        own = folder / f"{name}-{sharded}-{process}"
        own.mkdir()
        config = make_config(own, max_train_steps=3, shard_base=sharded, **settings)
        trainer = Trainer(config, pipe=make_tiny_pipeline(), show_progress=False)
        advance(trainer, 3)
        found[sharded] = shifts(trainer)
        trainer.save(own / "out")
        weights = list(trainer.pipe.unet.parameters())
        found[f"held {sharded}"] = sum(weight.numel() for weight in weights)
        if sharded:  # a weight is empty unless it is gathered; the part lies beside it
            found["held True"] += sum(weight.ds_tensor.numel() for weight in weights)
    torch.save(found, folder / f"{name}-{process}.pt")
trainer.accelerator.end_training()
"""


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_in_parts_it_trains_what_a_whole_one_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": ZERO}), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed"),
            *("--deepspeed_config_file", str(tmp_path / "zero.json"), "--main_process_port=0"),
            *("--num_processes=2", "--num_machines=1", "--mixed_precision=no"),
            *("--dynamo_backend=no", str(tmp_path / "program.py"), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "DS_ACCELERATOR": "cpu",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("all", "attention"):
        one, two = (torch.load(tmp_path / f"{name}-{process}.pt") for process in range(2))
        assert torch.equal(one[True], two[True])
        # Sums in another order, magnified by Adam's division where gradients are tiny.
        assert (one[True] - one[False]).norm() <= 1e-3 * one[False].norm() > 0
        # A dimension that two do not divide is padded.
        assert one["held True"] + two["held True"] >= one["held False"]
        # Layers that are given no gradient to pass on stay whole until the next pass.
        assert max(one["held True"], two["held True"]) <= 0.55 * one["held False"]
