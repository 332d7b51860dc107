"""Where ComfyUI keeps the layers of transformers that kohya's files have no names for.

Adapters of `target="all"` shift them too. Each row: a path in diffusers as a regular expression,
and the path in ComfyUI. Names: EXPORT_FORMATS and `comfy/utils.py` of ComfyUI.
"""

from __future__ import annotations

Row = tuple[str, str]


def _two_layers(path: str, layers: tuple[str, str]) -> tuple[Row, ...]:
    return tuple((rf"{path}\.linear_{i}", layer) for i, layer in enumerate(layers, 1))


def _bfl(name: str) -> tuple[str, str]:
    return f"{name}.in_layer", f"{name}.out_layer"


_FLUX: tuple[Row, ...] = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    *_two_layers(r"time_\w+\.timestep_embedder", _bfl("time_in")),
    *_two_layers(r"time_\w+\.text_embedder", _bfl("vector_in")),
    *_two_layers(r"time_\w+\.guidance_embedder", _bfl("guidance_in")),
    (r"(double|single)_stream_modulation(\w*)\.linear", r"\1_stream_modulation\2.lin"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)
_SD3: tuple[Row, ...] = (
    (r"pos_embed\.proj", "x_embedder.proj"),
    ("context_embedder", "context_embedder"),
    *_two_layers(r"time_text_embed\.timestep_embedder", ("t_embedder.mlp.0", "t_embedder.mlp.2")),
    *_two_layers(r"time_text_embed\.text_embedder", ("y_embedder.mlp.0", "y_embedder.mlp.2")),
    (
        r"transformer_blocks\.(\d+)\.norm1\.linear",
        r"joint_blocks.\1.x_block.adaLN_modulation.1",
    ),
    (
        r"transformer_blocks\.(\d+)\.norm1_context\.linear",
        r"joint_blocks.\1.context_block.adaLN_modulation.1",
    ),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)
_Z_IMAGE: tuple[Row, ...] = (
    (r"all_x_embedder\.2-1", "x_embedder"),
    (r"all_final_layer\.2-1\.(.+)", r"final_layer.\1"),
    (r"(.+\.adaLN_modulation\.0|t_embedder\.mlp\.[02]|cap_embedder\.1)", r"\1"),
)

OUTSIDE_ATTENTION: dict[str, tuple[Row, ...]] = {
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX,
    "SD3Transformer2DModel": _SD3,
    "ZImageTransformer2DModel": _Z_IMAGE,
}
"""The rows of each transformer, by its class in diffusers."""

SWAPPED = r"(.+\.)?norm(_out|1_context)\.linear"
"""Paths of these whose outputs are a shift and a scale alone: diffusers has the scale first."""
