"""The benchmark of tasks: its methods, training, figures and picture."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import BertConfig, BertModel

from benchmarks.row_store import RowStore
from benchmarks.tasks import __main__ as command
from benchmarks.tasks.classifier import Classifier, mean_of_tokens
from benchmarks.tasks.examples import Examples, parted
from benchmarks.tasks.runs import Setup, TaskCell, run
from benchmarks.tasks.task_loading import Sizes, Task
from benchmarks.tasks.task_methods import METHODS, REFERENCE, TaskMethod, find_method
from benchmarks.tasks.task_rows import choose_rates, summary_rows, sweep
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


def test_a_budget_leaves_the_other_values_as_they_were(task: Task) -> None:
    classifier = task.classifier()
    classifier.encoder = find_method("SVFit").adapt(classifier.encoder)
    recipe, own = Recipe(steps=20, batch=4), trained_parameters(classifier.encoder)
    list(train(classifier, task.pool, recipe, 0.03, 0, "cpu", budget=11))
    assert sum(int(parameter.count_nonzero()) for parameter in own) == 11


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


def fill(store: RowStore, method: TaskMethod, accuracies: dict[float, list[float]]) -> None:
    """Accuracies by rate and seed; validation falls behind the test by what the seed is."""
    for rate, tests in accuracies.items():
        for seed, test in enumerate(tests):
            row = {"validation": test, "test": test, "values": 10, "loss": 0.1}
            row |= {"train_seconds": 1.0, "seconds": 2.0}
            store.write(TaskCell(method.name, rate, seed), row)


@pytest.fixture
def filled(tmp_path: Path) -> RowStore:
    store = RowStore(tmp_path / "runs.jsonl")
    for method in METHODS:
        lowest, low, middle, *high = method.learning_rates
        better = 0.05 if method.name == "SVFit" else 0.0
        best = [0.7 + better, 0.8 + better, 0.75 + better]
        others = {rate: [0.7 + better - 1e-9] for rate in high}
        fill(store, method, {lowest: [0.5], low: [0.6], middle: best} | others)
    return store


def test_rates_and_rows_of_finished_runs(filled: RowStore) -> None:
    assert all(filled.has(cell) for cell in sweep(METHODS, 0))
    rates = choose_rates(filled, METHODS, 0)
    assert rates == {method.name: method.learning_rates[2] for method in METHODS}
    rows = {row["method"]: row for row in summary_rows(filled, METHODS, rates, [0, 1, 2])}
    assert rows["SVFit"]["test"]["mean"] == pytest.approx(0.8)
    assert rows["SVFit"]["test"]["stderr"] == pytest.approx(0.05 / 3**0.5)
    # Seeds are alike, so their differences are certain.
    assert rows["SVFit"]["to_reference"] == pytest.approx({"mean": 0.05, "stderr": 0}, abs=1e-12)
    assert rows[REFERENCE]["to_reference"] == {"mean": 0, "stderr": 0}


def test_equally_good_rates_choose_the_lower(tmp_path: Path) -> None:
    store, method = RowStore(tmp_path / "runs.jsonl"), find_method("SVFit")
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
    assert len(report["sweep"]) == 4 * 5
    with Image.open(tmp_path / "task_movies_quick.png") as picture:
        assert picture.width > picture.height > 100
    assert "80" in capsys.readouterr().out


def test_other_settings_have_runs_of_their_own() -> None:
    others = [
        Setup("tweets", RECIPE, SIZES),
        Setup("movies", Recipe(steps=7), SIZES),
        Setup("movies", RECIPE, Sizes(9, 8, 8, 8)),
    ]
    paths = {setup.path for setup in [SETUP, *others]}
    assert len(paths) == 4 and SETUP.path == Setup("movies", RECIPE, SIZES, "cuda").path
    cells = sweep(METHODS, 0)
    assert len({cell.label() for cell in cells}) == len(cells)
