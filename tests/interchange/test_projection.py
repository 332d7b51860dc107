"""Adapters of LoRAs and of fine-tuned models: the nearest that singular values can say."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import merged
import pytest
import tiny
import tiny_pipelines
import torch
from safetensors.torch import load_file

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.interchange import export_lora, import_difference, import_lora

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FILE_LAYER = "lora_unet_" + LAYER.replace(".", "_")


def random_lora(pipe: Any, alpha: float) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on one layer, in kohya's form."""
    generator = torch.Generator().manual_seed(0)
    d_out, d_in = pipe.unet.get_submodule(LAYER).weight.shape
    return {
        f"{FILE_LAYER}.lora_down.weight": torch.randn(2, d_in, generator=generator),
        f"{FILE_LAYER}.lora_up.weight": torch.randn(d_out, 2, generator=generator),
        f"{FILE_LAYER}.alpha": torch.tensor(alpha),
    }


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_a_lora_of_an_adapter_is_that_adapter(family: str, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build(family)
    component = "transformer" if family == "flux" else "unet"
    adapter = merged.make_adapter({component: getattr(pipe, component)})
    lora = export_lora(pipe, adapter, tmp_path / "x.safetensors", dtype=torch.float32)
    found = import_lora(pipe, lora.path)
    assert found.share == pytest.approx(1, abs=2e-3)  # float16 vectors are orthogonal up to that
    assert found.left_out == ()
    for path, delta in adapter.deltas[component].items():
        torch.testing.assert_close(
            found.adapter.deltas[component][path], delta, rtol=0, atol=2e-3 * float(delta.norm())
        )


@pytest.mark.parametrize("alpha", [2.0, 1.0])
def test_what_is_said_of_a_random_lora_is_its_projection(tiny_pipe: Any, alpha: float) -> None:
    lora = random_lora(tiny_pipe, alpha)
    found = import_lora(tiny_pipe, lora)
    up, down = (lora[f"{FILE_LAYER}.lora_{side}.weight"].double() for side in ("up", "down"))
    change = up @ down * alpha / 2
    weight = tiny_pipe.unet.get_submodule(LAYER).weight.half().double()
    u, _, vh = torch.linalg.svd(weight)
    expected = torch.diagonal(u.mT @ change @ vh.mT)
    assert list(found.adapter.deltas) == ["unet"] and list(found.adapter.deltas["unet"]) == [LAYER]
    delta = found.adapter.deltas["unet"][LAYER].double()
    # float16 vectors round by some 3e-4.
    assert (delta - expected).norm() < 2e-3 * change.norm()
    share = float(expected.norm() / change.norm())
    assert found.share == pytest.approx(share, abs=2e-3) and 0 < share < 0.5
    assert found.shares == {f"unet.{LAYER}": pytest.approx(found.share)}


def test_an_imported_adapter_loads_with_all_checks_and_draws(
    tiny_pipe: Any, tmp_path: Path
) -> None:
    whole = merged.merge_pipeline(tiny_pipe, merged.tiny_adapter())
    found = import_difference(tiny_pipe, whole)
    assert found.share == pytest.approx(1, abs=2e-3)
    write_adapter(tmp_path / "a.safetensors", found.adapter)
    tiny_pipe.load_svfit_weights(tmp_path / "a.safetensors", show_progress=False)
    # Twice float16's rounding of the vectors, there and back.
    close = merged.CLOSE | {"atol": 3e-3}
    torch.testing.assert_close(tiny.run_pipeline(tiny_pipe), tiny.run_pipeline(whole), **close)
    with pytest.raises(InterchangeError, match="nothing is changed"):
        import_difference(tiny.make_tiny_pipeline(), tiny.make_tiny_pipeline())


def test_what_is_no_weight_of_a_layer_is_left_out(tiny_pipe: Any) -> None:
    tuned = copy.copy(tiny_pipe)
    tuned.unet = copy.deepcopy(tiny_pipe.unet)
    tuned.unet.get_submodule(LAYER).weight.mul_(1.5)
    tuned.unet.conv_in.bias.add_(1)
    found = import_difference(tiny_pipe, tuned)
    assert found.left_out == ("unet.conv_in.bias",)
    assert set(found.shares) == {f"unet.{LAYER}"}
    # The weight itself is what singular values say best: δ = σ / 2.
    sigma = torch.linalg.svdvals(tiny_pipe.unet.get_submodule(LAYER).weight)
    torch.testing.assert_close(found.adapter.deltas["unet"][LAYER], sigma / 2, rtol=0, atol=2e-3)


def test_models_that_are_not_alike_are_refused(tiny_pipe: Any) -> None:
    other = copy.copy(tiny_pipe)
    other.unet = tiny.make_tiny_unet(cross_attention_dim=16)
    with pytest.raises(InterchangeError, match=r"the unet is another: .*attn2\.to_k"):
        import_difference(tiny_pipe, other)
    with pytest.raises(InterchangeError, match="have other models"):
        import_difference(tiny_pipe, tiny_pipelines.build("flux"))


def test_loras_that_do_not_fit_are_refused(tiny_pipe: Any, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    adapter = merged.make_adapter({"transformer": pipe.transformer})
    lora = export_lora(pipe, adapter, tmp_path / "x.safetensors", rank=1)
    for tensors in (load_file(lora.path), {}):
        with pytest.raises(InterchangeError, match="diffusers"):
            import_lora(tiny_pipe, tensors)
    narrow = {n: t[:, :16] if "lora_down" in n else t for n, t in random_lora(tiny_pipe, 2).items()}
    with pytest.raises(InterchangeError, match="another family or base"):
        import_lora(tiny_pipe, narrow)
    silent = {n: t * 0 if "lora_up" in n else t for n, t in random_lora(tiny_pipe, 2).items()}
    with pytest.raises(InterchangeError, match="nothing is changed"):
        import_lora(tiny_pipe, silent)
    dora = random_lora(tiny_pipe, 2) | {f"{FILE_LAYER}.dora_scale": torch.ones(64, 1)}
    with pytest.raises(InterchangeError, match="DoRA"):
        import_lora(tiny_pipe, dora)
    with pytest.raises(InterchangeError, match="no LoRA file"):
        import_lora(tiny_pipe, tmp_path / "missing.safetensors")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


def test_a_pickle_is_refused_unopened(tiny_pipe: Any, tmp_path: Path) -> None:
    path, sprung = tmp_path / "pytorch_lora_weights.bin", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(InterchangeError, match="no readable safetensors file"):
        import_lora(tiny_pipe, path)
    assert not sprung.exists()
