"""Which images the answers drawn at random measure.

Such answers say something about the images that they were drawn from, not about images that were added later. So
`must review` records all images of the shards in population.npy, beside the answers: those that are there when it first
looks at them are cohort 0, and those that are new a later time are the next cohort. The answered images of a cohort
were drawn from it at random, also where they were drawn at different times.
"""

import io
from collections.abc import Iterable

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require

POPULATION_FILE = "population.npy"
ENTRY = np.dtype([("content", "<u8"), ("cohort", "<i4")])  # the first 8 bytes of the image's sha256
UNKNOWN = -1  # the cohort of an image that was never there when `must review` was started


def population_file(answers: str) -> str:
    """The file beside the answers: `answers` is their folder, or their file."""
    folder = answers.rpartition("/")[0] or "." if answers.endswith(".jsonl") else answers
    return storage.join(folder, POPULATION_FILE)


def read_population(answers: str) -> np.ndarray:
    """ENTRY [N], sorted by content; empty if there is no file. `answers`: as of `population_file`."""
    uri = population_file(answers)
    try:
        entries = np.lib.format.read_array(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
        require(entries.dtype == ENTRY and entries.ndim == 1, "other numbers")
        content, cohort = entries["content"], entries["cohort"]
        require(bool((content[1:] > content[:-1]).all() and (cohort >= UNKNOWN).all()), "other numbers")
        return entries
    except (FileNotFoundError, NotADirectoryError):
        return np.empty(0, ENTRY)
    except (ValueError, EOFError):
        raise UserError(f"{uri}: is damaged; delete it: then answers given so far measure nothing") from None


def record_population(folder: str, contents: np.ndarray, drawn: np.ndarray) -> None:
    """Adds images that are not recorded yet, as a cohort.

    Args:
        contents: uint64 [N], the first 8 bytes of their sha256.
        drawn: uint64 [A], of images that were drawn at random and answered. Without a file it is not known from which
            images: they become UNKNOWN, so that their answers measure nothing.
    """
    old = read_population(folder)
    added = np.setdiff1d(contents, old["content"])
    if not len(added):
        return
    new = np.empty(len(added), ENTRY)
    new["content"], new["cohort"] = added, 1 + old["cohort"].max(initial=UNKNOWN)
    if not len(old):
        new["cohort"][np.isin(added, drawn)] = UNKNOWN
    joined = np.concatenate([old, new])
    buffer = io.BytesIO()
    np.save(buffer, joined[np.argsort(joined["content"])], allow_pickle=False)
    storage.write_bytes(storage.join(folder, POPULATION_FILE), buffer.getvalue())


def shorten(sha256s: Iterable[str]) -> np.ndarray:
    """Uint64 [N]: the first 8 bytes of each."""
    return np.array([int(sha256[:16], 16) for sha256 in sha256s], np.uint64)


def find_cohorts(population: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Int64 [N], the cohort of each image, or UNKNOWN. `contents`: uint64 [N]."""
    if not len(population):
        return np.full(len(contents), UNKNOWN)
    rows = np.searchsorted(population["content"], contents).clip(max=len(population) - 1)
    return np.where(population["content"][rows] == contents, population["cohort"][rows], UNKNOWN).astype(np.int64)


def choose_measured(
    cohorts: np.ndarray, drawn: np.ndarray, enough: int, sizes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(bool [N], the images that can be measured; int64 [B], the rows of the answered images that measure them).

    Cohorts of which an equal share is used, so that the answers are a random sample of the cohorts together: of a
    cohort with more answers some are left out. It is the largest set of cohorts that leaves `enough` answers and at
    least half of those that a smaller set would use, or else the one with the most. What the answers say has no
    influence.

    Args:
        cohorts: int64 [N], as of `find_cohorts`.
        drawn: int64 [A], the rows of images that were drawn at random and answered, in the order of their sha256:
            the first ones are used, so that all who ask use the same.
        sizes: images of each cohort, where `cohorts` are those of a part of the images.
    """
    drawn = drawn[cohorts[drawn] != UNKNOWN]
    here, answers = (np.bincount(part, minlength=1) for part in (cohorts[cohorts != UNKNOWN], cohorts[drawn]))
    sizes = here if sizes is None or not len(sizes) else sizes
    answers = np.pad(answers, (0, len(sizes) - len(answers)))
    shares = answers / np.maximum(sizes, 1)
    order = np.argsort(-shares, kind="stable")
    best, taken, most = {int(order[0])}, np.zeros(len(sizes), np.int64), 0
    for last in range(len(order)):
        included = order[: last + 1]
        usable = np.zeros(len(sizes), np.int64)
        usable[included] = np.floor(shares[order[last]] * sizes[included] + 1e-9)
        total = int(usable.sum())
        if total and (total >= most or total >= max(enough, most / 2)):
            best, taken = {*included.tolist()}, usable
        most = max(most, total)
    rows = [drawn[cohorts[drawn] == cohort][: taken[cohort]] for cohort in sorted(best)]
    return np.isin(cohorts, [*best]), np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
