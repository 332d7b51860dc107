"""Judges a pipeline that learned a subject, by what it draws."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from PIL import Image

from benchmarks.extractors import Extractor, Seen
from benchmarks.finetune import Recipe, control_images, subject_images
from benchmarks.report import Row
from benchmarks.scoring import Scorer
from benchmarks.subjects import Subject


class Judge:
    """Looks at what pipelines draw of subjects, and at what moved besides.

    Args:
        base: the pipeline that all of them come from.
        extractor: looks at images.
        recipe: of the images.
    """

    def __init__(self, base: Any, extractor: Extractor, recipe: Recipe) -> None:
        self._base, self._extractor, self._recipe = base, extractor, recipe
        self._scorers: dict[str, Scorer] = {}
        self._controls: dict[tuple[str, int], Seen] = {}

    def scorer(self, subject: Subject) -> Scorer:
        """Of the subject; raises `DataError` if the extractor does not know it."""
        if subject.name not in self._scorers:
            self._scorers[subject.name] = Scorer(subject, self._extractor)
        return self._scorers[subject.name]

    def judge(self, pipe: Any, subject: Subject, seed: int) -> tuple[Row, list[Image.Image]]:
        """Figures of a pipeline, as in `Scores`, and its images of the subject's prompts."""
        scorer = self.scorer(subject)
        images = subject_images(pipe, scorer.prompts, self._recipe, seed)
        control = scorer.see(control_images(pipe, scorer.drift_prompts, self._recipe, seed))
        return asdict(scorer.score(images, control, self._base_control(subject, seed))), images

    def _base_control(self, subject: Subject, seed: int) -> Seen:
        """What the base makes of the prompts that should not change."""
        key = (subject.name, seed)
        if key not in self._controls:
            scorer = self.scorer(subject)
            images = control_images(self._base, scorer.drift_prompts, self._recipe, seed)
            self._controls[key] = scorer.see(images)
        return self._controls[key]
