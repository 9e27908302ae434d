"""People's answers about the images of a split."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from must.base.text import counted
from must.config import RefineConfig
from must.data.format import load_index
from must.data.shards.history import read_hashes
from must.method.answers.answers_file import OUTDATED, RANDOM, Answer, read_answers
from must.method.answers.estimate import SET, fewest_answers
from must.method.answers.kept import KeptLabels, read_kept
from must.method.answers.population import (
    NOTHING_GONE,
    POPULATION_FILE,
    Gone,
    choose_sample,
    read_population,
    shorten,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """{number in the split: class number, -1 for none of the classes}; `random`: those drawn at random, also OUTDATED
    ones; `copies`: of other images with the same content as the `known` ones.

    Of the images of the split: `contents`, uint64; `measured`, bool, those that the random answers say something about.
    `measuring`: the numbers of those random answers that do."""

    known: dict[int, int]
    random: dict[int, int]
    copies: dict[int, int]
    contents: np.ndarray
    measured: np.ndarray
    measuring: frozenset[int] = frozenset()
    gone: Gone = NOTHING_GONE
    kept: KeptLabels | None = None  # of an earlier look, for the promise of the set

    def among(self, numbers: Iterable[int]) -> Answers:
        """Those about images with these numbers."""
        images = {int(number) for number in numbers}
        known, random, copies = (
            {n: k for n, k in part.items() if n in images} for part in (self.known, self.random, self.copies)
        )
        return replace(self, known=known, random=random, copies=copies)

    @property
    def all(self) -> dict[int, int]:
        """Of all images that somebody answered about."""
        return self.copies | self.random | self.known


def find_answers(config: RefineConfig, classes: list[str]) -> Answers:
    """The answers about images of the shards, which are known by their content. An answer that does not fit the classes
    teaches nothing: its class is gone, or it is "none of the classes" and one was added. About a picture drawn at
    random any label is wrong, as its image stays part of the sample; so does one that is gone, see `Gone`."""
    if not config.answers:
        return Answers({}, {}, {}, np.empty(0, np.uint64), np.empty(0, bool))
    contents = read_hashes(config.shards, load_index(config.shards), config.split)
    class_numbers = {name: number for number, name in enumerate(classes)}
    numbers = defaultdict[int, list[int]](list)
    for number, value in enumerate(contents.tolist()):
        numbers[value].append(number)
    known, random, copies, gone, unfit = dict[int, int](), dict[int, int](), dict[int, int](), 0, list[Answer]()
    drawn = list[str]()
    for sha256, answer in read_answers(config.answers).items():
        if answer.unsure:
            continue
        if answer.sampled == RANDOM:
            drawn.append(sha256)
        number, *others = numbers.get(int(sha256[:16], 16), [-1])
        if number < 0:
            gone += 1
            continue
        label = answer.find_number(class_numbers)
        if label == OUTDATED:
            unfit.append(answer)
        else:
            known[number] = label
            copies |= dict.fromkeys(others, label)
        if answer.sampled == RANDOM:
            random[number] = label
    if gone:
        logger.info(f"{counted(gone, 'answer')} left out: of images that are no longer there")
    if renamed := sum(answer.label is not None for answer in unfit):
        logger.warning(
            f"{counted(renamed, 'answer')} with a class that is no longer there: they teach nothing, and those drawn "
            "at random count as wrong; if a class has another name now, write it into answers.jsonl (docs/day-two.md)"
        )
    if earlier := len(unfit) - renamed:
        logger.warning(
            f"{counted(earlier, 'answer')} of none of the classes, from before a name was added: they teach nothing, "
            "and those drawn at random count as wrong, until `must review` has asked about them again"
        )
    population = read_population(config.answers)
    chosen, images, beyond = choose_sample(population, contents, shorten(sorted(drawn)), fewest_answers(config.risk))
    if random and not len(population):
        logger.warning(
            f"{counted(len(random), 'answer')} drawn at random measure nothing: {POPULATION_FILE}, which `must review` "
            "writes beside them, is not there"
        )
    if beyond.drawn:
        logger.warning(
            f"of the pictures drawn at random and answered more are no longer there than of the others: "
            f"{beyond.drawn:,} of these answers count as wrong"
        )
    measuring = frozenset(numbers[value][0] for value in chosen.tolist())
    kept = read_kept(config.answers, config.risk, classes) if config.promise == SET else None
    return Answers(known, random, copies, contents, images, measuring, beyond, kept)
