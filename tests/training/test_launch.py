"""What accelerate was told by its launcher is done, or refused by name before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny import make_tiny_pipeline
from tiny_training import make_config

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training import accelerators
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.launch import check_launch, zero_settings
from svfit_diffusion.training.sharding import check_in_parts
from svfit_diffusion.training.trainer import Trainer

ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what `accelerate launch` would."""

    def launch(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "use_fsdp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "use_fsdp"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "use_megatron_lm"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "use_parallelism_config",
        ),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend inductor.* leave it out"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision fp8.* use bf16"),
        ({**ZERO3, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage 0, .*use zero_stage 3"),
        ({**ZERO3, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero_stage 1, .*use zero_stage 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero_stage 2, .*use zero_stage 3"),
        (ZERO3, "zero_stage 3, .*add --shard_base"),
    ],
)
def test_what_is_not_done_is_refused_before_any_work(
    variables: dict[str, str],
    named: str,
    tmp_path: Path,
    launched: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched(**variables)
    monkeypatch.setattr(accelerators, "PartialState", None)
    with pytest.raises(ConfigError, match=named):
        Trainer(make_config(tmp_path), pipe=make_tiny_pipeline(), show_progress=False)


def test_what_a_plain_launch_says_is_fine(tmp_path: Path, launched: Any) -> None:
    launched(
        ACCELERATE_DYNAMO_BACKEND="NO",
        ACCELERATE_MIXED_PRECISION="no",
        ACCELERATE_USE_DEEPSPEED="false",
        ACCELERATE_USE_FSDP="false",
    )
    assert zero_settings() is None
    assert make_accelerator(make_config(tmp_path)).distributed_type == DistributedType.NO


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_an_accelerator_of_such_a_kind_is_refused(kind: str, tmp_path: Path) -> None:
    class Other(Accelerator):
        distributed_type = DistributedType[kind]

    with pytest.raises(ConfigError, match=f"distributed_type {kind} .*give a plain one"):
        Trainer(make_config(tmp_path), Other(cpu=True), make_tiny_pipeline(), show_progress=False)


def test_zero3_is_known_by_flags_and_by_a_configuration(tmp_path: Path, launched: Any) -> None:
    launched(**ZERO3, ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE="cpu")
    check_launch(shard_base=True)
    assert zero_settings()["offload_param"]["device"] == "cpu"
    own = {"stage": 3, "reduce_bucket_size": "auto", "stage3_max_reuse_distance": 5}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": own}), encoding="utf-8")
    launched(ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file), ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    check_launch(shard_base=True)
    assert zero_settings()["stage3_max_reuse_distance"] == 5
    assert "reduce_bucket_size" not in zero_settings()


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path, launched: Any) -> None:
    file = tmp_path / "zero.json"
    file.write_text(text, encoding="utf-8")
    launched(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
    with pytest.raises(ConfigError, match="configuration of DeepSpeed cannot be read"):
        check_launch(shard_base=True)


def test_a_missing_deepspeed_is_said(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Accelerator):
        num_processes = 2

    accelerator = Two(cpu=True)
    launched(**ZERO3)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match="pip install deepspeed, or leave it out"):
        check_in_parts(accelerator, True, False, several=False)
