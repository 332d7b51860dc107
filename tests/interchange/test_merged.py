"""Folders with adapters in the weights: what is in them, and that they are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import merged
import pytest
import tiny
import tiny_adapters
import tiny_pipelines
import torch
from accelerate import cpu_offload
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from svfit_diffusion import SVFitConfig, inject
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import (
    BaseMismatchError,
    ConfigError,
    InterchangeError,
    StateError,
)
from svfit_diffusion.files.adapter import Adapter, write_adapter
from svfit_diffusion.interchange import export_pipeline, merge_adapters

SAMPLES = Path(__file__).parents[2] / "samples"
TOYBOX, BLUE_CAR = SAMPLES / "toybox", SAMPLES / "adapters" / "blue_car"
TWINS = ("sd_v", "flux_schnell", "flux_kontext", "flux2", "pixart_alpha")
"""These have the models of others, or nearly."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def adapter_of(pipe: Any, *components: str, seed: int = 0) -> Adapter:
    models = {component: models_of(pipe)[component] for component in components}
    return merged.make_adapter(models, seed, SVFitConfig(8))


def denoiser_of(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    return {c: part for c, part in pipe.components.items() if isinstance(part, nn.Module)}


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by file and name."""
    return {
        f"{file.relative_to(folder).as_posix()}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_change(before: Tensor, after: Tensor, expected: Tensor) -> None:
    """float16 vectors round a change by some 3e-4 of itself."""
    assert (after - expected).norm() < 2e-3 * (expected - before).norm()


@pytest.mark.parametrize("family", [f for f in tiny_pipelines.BUILDERS if f not in TWINS])
def test_every_family_is_read_as_the_merged_model(family: str, target: Path) -> None:
    pipe = tiny_pipelines.build(family)
    denoiser = denoiser_of(pipe)
    adapter = adapter_of(pipe, denoiser)
    written = export_pipeline(pipe, [(adapter, 0.5)], target)
    assert written.path == target and written.error == 0 and 0 < written.rank <= 8
    assert written.size == sum(f.stat().st_size for f in target.rglob("*") if f.is_file())

    absent = {component: None for component, part in pipe.components.items() if part is None}
    read = DiffusionPipeline.from_pretrained(target, **absent)
    assert type(read) is type(pipe)
    whole = merged.merged(getattr(pipe, denoiser), adapter.deltas[denoiser], 0.5)
    for component, model in modules_of(pipe).items():
        after = getattr(read, component).state_dict()
        shifted = {f"{path}.weight" for path in adapter.deltas.get(component, {})}
        assert after.keys() == model.state_dict().keys()
        for name, before in model.state_dict().items():
            if name in shifted:
                check_change(before, after[name], whole.state_dict()[name])
            else:
                assert torch.equal(after[name], before), f"{component}.{name}"


def draw_car(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2}
    generator = torch.Generator().manual_seed(0)
    prompt = "a photo of sks car on the beach"
    return pipe(prompt, generator=generator, output_type="pt", **settings).images


def test_toybox_in_its_own_float16_draws_the_adapters_picture(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(TOYBOX)
    base = draw_car(pipe)
    export_pipeline(pipe, {BLUE_CAR: 1}, tmp_path / "full")
    export_pipeline(pipe, {BLUE_CAR: 1}, tmp_path / "half", dtype=torch.float16)
    pipe.load_svfit_weights(BLUE_CAR, show_progress=False)
    expected = draw_car(pipe)
    assert (expected - base).abs().max() > 0.3
    full, half = (StableDiffusionPipeline.from_pretrained(tmp_path / x) for x in ("full", "half"))
    # In float32 the weights are those that a set adapter has, to the last bit.
    assert torch.equal(draw_car(full), expected)
    # float16 rounds every weight by up to 5e-4 of itself: in the picture less than a level of 255.
    assert 0 < (draw_car(half) - expected).abs().max() < 1 / 255
    sizes = [
        sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        for folder in (TOYBOX, tmp_path / "half")
    ]
    assert abs(sizes[0] - sizes[1]) < 0.001 * sizes[0]


def test_every_weight_keeps_its_dtype(tiny_pipe: Any, target: Path) -> None:
    tiny_pipe.unet.half()
    tiny_pipe.unet.conv_in.float()
    tiny_pipe.unet.mid_block.bfloat16()
    tiny_pipe.text_encoder.bfloat16()
    adapter = adapter_of(tiny_pipe, "unet", "text_encoder")
    export_pipeline(tiny_pipe, [(adapter, 1)], target)
    for component, name in (
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        written = load_file(target / component / f"{name}.safetensors")
        for path, tensor in getattr(tiny_pipe, component).state_dict().items():
            assert written[path].dtype == tensor.dtype
            if path.removesuffix(".weight") not in adapter.deltas.get(component, {}):
                assert torch.equal(written[path], tensor)


def test_a_dtype_is_for_all_models_and_tied_weights_are_stored_once(target: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    names = {}
    for dtype in (None, torch.bfloat16):
        export_pipeline(
            pipe, [(adapter_of(pipe, "transformer"), 1)], target, dtype=dtype, overwrite=True
        )
        names[dtype] = stored(target).keys()
    assert names[None] == names[torch.bfloat16]
    assert {tensor.dtype for tensor in stored(target).values()} == {torch.bfloat16}


def test_shards_and_variants_are_diffusers_own(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "text_encoder")
    export_pipeline(tiny_pipe, [(adapter, 1)], target.with_name("one"))
    export_pipeline(tiny_pipe, [(adapter, 1)], target, max_shard_size="500KB", variant="fp16")
    names = [file.name for file in (target / "unet").iterdir()]
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert len([name for name in names if ".fp16-0" in name]) > 1
    read = StableDiffusionPipeline.from_pretrained(target, variant="fp16")
    whole = StableDiffusionPipeline.from_pretrained(target.with_name("one"))
    for component, model in modules_of(whole).items():
        assert same(model.state_dict(), getattr(read, component).state_dict())


def test_several_adapters_add_up(tiny_pipe: Any, tmp_path: Path) -> None:
    files = {}
    for seed, name in enumerate(("rex", "tom")):
        files[tmp_path / f"{name}.safetensors"] = [0.8, -0.5][seed]
        write_adapter(list(files)[-1], adapter_of(tiny_pipe, "unet", "text_encoder", seed=seed))
    export_pipeline(tiny_pipe, files, tmp_path / "files")
    export_pipeline(tiny_pipe, [(merge_adapters(list(files.items())), 1.0)], tmp_path / "merged")
    one, other = stored(tmp_path / "files"), stored(tmp_path / "merged")
    for name, tensor in one.items():
        # The shifts are summed in float32 by either; the file's sketches differ, not its values.
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-6)


def test_strengths_are_those_of_each_component(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "text_encoder")
    export_pipeline(tiny_pipe, [(adapter, {"unet": 0.5, "text_encoder": 0})], target)
    read = StableDiffusionPipeline.from_pretrained(target)
    assert same(read.text_encoder.state_dict(), tiny_pipe.text_encoder.state_dict())
    whole = merged.merged(tiny_pipe.unet, adapter.deltas["unet"], 0.5).state_dict()
    for path in adapter.deltas["unet"]:
        name = f"{path}.weight"
        check_change(tiny_pipe.unet.state_dict()[name], read.unet.state_dict()[name], whole[name])


def test_an_adapter_of_a_text_encoder_alone_leaves_the_rest(tiny_pipe: Any, target: Path) -> None:
    export_pipeline(tiny_pipe, [(adapter_of(tiny_pipe, "text_encoder"), 1)], target)
    read = StableDiffusionPipeline.from_pretrained(target)
    assert same(read.unet.state_dict(), tiny_pipe.unet.state_dict())
    assert not same(read.text_encoder.state_dict(), tiny_pipe.text_encoder.state_dict())


def test_a_pipeline_that_draws_with_adapters_is_as_before(tiny_pipe: Any, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    export_pipeline(tiny_pipe, [(adapter, 1)], tmp_path / "bare")
    merged.load(tiny_pipe)
    snapshot = tiny_adapters.PipelineSnapshot(tiny_pipe)
    config = dict(tiny_pipe.config), tiny_pipe.text_encoder.config.to_dict()
    export_pipeline(tiny_pipe, [(adapter, 1)], tmp_path / "set")
    snapshot.check()
    assert config == (dict(tiny_pipe.config), tiny_pipe.text_encoder.config.to_dict())
    # Its own adapters, which shift other layers too, do not count.
    assert same(stored(tmp_path / "bare"), stored(tmp_path / "set"))
    tiny_pipe.unload_svfit_weights()
    assert torch.equal(tiny.run_pipeline(tiny_pipe), merged.tiny_pictures().base)


def test_how_a_pipeline_is_prepared_makes_no_difference(tiny_pipe: Any, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "text_encoder")
    export_pipeline(tiny_pipe, [(adapter, 1)], tmp_path / "plain")
    tiny_pipe.unet.to(memory_format=torch.channels_last)
    tiny_pipe.text_encoder.requires_grad_(True)
    inject(tiny_pipe.unet, SVFitConfig(4), "in training", show_progress=False)
    tiny_pipe.unet = torch.compile(tiny_pipe.unet)
    with torch.inference_mode():
        export_pipeline(tiny_pipe, [(adapter, 1)], tmp_path / "prepared")
    assert same(stored(tmp_path / "plain"), stored(tmp_path / "prepared"))


def test_several_controlnets_are_taken_along(tiny_pipe: Any, target: Path) -> None:
    nets = [
        ControlNetModel.from_unet(tiny_pipe.unet, conditioning_embedding_out_channels=(16, 32))
        for _ in range(2)
    ]
    pipe = StableDiffusionControlNetPipeline(
        **tiny_pipe.components, controlnet=nets, requires_safety_checker=False
    )
    export_pipeline(pipe, [(adapter_of(pipe, "unet"), 1)], target)
    read = StableDiffusionControlNetPipeline.from_pretrained(target)
    assert same(read.controlnet.state_dict(), pipe.controlnet.state_dict())


def lora(pipe: Any) -> None:
    weights = {
        f"unet.{path}.lora_{side}.weight": torch.randn(shape)
        for path in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q",)
        for side, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    pipe.load_lora_weights(weights, adapter_name="lora")


def adapt_to_images(pipe: Any) -> None:
    weights = tiny_adapters.ip_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lora, InterchangeError, "unet of this pipeline .*unload LoRAs"),
        (adapt_to_images, InterchangeError, "unet of this pipeline .*IP-Adapters"),
        (lambda p: p.fuse_qkv_projections(), InterchangeError, "to_(qkv|kv).*fuse_qkv_projections"),
        (lambda p: cpu_offload(p.vae), InterchangeError, "vae of this pipeline is not in memory"),
        (
            lambda p: p.vae.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
            InterchangeError,
            "vae of this pipeline is stored in float8",
        ),
        (lambda p: setattr(p.vae, "hf_quantizer", object()), InterchangeError, "quantised"),
        (lambda p: merged.load(p).fuse_svfit(), StateError, "unfuse_svfit"),
    ],
)
def test_weights_that_no_folder_can_hold_are_refused(
    change: Callable[[Any], Any], error: type[Exception], message: str, tiny_pipe: Any, target: Path
) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    change(tiny_pipe)
    with pytest.raises(error, match=message):
        export_pipeline(tiny_pipe, [(adapter, 1)], target)
    assert not list(target.parent.iterdir())


def test_a_lora_that_is_fused_and_unloaded_is_part_of_the_base(
    tiny_pipe: Any, target: Path
) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    fused = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    before = tiny_pipe.unet.get_submodule(fused).weight.clone()
    lora(tiny_pipe)
    tiny_pipe.fuse_lora()
    tiny_pipe.unload_lora_weights()
    with pytest.raises(BaseMismatchError):
        export_pipeline(tiny_pipe, [(adapter, 1)], target)
    export_pipeline(tiny_pipe, [(adapter, 1)], target, ignore_base_mismatch=True)
    written = load_file(target / "unet" / "diffusion_pytorch_model.safetensors")
    own = tiny_pipe.unet.get_submodule(fused).weight
    assert not torch.equal(own, before)
    whole = merged.merged(tiny_pipe.unet, {fused: adapter.deltas["unet"][fused]})
    check_change(own, written[f"{fused}.weight"], whole.state_dict()[f"{fused}.weight"])


def test_nothing_to_merge_is_refused(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    zeros = {c: {p: torch.zeros_like(d) for p, d in o.items()} for c, o in adapter.deltas.items()}
    for adapters, message in (
        ([], "no adapters to merge"),
        ({}, "no adapters to merge"),
        ([(adapter, 0)], "every strength is 0"),
        ([(adapter, {"unet": 0.0})], "every strength is 0"),
        ([(Adapter(zeros, adapter.metadata), 1)], "shifts nothing"),
        ([(adapter, 1), (adapter, -1)], "shifts nothing"),
        (adapter, "a single Adapter"),
        ("rex", "a single str"),
    ):
        with pytest.raises(InterchangeError, match=message):
            export_pipeline(tiny_pipe, adapters, target)
    with pytest.raises(ConfigError, match="finite"):
        export_pipeline(tiny_pipe, [(adapter, float("nan"))], target)
    with pytest.raises(InterchangeError, match="dtype must be"):
        export_pipeline(tiny_pipe, [(adapter, 1)], target, dtype=torch.float64)
    assert not list(target.parent.iterdir())


def test_an_adapter_of_another_base_is_refused(target: Path) -> None:
    pipe = tiny.make_tiny_pipeline(seed=1)
    fits = adapter_of(pipe, "unet")
    snapshot = tiny_adapters.PipelineSnapshot(pipe)
    with pytest.raises(BaseMismatchError):
        export_pipeline(pipe, [(fits, 1), (merged.tiny_adapter(), 1)], target)
    snapshot.check()
    assert not list(target.parent.iterdir())


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    def fail(tensors: Any, path: str, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", fail)
    return OSError


def interrupt(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", stop)
    return KeyboardInterrupt


def misread(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    def wrongly(*args: Any, **kwargs: Any) -> Any:
        model = read(*args, **kwargs)
        model.conv_in.bias[0] += 1e-6  # one bit or so
        return model

    read = UNet2DConditionModel.from_pretrained
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", wrongly)
    return InterchangeError


def forget_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    monkeypatch.setattr(DDIMScheduler, "save_pretrained", lambda self, folder: None)
    return InterchangeError


@pytest.mark.parametrize(
    ("fail", "is_there"),
    [
        (fill_the_disk, False),
        (fill_the_disk, True),
        (interrupt, True),
        (misread, False),
        (forget_the_scheduler, True),
    ],
)
def test_an_error_on_the_way_leaves_all_as_it_was(
    fail: Callable[[pytest.MonkeyPatch], type[BaseException]],
    is_there: bool,
    tiny_pipe: Any,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "text_encoder")
    merged.load(tiny_pipe)
    if is_there:
        export_pipeline(tiny_pipe, [(adapter, 0.5)], target)
    before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    snapshot = tiny_adapters.PipelineSnapshot(tiny_pipe)
    with monkeypatch.context() as patch, pytest.raises(fail(patch)):
        export_pipeline(tiny_pipe, [(adapter, 1)], target, overwrite=True)
    snapshot.check()
    assert list(target.parent.iterdir()) == [target] * is_there
    assert before == {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}


def test_a_folder_that_is_there_is_replaced_only_on_demand(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    target.mkdir()
    export_pipeline(tiny_pipe, [(adapter, 0.5)], target)  # an empty one is as good as none
    before = stored(target)
    with pytest.raises(InterchangeError, match="exists"):
        export_pipeline(tiny_pipe, [(adapter, 1)], target)
    assert same(before, stored(target))
    (target / "notes.txt").write_text("of the old one")
    export_pipeline(tiny_pipe, [(adapter, 1)], target, overwrite=True)
    assert not same(before, stored(target)) and not (target / "notes.txt").exists()
    assert list(target.parent.iterdir()) == [target]


def test_what_is_no_merged_pipeline_is_not_replaced(tiny_pipe: Any, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "rex.jpg").write_text("a dog")
    (tmp_path / "file").write_text("a file")
    for name in ("photos", "file"):
        with pytest.raises(InterchangeError, match="holds no pipeline"):
            export_pipeline(tiny_pipe, [(adapter, 1)], tmp_path / name, overwrite=True)
    base = StableDiffusionPipeline.from_pretrained(tiny.save_tiny_pipeline(tmp_path / "base"))
    with pytest.raises(InterchangeError, match="the base model itself"):
        export_pipeline(base, [(adapter, 1)], tmp_path / "base", overwrite=True)
    with pytest.raises(InterchangeError, match="no folder"):
        export_pipeline(base, [(adapter, 1)], tmp_path / "no" / "out")


def test_the_files_are_those_of_a_pipeline_that_was_loaded_and_saved(
    saved_pipe: Path, target: Path
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved_pipe)
    pipe.save_pretrained(target.with_name("plain"))
    export_pipeline(pipe, [(adapter_of(pipe, "unet"), 1)], target)
    for file in target.with_name("plain").rglob("*"):
        twin = target / file.relative_to(target.with_name("plain"))
        assert twin.is_file() == file.is_file()
        assert twin.stat().st_mode == file.stat().st_mode
        if file.is_file() and file.parent.name != "unet":
            assert twin.read_bytes() == file.read_bytes()
    with safe_open(target / "unet" / "diffusion_pytorch_model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
