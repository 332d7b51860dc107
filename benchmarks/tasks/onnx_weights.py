"""DINOv2's weights out of an ONNX file that PyTorch has exported.

Biases and the like keep their names there. The weights of linear layers are transposed and have
numbers for names, but the products that read them are named by the layers' paths.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from benchmarks.tasks.packages import TaskError

_PREFIX = "backbone."
_HEAD = 64
"""How wide the heads of attention are in all sizes of DINOv2."""

_POSITIONS = "embeddings.position_embeddings"


def load_dinov2(file: Path) -> Dinov2Model:
    """A DINOv2 of transformers' with the weights of a file, in float32.

    Args:
        file: exported from a model that calls its DINOv2 `backbone`.

    Raises:
        TaskError: a weight is missing.
    """
    state = read_backbone(file)
    width, channels, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD,
        patch_size=patch,
        num_channels=channels,
        image_size=patch * round((state[_POSITIONS].shape[1] - 1) ** 0.5),
        use_mask_token=False,
    )
    # Which follows the layers' names through transformers' versions.
    model, found = Dinov2Model.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise TaskError(f"{file} is no export of a whole DINOv2: it lacks {', '.join(missing[:3])}")
    return model


def read_backbone(file: Path) -> dict[str, Tensor]:
    """The backbone's weights by their names in transformers."""
    graph = onnx.load(str(file)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {
        name.removeprefix(_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        found = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "MatMul" and found:
            state[path.removeprefix(_PREFIX).removesuffix("MatMul") + "weight"] = found[0].T
    state[_POSITIONS] = _positions(arrays)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def _positions(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The class token's and the patches', which the export has parted, `(1, 1 + n², width)`."""
    nameless = [
        array
        for name, array in arrays.items()
        if name.startswith("onnx::") and array.ndim == 3 and len(array) == 1
    ]
    return np.concatenate(sorted(nameless, key=lambda array: array.shape[1]), axis=1)
