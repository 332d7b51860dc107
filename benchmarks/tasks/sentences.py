"""Sentences that people have rated, as a task of two classes.

vaderSentiment's source distribution holds an archive with the data of its paper: each line is a
number, the mean rating of twenty people from −4 to 4, and the text.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks.tasks.examples import Examples
from benchmarks.tasks.packages import TaskError

FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
"""Of the archive, by what they hold."""

_NEUTRAL = 0.5
"""Ratings nearer to zero say neither; of the movie reviews these are 5 %."""


def read_rated(distribution: Path, source: str) -> list[tuple[str, float]]:
    """The sentences of a source with their ratings, each text once.

    Args:
        distribution: vaderSentiment's, packed.
        source: one of `FILES`.

    Raises:
        TaskError: the archive does not hold them.
    """
    try:
        with tarfile.open(distribution) as outer:
            inner = next(name for name in outer.getnames() if name.endswith("ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=outer.extractfile(inner)) as data:
                name = next(name for name in data.getnames() if name.endswith(FILES[source]))
                file = data.extractfile(name)
                assert file is not None  # it is no folder
                text = file.read().decode("utf-8")
    except (OSError, tarfile.TarError, StopIteration) as error:
        raise TaskError(
            f"{distribution} does not hold {FILES[source]} as the source distribution of "
            f"vaderSentiment 3.3.2 does: delete it, and the next run downloads it again"
        ) from error
    return list(dict(_lines(text)).items())


def classify(rated: list[tuple[str, float]], tokenizer: Tokenizer, length: int) -> Examples:
    """Negative (0) and positive (1) sentences as token ids; those rated about zero are left out.

    Args:
        rated: sentences and their ratings.
        tokenizer: of the encoder, whose padding is token 0.
        length: tokens that are kept.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    clear = [(text, rating) for text, rating in rated if abs(rating) >= _NEUTRAL]
    encoded = tokenizer.encode_batch([text for text, _ in clear])
    return Examples(
        [torch.tensor(each.ids) for each in encoded],
        torch.tensor([int(rating > 0) for _, rating in clear]),
    )


def _lines(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if line.strip():
            _, rating, sentence = line.split("\t", 2)
            yield sentence.strip(), float(rating)
