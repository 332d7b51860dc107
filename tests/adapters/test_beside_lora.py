"""A LoRA beside an adapter, in every order: both act, each alone after the other has gone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from merged import CHANGES, CLOSE, load, merge_pipeline, tiny_adapter
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import make_tiny_pipeline, run_pipeline
from torch import Tensor

from svfit_diffusion import BaseMismatchError, StateError
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.files.adapter import write_adapter


@functools.cache
def lora_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for path, layer in attention_layers(make_tiny_pipeline().unet).items():
        d_out, d_in = layer.weight.shape
        weights[f"unet.{path}.lora_A.weight"] = torch.randn(4, d_in, generator=generator) / 8
        weights[f"unet.{path}.lora_B.weight"] = torch.randn(d_out, 4, generator=generator) / 4
    return weights


def load_lora(pipe: Any) -> Any:
    pipe.load_lora_weights(dict(lora_weights()), adapter_name="lora")
    return pipe


@functools.cache
def picture(adapter: bool, lora: bool) -> Tensor:
    """Without a trace of the package."""
    pipe = make_tiny_pipeline()
    if adapter:
        pipe = merge_pipeline(pipe, tiny_adapter())
    return run_pipeline(load_lora(pipe) if lora else pipe)


def test_the_four_pictures_differ() -> None:
    pictures = [picture(*state) for state in itertools.product([False, True], repeat=2)]
    for one, other in itertools.combinations(pictures, 2):
        assert (one - other).abs().max() > 0.1


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    write_adapter(path, tiny_adapter())
    return str(path)


LORA_STEPS: dict[str, Callable[[Any], Any]] = {
    "load lora": load_lora,
    "fuse lora": lambda pipe: pipe.fuse_lora(),
    "unfuse lora": lambda pipe: pipe.unfuse_lora(),
    "unload lora": lambda pipe: pipe.unload_lora_weights(),
}
ORDERS = [
    # Before which of the LoRA's steps the adapter comes, and before which it goes.
    pytest.param(come, go, id=f"{come}-{go}")
    for come, go in itertools.combinations_with_replacement(range(5), 2)
]


@pytest.mark.parametrize(("come", "go"), ORDERS)
def test_every_order(come: int, go: int, adapter_file: str) -> None:
    pipe = make_tiny_pipeline()
    has_adapter = False

    def attempt(step: Callable[[], Any], number: int, expected: type[Exception]) -> bool:
        # After the second of its steps the LoRA is in the weights themselves.
        if number != 2:
            step()
            return True
        with pytest.raises(expected):
            step()
        return False

    def check(number: int) -> None:
        has_lora = 0 < number < 4
        torch.testing.assert_close(run_pipeline(pipe), picture(has_adapter, has_lora), **CLOSE)

    for number, step in enumerate([*LORA_STEPS.values(), lambda _: None]):
        if number == come:
            has_adapter = attempt(
                # Unfusing leaves a rounding, which to the last bit is another base.
                functools.partial(
                    pipe.load_svfit_weights,
                    adapter_file,
                    "a",
                    ignore_base_mismatch=number > 2,
                    show_progress=False,
                ),
                number,
                BaseMismatchError,
            )
            check(number)
        if number == go and has_adapter:
            has_adapter = not attempt(pipe.unload_svfit_weights, number, StateError)
            check(number)
        step(pipe)
        check(min(number + 1, 4))
    if has_adapter:
        pipe.unload_svfit_weights()
    # Fusing and unfusing leaves a rounding where no adapter was on top.
    torch.testing.assert_close(run_pipeline(pipe), picture(False, False), rtol=0, atol=1e-5)
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.unet.modules())


def test_under_a_fused_lora_nothing_changes() -> None:
    pipe = load_lora(load(make_tiny_pipeline()))
    pipe.fuse_lora()
    fused = run_pipeline(pipe)
    torch.testing.assert_close(fused, picture(True, True), **CLOSE)
    for change in CHANGES:
        with pytest.raises(StateError, match=r"attn1\.to_q.*unfuse_lora"):
            change(pipe)
        assert pipe.get_list_svfit_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
    assert torch.equal(run_pipeline(pipe), fused)
    pipe.unfuse_lora()
    pipe.disable_svfit()
    torch.testing.assert_close(run_pipeline(pipe), picture(False, True), rtol=0, atol=1e-5)


def test_a_lora_left_in_the_weights_for_good() -> None:
    pipe = load_lora(load(make_tiny_pipeline()))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with pytest.raises(StateError, match="keep_changed_weights"):
        pipe.unload_svfit_weights()
    pipe.unload_svfit_weights(keep_changed_weights=True)
    assert pipe.get_list_svfit_adapters() == {}
    # The text encoder, which no LoRA was fused into, is the base's again.
    whole = merge_pipeline(make_tiny_pipeline(), tiny_adapter())
    whole.text_encoder = make_tiny_pipeline().text_encoder
    torch.testing.assert_close(run_pipeline(pipe), run_pipeline(load_lora(whole)), **CLOSE)


def test_a_lora_fused_first_is_part_of_the_base_if_told(adapter_file: str) -> None:
    pipe = load_lora(make_tiny_pipeline())
    pipe.fuse_lora()
    fused = run_pipeline(pipe)
    pipe.load_svfit_weights(adapter_file, "a", ignore_base_mismatch=True, show_progress=False)
    pipe.unfuse_lora()
    with pytest.raises(StateError, match="changed by something else"):
        pipe.disable_svfit()
    pipe.fuse_lora()  # what was there again, up to rounding
    pipe.unload_svfit_weights()
    torch.testing.assert_close(run_pipeline(pipe), fused, rtol=0, atol=1e-5)


def test_loras_switch_under_an_adapter() -> None:
    pipe = load_lora(load(make_tiny_pipeline()))
    pipe.disable_lora()
    torch.testing.assert_close(run_pipeline(pipe), picture(True, False), **CLOSE)
    pipe.enable_lora()
    pipe.set_adapters("lora", 0.0)
    torch.testing.assert_close(run_pipeline(pipe), picture(True, False), **CLOSE)
    pipe.set_adapters("lora", 1.0)
    torch.testing.assert_close(run_pipeline(pipe), picture(True, True), **CLOSE)
    pipe.delete_adapters("lora")
    torch.testing.assert_close(run_pipeline(pipe), picture(True, False), **CLOSE)


def test_a_live_adapter_on_layers_with_a_lora() -> None:
    pipe = load(load_lora(make_tiny_pipeline()))
    Injection.of(pipe.unet).set_trainable("a", True)
    torch.testing.assert_close(run_pipeline(pipe), picture(True, True), **CLOSE)
    pipe.unload_lora_weights()
    torch.testing.assert_close(run_pipeline(pipe), picture(True, False), **CLOSE)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), picture(False, False))


def test_a_lora_that_comes_onto_a_live_adapter_is_refused_when_it_runs() -> None:
    pipe = load(make_tiny_pipeline())
    injection = Injection.of(pipe.unet)
    injection.set_trainable("a", True)
    load_lora(pipe)
    with pytest.raises(StateError, match="load a LoRA before that"):
        run_pipeline(pipe)
    injection.set_trainable("a", False)
    torch.testing.assert_close(run_pipeline(pipe), picture(True, True), **CLOSE)
    injection.set_trainable("a", True)  # with the LoRA there
    torch.testing.assert_close(run_pipeline(pipe), picture(True, True), **CLOSE)


def test_a_mixed_batch_with_a_lora() -> None:
    pipe = load_lora(load(make_tiny_pipeline()))
    prompts = ["a photo of a dog"] * 2
    seeds = [torch.Generator().manual_seed(3) for _ in prompts]
    with pipe.svfit_adapters_per_prompt(["a", None]):
        both, lora_only = run_pipeline(pipe, prompt=prompts, generator=seeds)
    torch.testing.assert_close(both, picture(True, True)[0], **CLOSE)
    torch.testing.assert_close(lora_only, picture(False, True)[0], rtol=0, atol=1e-5)
