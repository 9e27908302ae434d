"""What stands beside the answers: which images those drawn at random measure, and the labels that they accepted.

Answers drawn at random say something about the images that they were drawn from, not about images that were added
later. So `must review` records all images of the shards in population.npy: those that are there when it first looks at
them are cohort 0, and those that are new a later time are the next cohort. The answered images of a cohort were drawn
from it at random, also where they were drawn at different times.

Labels that were accepted at an earlier look stay so: what is left is named once, and not found anew. A test that is
passed at one look says how many of the labels of that look are wrong (estimate.py); later answers do not make more of
them wrong. But they change labels and what is tested, and the same test may then fail, although all that a person had
to name was named. So the labels of the look that left the fewest pictures are kept in accepted-RISK.npz, for the
promise of the set. They count until a later look leaves fewer, or none, or `holds` says no. So who names those that are
left, in whatever order, is finished."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require

POPULATION_FILE = "population.npy"
ENTRY = np.dtype([("content", "<u8"), ("cohort", "<i4")])  # the first 8 bytes of the image's sha256
NO_PICTURES = np.empty(0, np.uint64)
UNKNOWN = -1  # the cohort of an image that was never there when `must review` was started


class Gone(NamedTuple):
    """How many of the pictures that were drawn, and of the others, count although they are gone: as wrong in the
    sample, and as right among the others.

    Pictures are removed for what they show or where they are, whether they are answered or not: then the same share of
    both is gone, and the answers that are left are still a random sample of what is left. But who removes those of the
    answered ones that the labels had wrong removes the evidence of the other wrong labels, and other pictures that go
    at the same time are no excuse. So what tells the common share is the answers that the labels had right. What is
    gone beyond it counts; of the wrong ones, beyond what is a standard error below it, as chance could hide some."""

    drawn: int
    others: int

    @classmethod
    def compare(cls, wrong: tuple[int, int], right: tuple[int, int], others: tuple[int, int]) -> Self:
        """Of three pairs (pictures, how many of them are gone): of the drawn ones those whose label was wrong and those
        whose was right, and of the others."""
        (errors, lost), (correct, went), (rest, removed) = wrong, right, others
        share = min(went / max(1, correct), removed / max(1, rest))
        by_chance = max(0.0, errors * share - math.sqrt(errors * share * (1 - share)))
        return cls(math.ceil(max(0.0, lost - by_chance)), max(0, removed - rest * went // max(1, correct)))


NOTHING_GONE = Gone(0, 0)


def find_beside_answers(answers: str, name: str) -> str:
    """A file beside the answers: `answers` is their folder, or their file."""
    folder = answers.rpartition("/")[0] or "." if answers.endswith(".jsonl") else answers
    return storage.join(folder, name)


def find_population_file(answers: str) -> str:
    return find_beside_answers(answers, POPULATION_FILE)


def read_population(answers: str) -> np.ndarray:
    """ENTRY [N], sorted by content; empty if there is no file. `answers`: as of `find_population_file`."""
    uri = find_population_file(answers)
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        return np.empty(0, ENTRY)
    try:
        entries = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        require(entries.dtype == ENTRY and entries.ndim == 1, "other numbers")
        content, cohort = entries["content"], entries["cohort"]
        require(bool((content[1:] > content[:-1]).all() and (cohort >= UNKNOWN).all()), "other numbers")
        return entries
    except Exception:  # numpy has no common class for errors in a header
        raise UserError(f"{uri}: is damaged; delete it: then answers given so far measure nothing") from None


def record_population(
    folder: str, contents: np.ndarray, drawn: np.ndarray = NO_PICTURES, wrong: np.ndarray = NO_PICTURES
) -> None:
    """Adds images that are not recorded yet, as a cohort, and forgets those that are gone, except `Gone` ones.

    Args:
        contents: uint64 [N], the first 8 bytes of their sha256.
        drawn: uint64 [A], of images that were drawn at random and answered. It is not known from which images those
            were drawn that are not recorded: they become UNKNOWN, so that their answers measure nothing.
        wrong: uint64 [B], those of `drawn` whose label was wrong.
    """
    old = read_population(folder)
    kept = forget_gone(old, contents, drawn, wrong)
    added = np.setdiff1d(contents, kept["content"])
    if not len(added) and len(kept) == len(old):
        return
    new = np.empty(len(added), ENTRY)
    new["content"], new["cohort"] = added, 1 + old["cohort"].max(initial=UNKNOWN)
    new["cohort"][np.isin(added, drawn)] = UNKNOWN
    joined = np.concatenate([kept, new])
    buffer = io.BytesIO()
    np.save(buffer, joined[np.argsort(joined["content"])], allow_pickle=False)
    storage.write_bytes(storage.join(folder, POPULATION_FILE), buffer.getvalue())


def forget_gone(population: np.ndarray, contents: np.ndarray, drawn: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The ENTRYs of images that are there, and as many of those that are gone as `Gone` counts. Before more are drawn:
    these are drawn from the images that are left."""
    here, asked, failed = (np.isin(population["content"], values) for values in (contents, drawn, wrong))
    for cohort in np.unique(population["cohort"]):
        parts = [(population["cohort"] == cohort) & part for part in (asked & failed, asked & ~failed, ~asked)]
        lost, went, others = ((int(part.sum()), int((part & ~here).sum())) for part in parts)
        beyond = Gone.compare(lost, went, others)
        for part, count in ((parts[0], beyond.drawn), (parts[2], beyond.others)):
            here[np.flatnonzero(part & ~here)[:count]] = True
    return population[here]


