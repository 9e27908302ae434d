"""Which images the answers drawn at random measure.

Such answers say something about the images that they were drawn from, not about images that were added later. So
`must review` records all images of the shards in population.npy, beside the answers: those that are there when it first
looks at them are batch 0, and those that are new a later time are the next batch. The answered images of a batch were
drawn from it at random, also where they were drawn at different times.
"""

import io
from collections.abc import Iterable

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.method.answers.estimate import fewest_answers

POPULATION_FILE = "population.npy"
ENTRY = np.dtype([("content", "<u8"), ("batch", "<i4")])  # the first 8 bytes of the image's sha256
UNKNOWN = -1  # the batch of an image that was never there when `must review` was started
ENOUGH = fewest_answers(0.05)  # answers that can show that at most 5% of the labels are wrong


def read_population(answers: str) -> np.ndarray:
    """ENTRY [N], sorted by content; empty if there is no file. `answers`: a folder, or the file of answers in it."""
    folder = answers.rpartition("/")[0] or "." if answers.endswith(".jsonl") else answers
    uri = storage.join(folder, POPULATION_FILE)
    try:
        entries = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
        require(entries.dtype == ENTRY and entries.ndim == 1, "other numbers")
        return entries
    except (FileNotFoundError, NotADirectoryError):
        return np.empty(0, ENTRY)
    except (ValueError, EOFError):
        raise UserError(f"{uri}: is damaged; delete it: then answers given so far measure nothing") from None


def record_population(folder: str, contents: np.ndarray) -> None:
    """Adds images that are not recorded yet, as a batch. `contents`: uint64 [N], the first 8 bytes of their sha256."""
    old = read_population(folder)
    added = np.setdiff1d(contents, old["content"])
    if not len(added):
        return
    new = np.empty(len(added), ENTRY)
    new["content"], new["batch"] = added, 1 + old["batch"].max(initial=UNKNOWN)
    joined = np.concatenate([old, new])
    buffer = io.BytesIO()
    np.save(buffer, joined[np.argsort(joined["content"])], allow_pickle=False)
    storage.write_bytes(storage.join(folder, POPULATION_FILE), buffer.getvalue())


def shorten(sha256s: Iterable[str]) -> np.ndarray:
    """Uint64 [N]: the first 8 bytes of each."""
    return np.array([int(sha256[:16], 16) for sha256 in sha256s], np.uint64)


def find_batches(population: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Int64 [N], the batch of each image, or UNKNOWN. `contents`: uint64 [N]."""
    if not len(population):
        return np.full(len(contents), UNKNOWN)
    rows = np.searchsorted(population["content"], contents).clip(max=len(population) - 1)
    return np.where(population["content"][rows] == contents, population["batch"][rows], UNKNOWN).astype(np.int64)


def choose_measured(batches: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bool [N], the images that can be measured; int64 [B], the rows of the answered images that measure them).

    All batches in which as large a share has answers, so that the answers are a random sample of the batches together.
    A batch with more answers gives only the first ones. It is the largest set of batches with ENOUGH such answers, or
    else the one with the most. The content of the answers has no influence.

    Args:
        batches: int64 [N], as of `find_batches`.
        drawn: int64 [A], the rows of images that were drawn at random and answered, in an order that does not depend on
            the answers.
    """
    drawn = drawn[batches[drawn] != UNKNOWN]
    sizes, answers = (np.bincount(part, minlength=1) for part in (batches[batches != UNKNOWN], batches[drawn]))
    answers = np.pad(answers, (0, len(sizes) - len(answers)))
    shares = answers / np.maximum(sizes, 1)
    order = np.argsort(-shares, kind="stable")
    best, most = {int(order[0])}, np.zeros(len(sizes), np.int64)
    for last in range(len(order)):
        included = order[: last + 1]
        usable = np.zeros(len(sizes), np.int64)
        usable[included] = np.floor(shares[order[last]] * sizes[included] + 1e-9)
        if usable.sum() >= min(ENOUGH, most.sum()) and usable.sum():
            best, most = {*included.tolist()}, usable
    rows = [drawn[batches[drawn] == batch][: most[batch]] for batch in sorted(best)]
    return np.isin(batches, [*best]), np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
