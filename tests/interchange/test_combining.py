"""Merged and reduced adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import merged
import pytest
import tiny
import tiny_adapters
import torch

from svfit_diffusion.errors import BaseMismatchError, InterchangeError
from svfit_diffusion.files.adapter import Adapter, read_adapter, state_dict, write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.interchange import merge_adapters, reduce_adapter, with_base


def two_adapters() -> list[Adapter]:
    return [
        tiny_adapters.with_sketches(tiny_adapters.make_adapter(seed, rank=rank))
        for seed, rank in ((0, 16), (1, 8))
    ]


def small_adapter(values: list[list[float]]) -> Adapter:
    deltas = {f"layer_{i}": torch.tensor(own) for i, own in enumerate(values)}
    return Adapter({"unet": deltas}, AdapterMetadata())


def test_a_merged_adapter_draws_as_its_parts_together(tiny_pipe: Any, tmp_path: Path) -> None:
    one, other = two_adapters()
    path = tmp_path / "merged.safetensors"
    write_adapter(path, merge_adapters([(one, 0.8), (other, -0.5)]))
    tiny_adapters.load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], [0.8, -0.5])
    together = tiny.run_pipeline(tiny_pipe)
    # Loading checks fingerprints and sketches.
    tiny_adapters.load(tiny_pipe, path, "merged")
    assert read_adapter(path).metadata.fingerprints == one.metadata.fingerprints
    assert set(read_adapter(path).sketches) == {"unet", "text_encoder"}
    torch.testing.assert_close(tiny.run_pipeline(tiny_pipe), together, rtol=0, atol=1e-5)


def test_both_spellings_of_a_text_encoders_layer_are_one(tmp_path: Path) -> None:
    (one, _) = two_adapters()
    write_adapter(tmp_path / "a.safetensors", one)  # with text_model.
    difference = merge_adapters([(tmp_path / "a.safetensors", 1), (one, -1)])
    assert difference.deltas["text_encoder"].keys() == one.deltas["text_encoder"].keys()
    assert not any(d.any() for own in difference.deltas.values() for d in own.values())


def test_adapters_of_different_bases_are_refused() -> None:
    one, other = two_adapters()
    strange = replace(
        other, metadata=replace(other.metadata, fingerprints={"unet": "0" * 64}, base_model="x")
    )
    with pytest.raises(BaseMismatchError, match=r"different base models \(tiny, x\)"):
        merge_adapters([(one, 1), (strange, 1)])
    with pytest.raises(InterchangeError, match="no adapters"):
        merge_adapters([])


def test_with_base_adds_what_a_sum_of_different_layers_does_not_know(tiny_pipe: Any) -> None:
    one, other = two_adapters()
    gone = next(iter(other.deltas["unet"]))
    less = replace(
        other,
        deltas={"unet": {p: d for p, d in other.deltas["unet"].items() if p != gone}},
        sketches={},
    )
    whole = merge_adapters([(one, 1), (less, 1)])
    assert set(whole.metadata.fingerprints) == {"text_encoder"} == set(whole.sketches)
    known = with_base(tiny_pipe, whole)
    torch.testing.assert_close(known.deltas["unet"][gone], one.deltas["unet"][gone])
    assert known.sketches.keys() == {"unet", "text_encoder"}
    assert not tiny_pipe.get_list_svfit_adapters()
    complete = with_base(tiny_pipe, replace(whole, metadata=AdapterMetadata()))
    assert complete.metadata.fingerprints == one.metadata.fingerprints


def test_prompts_of_merged_adapters_stand_beside_each_other() -> None:
    prompts = ("a photo of sks dog", "a photo of zwx cat", "a photo of sks dog")
    parts = [Adapter({}, AdapterMetadata(instance_prompt=prompt)) for prompt in prompts]
    found = merge_adapters([(part, 1) for part in parts])
    assert found.metadata.instance_prompt == "a photo of sks dog, a photo of zwx cat"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 1}, [[0, -3, 0], [2]]),
        ({"budget": 2}, [[0, -3, 0], [2]]),
        ({"budget": 3}, [[2, -3, 0], [2]]),
        ({"budget": 99}, [[2, -3, 0.5], [2]]),
        ({"smallest": 2.5}, [[0, -3, 0], [0]]),
        ({"rank": 2, "budget": 1}, [[0, -3, 0], [0]]),
    ],
)
def test_the_largest_values_stay(settings: Any, expected: list[list[float]]) -> None:
    found = reduce_adapter(small_adapter([[2, -3, 0.5], [2]]), **settings)
    assert [d.tolist() for d in found.adapter.deltas["unet"].values()] in (
        expected,
        # Of values that are equal either may stay.
        [[2, -3, 0], [0]] if settings == {"budget": 2} else expected,
    )
    dropped = 4 + 9 + 0.25 + 4 - sum(x * x for own in expected for x in own)
    assert found.error == pytest.approx((dropped / 17.25) ** 0.5)


def test_a_reduced_adapter_keeps_its_fingerprint_and_loads(tiny_pipe: Any) -> None:
    found = reduce_adapter(merged.tiny_adapter(), budget=40).adapter
    assert found.parameter_count == 40 and not found.sketches
    assert found.metadata.fingerprints == merged.tiny_adapter().metadata.fingerprints
    assert sum(t.nbytes for t in state_dict(found).values()) < 4000
    known = with_base(tiny_pipe, found)
    assert known.sketches.keys() == {"unet", "text_encoder"}


@pytest.mark.parametrize("settings", [{"budget": 0}, {"smallest": -1}, {"rank": 0}])
def test_numbers_out_of_range_are_refused(settings: Any) -> None:
    with pytest.raises(InterchangeError):
        reduce_adapter(small_adapter([[1]]), **settings)


def test_an_adapter_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(InterchangeError, match="no value of the adapter reaches 7"):
        reduce_adapter(small_adapter([[1, 2]]), smallest=7)
