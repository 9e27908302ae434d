"""Which images random answers measure, when images were added between the draws."""

import numpy as np
import pytest

from must.method.answers.estimate import accept, fewest_answers, find_ranks
from must.method.answers.population import (
    POPULATION_FILE,
    UNKNOWN,
    choose_measured,
    find_cohorts,
    read_population,
    record_population,
)


def contents(*numbers):
    return np.array(numbers, np.uint64)


def test_images_are_recorded_in_cohorts_by_their_content(tmp_path):
    folder = str(tmp_path)
    assert find_cohorts(read_population(folder), contents(1, 2)).tolist() == [UNKNOWN, UNKNOWN]
    for numbers in ((7, 2**63 + 1), (7,), (7, 5, 5, 9)):
        record_population(folder, contents(*numbers), contents())
    found = read_population(f"{folder}/answers.jsonl")
    assert find_cohorts(found, contents(9, 7, 2**63 + 1, 5, 6)).tolist() == [1, 0, 0, 1, UNKNOWN]
    for damage in (b"no array", b"PK\x03\x04"):
        (tmp_path / POPULATION_FILE).write_bytes(damage)
        with pytest.raises(ValueError, match=r"population\.npy: is damaged; delete it"):
            read_population(folder)
    (tmp_path / POPULATION_FILE).unlink()
    record_population(folder, contents(1, 2, 3), drawn=contents(2))
    found = find_cohorts(read_population(folder), contents(1, 2, 3)).tolist()
    assert found == [0, UNKNOWN, 0], "it is not known what an earlier answer was drawn from"


def draw(sizes, answers):
    """(cohorts, rows) of cohorts with `sizes` images, of which the last `answers` were drawn."""
    cohorts = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    return cohorts, np.concatenate([np.arange(end - count, end) for end, count in zip(ends, answers, strict=True)])


@pytest.mark.parametrize(
    "sizes, answers, used",
    [
        ([500], [150], [150]),
        ([500], [0], [0]),
        ([500, 597], [150, 0], [150, 0]),
        ([500, 597], [150, 30], [150, 0]),  # 25 + 30 would be too few
        ([500, 597], [150, 60], [50, 60]),  # as large a share of both
        ([1000, 17], [150, 1], [150, 0]),  # 59 would be left of 150
        ([500, 597], [20, 30], [20, 23]),
        ([500, 500], [20, 20], [20, 20]),
        ([100, 100, 100], [60, 30, 30], [30, 30, 30]),
        ([0, 400], [0, 80], [0, 80]),  # the first images are gone
    ],
    ids=str,
)
def test_cohorts_with_as_large_a_share_of_answers_are_measured_together(sizes, answers, used):
    cohorts, rows = draw(sizes, answers)
    images, chosen = choose_measured(cohorts, rows, 59)
    assert np.bincount(cohorts[chosen], minlength=len(sizes)).tolist() == used and {*chosen} <= {*rows}
    for cohort, count in enumerate(used):
        assert images[cohorts == cohort].all() == (count > 0 or not sum(answers)) or not sizes[cohort]
    images, chosen = choose_measured(np.full(9, UNKNOWN), np.arange(4), 59)
    assert not images.any() and not len(chosen)


def test_the_promise_holds_where_later_images_are_harder():
    """500 images, 150 answers; then 5,000 harder ones, and 300 answers about images drawn from all."""
    generator, cohorts, runs = np.random.default_rng(0), np.repeat([0, 1], [500, 5000]), 300
    broken = dict.fromkeys(["equal shares", "all answers"], 0)
    for _ in range(runs):
        confidence = generator.random(len(cohorts))
        wrong = generator.random(len(cohorts)) < np.where(cohorts, 0.5, 0.125) * (1 - confidence) ** 1.5
        first = generator.choice(500, 150, replace=False)
        second = generator.choice(np.setdiff1d(np.arange(len(cohorts)), first), 300, replace=False)
        answered = np.concatenate([first, second])
        images, chosen = choose_measured(cohorts, answered, fewest_answers(0.05))
        for name, rows in {"equal shares": chosen, "all answers": answered}.items():
            others = np.setdiff1d(np.flatnonzero(images), answered)
            ranks = find_ranks(confidence[rows], confidence[others])
            accepted = accept(0.05, ranks, ~wrong[rows], confidence[others]).threshold
            if accepted is not None:
                broken[name] += wrong[others][confidence[others] >= accepted].mean() > 0.05
    assert broken["equal shares"] <= 0.05 * runs < broken["all answers"]
