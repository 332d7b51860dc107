"""`svfit info`, `merge`, `convert`, `diff`, `export` and `import`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_adapters
import torch
from command import done, refused
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from svfit_diffusion.files.adapter import Adapter, read_adapter, write_adapter


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second adapter of the same base."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    write_adapter(path, tiny_adapters.with_sketches(tiny_adapters.make_adapter(1)))
    return path


def values(adapter: Adapter) -> torch.Tensor:
    return torch.cat([d for _, own in sorted(adapter.deltas.items()) for d in own.values()])


def test_info(adapter_file: Path, saved_pipe: Path) -> None:
    facts = json.loads(done("info", adapter_file, "--json", "--layers", 3))
    adapter = read_adapter(adapter_file)
    assert facts["values"] == adapter.parameter_count
    assert facts["bytes"] == adapter_file.stat().st_size
    assert facts["sha256"] == hashlib.sha256(adapter_file.read_bytes()).hexdigest()
    largest = max(float(d.norm()) for own in adapter.deltas.values() for d in own.values())
    assert next(iter(facts["largest_shifts"].values())) == pytest.approx(largest)
    assert len(facts["largest_shifts"]) == 3
    assert "yes" in done("info", adapter_file, "--base", saved_pipe).partition("base match")[2][:20]


def test_info_of_another_base(adapter_file: Path, saved_pipe: Path, tmp_path: Path) -> None:
    adapter = read_adapter(adapter_file)
    adapter.metadata.fingerprints["unet"] = "0" * 64
    write_adapter(tmp_path / "x.safetensors", adapter)
    facts = json.loads(done("info", tmp_path / "x.safetensors", "--base", saved_pipe, "--json"))
    assert facts["base_match"].startswith("no: ")


def test_merge_adds_shifts(adapter_file: Path, other: Path, tmp_path: Path) -> None:
    done("merge", f"{adapter_file}:0.7", f"{other}:-0.3", "--output", tmp_path / "both")
    merged = read_adapter(tmp_path / "both" / adapter_file.name)
    expected = 0.7 * values(read_adapter(adapter_file)) - 0.3 * values(read_adapter(other))
    torch.testing.assert_close(values(merged), expected)
    assert "--overwrite" in refused("merge", adapter_file, "--output", tmp_path / "both")


def test_convert_shrinks_and_says_what_it_costs(adapter_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.safetensors"
    said = done("convert", adapter_file, "--output", target, "--budget", 40, "--dtype", "float16")
    small, whole = read_adapter(target), read_adapter(adapter_file)
    assert small.parameter_count == 40
    assert target.stat().st_size < adapter_file.stat().st_size
    # What is dropped is orthogonal to what is kept.
    error = float(1 - (values(small).norm() / values(whole).norm()) ** 2) ** 0.5
    assert f"error {error:.2f}" in said
    dense = {n: t for n, t in load_file(target).items() if n.endswith(".delta")}
    assert all(tensor.dtype == torch.float16 for tensor in dense.values())
    assert "InterchangeError" in refused(
        "convert", adapter_file, "--output", tmp_path / "y", "--smallest", 1e6
    )
    assert not (tmp_path / "y").exists()


def test_diff(adapter_file: Path, other: Path) -> None:
    same = json.loads(done("diff", adapter_file, adapter_file, "--json"))
    assert same["distance"] == 0
    assert same["cosine"] == pytest.approx(1, abs=1e-6)
    facts = json.loads(done("diff", adapter_file, other, "--json", "--layers", 2))
    one, two = values(read_adapter(adapter_file)), values(read_adapter(other))
    assert facts["distance"] == pytest.approx(float((one - two).norm()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(one, two, dim=0)
    assert facts["cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert len(facts["largest_differences"]) == 2


def test_there_and_back_again(adapter_file: Path, saved_pipe: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    said = done("export", adapter_file, "--output", lora, "--base", saved_pipe)
    assert "error 0 " in said
    done("import", lora, "--base", saved_pipe, "--output", tmp_path / "back")
    back = read_adapter(tmp_path / "back" / adapter_file.name)
    for component, deltas in read_adapter(adapter_file).deltas.items():
        for path, delta in deltas.items():
            # Of all singular values, those beyond the adapter's rank have not moved. Factors of the
            # LoRA are float16: 2⁻¹¹ of each, twice.
            found = back.deltas[component][path]
            torch.testing.assert_close(found[: len(delta)], delta, rtol=2e-3, atol=2e-3)
            assert found[len(delta) :].abs().max() < 2e-3


def test_strengths_are_exported(adapter_file: Path, saved_pipe: Path, tmp_path: Path) -> None:
    half, whole = tmp_path / "half.safetensors", tmp_path / "whole.safetensors"
    done("export", f"{adapter_file}:0.25", "--output", half, "--base", saved_pipe, "--kind=dense")
    done("export", adapter_file, "--output", whole, "--base", saved_pipe, "--kind=dense")
    for name, tensor in load_file(whole).items():
        torch.testing.assert_close(4 * load_file(half)[name], tensor, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whole_models_keep_the_precision_of_the_base(
    adapter_file: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny.make_tiny_pipeline().to(dtype).save_pretrained(base)
    words = ("export", f"{adapter_file}:0.5", "--base", base, "--output")
    done(*words, tmp_path / "merged", "--kind", "folder", "--ignore_base_mismatch")
    for component in ("unet", "vae", "text_encoder"):
        (file,) = (tmp_path / "merged" / component).glob("*.safetensors")
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {dtype}
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    own: Any = StableDiffusionPipeline.from_pretrained(base)
    own.load_svfit_weights(adapter_file, "a", ignore_base_mismatch=True)
    own.set_svfit_adapters("a", 0.5)
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    expected = own.unet.get_submodule(layer).weight.to(dtype).float()
    found = pipe.unet.get_submodule(layer).weight
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_what_export_refuses(adapter_file: Path, saved_pipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    words = ("export", adapter_file, "--output", target, "--base", saved_pipe)
    assert "would reach it" in refused(*words, "--rank", 1, "--error", 0.001)
    assert "a dense is exact" in refused(*words, "--kind", "dense", "--rank", 1)
    assert not target.exists()
    target.write_text("mine")
    assert "--overwrite" in refused(*words)
    assert target.read_text() == "mine"
    assert "cannot load base model" in refused(*words[:-1], tmp_path / "no", "--overwrite")
    write_adapter(tmp_path / "nameless.safetensors", _nameless(adapter_file))
    assert "--base" in refused("export", tmp_path / "nameless.safetensors", "--output", "x")


def _nameless(file: Path) -> Adapter:
    adapter = read_adapter(file)
    object.__setattr__(adapter.metadata, "base_model", "")
    return adapter


def test_import_wants_one_source(saved_pipe: Path, tmp_path: Path) -> None:
    words = ("--base", saved_pipe, "--output", tmp_path / "x")
    assert "one of them" in refused("import", *words)
    assert "one of them" in refused("import", "a", "--from-model", "b", *words)
    assert "nothing is changed" in refused("import", "--from-model", saved_pipe, *words)
    assert not (tmp_path / "x").exists()