def shorten(sha256s: Iterable[str]) -> np.ndarray:
    """Uint64 [N]: the first 8 bytes of each."""
    return np.array([int(sha256[:16], 16) for sha256 in sha256s], np.uint64)


def find_cohorts(population: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Int64 [N], the cohort of each image, or UNKNOWN. `contents`: uint64 [N]."""
    if not len(population):
        return np.full(len(contents), UNKNOWN)
    rows = np.searchsorted(population["content"], contents).clip(max=len(population) - 1)
    return np.where(population["content"][rows] == contents, population["cohort"][rows], UNKNOWN).astype(np.int64)


def choose_measured(drawn: np.ndarray, sizes: np.ndarray, enough: int) -> tuple[np.ndarray, np.ndarray]:
    """(the cohorts that can be measured, rising; int64 [B], which of the answers measure them, rising).

    Cohorts of which an equal share is used, so that the answers are a random sample of the cohorts together: of a
    cohort with more answers some are left out. It is the largest set of cohorts that leaves `enough` answers and at
    least half of those that a smaller set would use, or else the one with the most. What the answers say has no
    influence.

    Args:
        drawn: int64 [A], the cohorts of the pictures that were drawn at random and answered, also of those that are
            gone, in the order of their sha256: the first ones are used, so that all who ask use the same.
        sizes: pictures of each cohort, also those that are gone.
    """
    answers = np.bincount(drawn[drawn != UNKNOWN], minlength=len(sizes))
    sizes = np.pad(sizes, (0, len(answers) - len(sizes)))
    shares = answers / np.maximum(sizes, 1)
    order = np.argsort(-shares, kind="stable")
    best, taken, most = order[:1], np.zeros(len(sizes), np.int64), 0
    for last in range(len(order)):
        included = order[: last + 1]
        usable = np.zeros(len(sizes), np.int64)
        usable[included] = np.floor(shares[order[last]] * sizes[included] + 1e-9)
        total = int(usable.sum())
        if total and (total >= most or total >= max(enough, most / 2)):
            best, taken = included, usable
        most = max(most, total)
    rows = [np.flatnonzero(drawn == cohort)[: taken[cohort]] for cohort in best]
    return np.sort(best), np.sort(np.concatenate([*rows, np.empty(0, np.int64)])).astype(np.int64)


def choose_sample(
    population: np.ndarray, contents: np.ndarray, drawn: np.ndarray, wrong: np.ndarray, enough: int
) -> tuple[np.ndarray, np.ndarray, Gone]:
    """(uint64, the drawn pictures that measure and are there; bool [N], the images that they measure; what is gone).

    Args:
        population: as of `read_population`.
        contents: uint64 [N], of all images that are there.
        drawn: uint64 [A], of the pictures that were drawn at random and answered, rising.
        wrong: uint64 [B], those of `drawn` whose label was wrong.
        enough: as of `choose_measured`.
    """
    sizes = [pictures for pictures, _ in count_cohorts(population, contents)]
    cohorts, chosen = choose_measured(find_cohorts(population, drawn), np.array(sizes, np.int64), enough)
    recorded = population["content"][np.isin(population["cohort"], cohorts)]
    sample, others = drawn[chosen], np.setdiff1d(recorded, drawn[chosen])
    here, failed = np.isin(sample, contents), np.isin(sample, wrong)
    lost, went = ((int(part.sum()), int((part & ~here).sum())) for part in (failed, ~failed))
    gone = Gone.compare(lost, went, (len(others), int((~np.isin(others, contents)).sum())))
    return sample[here], np.isin(contents, recorded), gone


def count_cohorts(population: np.ndarray, contents: np.ndarray) -> list[tuple[int, int]]:
    """Of each cohort (its pictures, how many of them are not among the `contents`, uint64 [N], that are there)."""
    known = population[population["cohort"] != UNKNOWN]
    gone = known["cohort"][~np.isin(known["content"], contents)]
    sizes = np.bincount(known["cohort"])
    return list(zip(sizes.tolist(), np.bincount(gone, minlength=len(sizes)).tolist(), strict=True))


NAMES = ("contents", "labels", "confidence", "drawn", "answers", "pictures", "allowed", "classes")


@dataclass(frozen=True, eq=False)
class KeptLabels:
    """Of S pictures whose labels were accepted, by A answers about pictures drawn at random. A picture is known by the
    first 8 bytes of its sha256."""

    risk: float
    pictures: int  # that there were in all
    allowed: int  # wrong ones of these labels, at most
    contents: np.ndarray  # uint64 [S]
    labels: np.ndarray  # int64 [S], class numbers; -1 for none of the classes
    confidence: np.ndarray  # float32 [S]
    drawn: np.ndarray  # uint64 [A]
    answers: np.ndarray  # int64 [A], class numbers, or those of NO_CLASS and OUTDATED

    def holds(self, pictures: int, contents: np.ndarray, answers: dict[int, int], overlooked: int) -> bool:
        """Whether nothing was taken back: the promise has room for the wrong ones of these labels and for those that
        people left, the answers that it rests on are as they were, and no more labels than allowed were found wrong.

        Args:
            pictures: that there are in all.
            contents: uint64 [N], of the images that there are.
            answers: {content: class number}.
            overlooked: wrong labels that people left.
        """
        here = self.drawn[np.isin(self.drawn, contents)].tolist()
        before = dict(zip(self.drawn.tolist(), self.answers.tolist(), strict=True))
        accepted = zip(self.contents.tolist(), self.labels.tolist(), strict=True)
        wrong = sum(answers.get(one, label) != label for one, label in accepted)
        same = all(answers.get(one) == before[one] for one in here)
        return same and wrong <= self.allowed <= math.floor(self.risk * pictures + 1e-9) - overlooked


def find_kept_file(answers: str, risk: float) -> str:
    """`answers`: their folder, or their file."""
    return find_beside_answers(answers, f"accepted-{risk:g}.npz")


def read_kept(answers: str, risk: float, classes: Sequence[str]) -> KeptLabels | None:
    """None: there are none, the file is damaged, or the labels are of other classes; in another order, they count."""
    try:
        data = storage.read_bytes(find_kept_file(answers, risk))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {name: file[name] for name in NAMES}
        number_of = {name: number for number, name in enumerate(classes)}
        numbers = np.array([number_of.pop(name) for name in found.pop("classes").tolist()], np.int64)
        for name in ("labels", "answers"):
            found[name] = np.where(found[name] < 0, found[name], numbers[found[name].clip(0)])
        counts = int(found.pop("pictures")), int(found.pop("allowed"))
        return None if number_of else KeptLabels(risk, *counts, **found)
    except Exception:  # numpy has no common class for errors in a file
        return None


def write_kept(answers: str, kept: KeptLabels, classes: Sequence[str]) -> None:
    buffer, values = io.BytesIO(), {name: getattr(kept, name) for name in NAMES[:-1]}
    np.savez(buffer, **values, classes=np.array(classes))
    storage.write_bytes(find_kept_file(answers, kept.risk), buffer.getvalue())
