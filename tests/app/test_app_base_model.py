"""Views of the base model share its memory and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from app_server import write_random_adapter

from app.base_model import BaseModel
from app.errors import SettingError


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


def addresses(pipe: object) -> set[int]:
    models = (pipe.unet, pipe.vae, pipe.text_encoder)  # type: ignore[attr-defined]
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return {tensor.data_ptr() for tensor in tensors}


def test_views_share_all_memory(base: BaseModel) -> None:
    first, second = base.view(), base.view()
    assert first.unet is not second.unet
    assert addresses(first) == addresses(second)


def test_a_view_draws_as_the_pipeline_does(base: BaseModel, tiny_pipe: object) -> None:
    assert torch.equal(tiny.run_pipeline(base.view()), tiny.run_pipeline(tiny_pipe))


def test_an_adapter_on_a_view_is_seen_by_no_other(base: BaseModel, tmp_path: Path) -> None:
    before, first, second = base.view(), base.view(), base.view()
    plain = tiny.run_pipeline(before)
    first.load_svfit_weights(write_random_adapter(tmp_path / "rex.safetensors", 0))
    assert not torch.equal(tiny.run_pipeline(first), plain)
    for other in (before, second, base.view()):
        assert torch.equal(tiny.run_pipeline(other), plain)


def test_casting_and_thawing_a_view_leaves_the_others(base: BaseModel) -> None:
    first, second = base.view(), base.view()
    first.unet.to(torch.bfloat16).requires_grad_(True)
    assert {p.dtype for p in second.unet.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in base.view().unet.parameters())


def test_a_view_has_its_own_scheduler(base: BaseModel) -> None:
    first, second = base.view(), base.view()
    first.scheduler.set_timesteps(7)
    assert second.scheduler is not first.scheduler
    assert second.scheduler.num_inference_steps != 7


@pytest.mark.parametrize("source", ["no/such/folder", ""])
def test_a_base_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(SettingError):
        BaseModel(source, "cpu")


@pytest.mark.parametrize("device", ["abacus", "meta:x"])
def test_a_device_that_is_not_there_is_refused(saved_pipe: Path, device: str) -> None:
    with pytest.raises(SettingError, match=device):
        BaseModel(str(saved_pipe), device)
