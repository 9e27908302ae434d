"""Which images random answers measure, when images were added between the draws."""

import numpy as np
import pytest

from must.answers.estimate import SET, Sample, accept, count_fewest_answers, find_ranks
from must.answers.population import (
    ENTRY,
    POPULATION_FILE,
    UNKNOWN,
    choose_measured,
    choose_sample,
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
    header = (tmp_path / POPULATION_FILE).read_bytes().replace(b"'descr'", b"(descr'")
    for damage in (b"no array", b"PK\x03\x04", header):
        (tmp_path / POPULATION_FILE).write_bytes(damage)
        with pytest.raises(ValueError, match=r"population\.npy: is damaged; delete it"):
            read_population(folder)
    (tmp_path / POPULATION_FILE).unlink()
    record_population(folder, contents(1, 2, 3), drawn=contents(2))
    found = find_cohorts(read_population(folder), contents(1, 2, 3)).tolist()
    assert found == [0, UNKNOWN, 0], "it is not known what an earlier answer was drawn from"


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
    drawn = np.repeat(np.arange(len(sizes)), answers)
    cohorts, chosen = choose_measured(drawn, np.array(sizes), 59)
    assert np.bincount(drawn[chosen], minlength=len(sizes)).tolist() == used
    assert not sum(answers) or cohorts.tolist() == [cohort for cohort, count in enumerate(used) if count]
    cohorts, chosen = choose_measured(np.full(4, UNKNOWN), np.empty(0, np.int64), 59)
    assert not len(cohorts) and not len(chosen)
    assert choose_measured(drawn, np.array(sizes[:1]), 59)[0].max() < len(sizes), "of a population without the others"


@pytest.mark.slow
def test_the_promise_holds_where_later_images_are_harder():
    """500 images, 300 answers; then 5,000 harder ones, and 300 answers about images drawn from all."""
    generator, runs = np.random.default_rng(0), 200
    population = np.zeros(5_500, ENTRY)
    population["content"], population["cohort"] = np.arange(5_500), np.repeat([0, 1], [500, 5000])
    broken = dict.fromkeys(["equal shares", "all answers"], 0)
    for _ in range(runs):
        confidence = generator.random(5_500)
        wrong = generator.random(5_500) < np.where(population["cohort"], 0.5, 0.02) * (1 - confidence) ** 1.5
        first = generator.choice(500, 300, replace=False)
        second = generator.choice(np.setdiff1d(np.arange(5_500), first), 300, replace=False)
        answered = np.sort(np.concatenate([first, second])).astype(np.uint64)
        chosen, images, gone = choose_sample(
            population, population["content"], answered, contents(), count_fewest_answers(0.05)
        )
        assert 0 < len(chosen) < len(answered) and images.all() and gone == (0, 0)
        for name, rows in {"equal shares": chosen.astype(int), "all answers": answered.astype(int)}.items():
            others = np.setdiff1d(np.arange(5_500), answered)
            ranks = find_ranks(confidence[rows], confidence[others])
            found = accept(0.05, Sample(ranks, ~wrong[rows], np.empty(0)), confidence[others], SET)
            if found.threshold is not None:
                broken[name] += wrong[others][confidence[others] >= found.threshold].sum() > 0.05 * 5_500
    assert broken["equal shares"] <= 0.05 * runs < broken["all answers"], broken


def test_what_is_gone_is_forgotten_except_what_is_gone_beyond_the_common_share(tmp_path):
    """Before more are drawn, as those come from the images that are left."""
    folder, every = str(tmp_path), np.arange(1_000, dtype=np.uint64)
    record_population(folder, every, contents())
    drawn, wrong = every[:100], every[:20]
    here = every[(every >= 13) & (every % 10 != 0)]  # 13 of the wrong ones are removed, and a tenth of all
    record_population(folder, here, drawn, wrong)
    kept = read_population(folder)["content"]
    assert np.isin(here, kept).all() and kept[~np.isin(kept, here)].tolist() == [*range(13)], (
        "a tenth of the right ones is no excuse"
    )
    later = np.append(drawn[np.isin(drawn, here)], here[100:200])
    record_population(folder, here, later, wrong)
    chosen, images, gone = choose_sample(read_population(folder), here, np.union1d(drawn, later), wrong, 59)
    assert gone == (13, 0) and images.all() and len(chosen) == 179, "later answers do not dilute it"
    record_population(folder, every, drawn, wrong)
    cohorts = find_cohorts(read_population(folder), every)
    assert (cohorts[[30, 40]] == UNKNOWN).all() and cohorts[500] == 1, "who puts them back draws no answer with them"
