"""Pictures that seem to lie in the wrong folder, where folders are named after classes. No label changes.

The rule is that of confident learning (Northcutt et al. 2021, arXiv 1911.00068): by cross-validation another class than
its folder's is the most probable one, and at least as probable as on average for the pictures in that class's folder;
and at least SURE, as else hundreds are listed where the model cannot tell classes apart. Near copies are in one fold.

N pictures, M images (pictures and their copies), K classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from must.answers.answers_file import NO_CLASS, OPEN
from must.base.text import NONE_OF_THESE, compose, escape_cell, format_csv, pluralize
from must.memory.features import Pool
from must.memory.propagate import fit_correction, normalize_vectors, propagate
from must.model.memory import Neighbours, apply_correction, find_nearest

FOLDS, FEWEST, SURE = 5, 5, 0.9  # pictures of a folder, else it is left out; the least probability of the other class
MOST_CORRECTING = 1_000  # folders' names that fit the correction: its time grows with their third power


def find_folders(names: list[str], classes: list[str]) -> np.ndarray:
    """Int64 [M]: the class that each image's folder, or one above, is named after; OPEN where there is none, and for
    all images unless more than half are in such folders."""
    numbers = {name: number for number, name in enumerate(classes)}
    parts = (map(compose, name.split("/")[:-1]) for name in names)
    found = np.array([next((numbers[part] for part in each if part in numbers), OPEN) for each in parts], np.int64)
    return found if 2 * (found != OPEN).sum() > len(found) else np.full_like(found, OPEN)


def cross_validate(pool: Pool, given: Tensor, near: Neighbours, device: torch.device) -> Tensor:
    """Float32 [N, K]: probabilities by the classes `given`, int64 [N], of other pictures that are no near copies."""
    values, P, fold = normalize_vectors(pool, device), pool.probabilities.to(device).float(), near.groups % FOLDS
    nearest = find_nearest(values) if len(near.first) < len(P) else (near.numbers, near.cosines)
    predicted = torch.zeros_like(P)
    for number in range(FOLDS):
        rows = ((fold != number) & (given >= 0)).nonzero().flatten()
        even = rows[torch.linspace(0, len(rows) - 1, min(len(rows), MOST_CORRECTING), device=device).round().long()]
        corrected = apply_correction(P, values, fit_correction(P, values, even, given[even]), 0.0)
        mine = fold == number
        predicted[mine] = propagate(*nearest, corrected, rows, given[rows]).labels[mine]
    return predicted.cpu()


def find_misplaced(
    pool: Pool, near: Neighbours, said: np.ndarray, names: list[str], rows: np.ndarray, classes: list[str],
    people: list[str],
) -> tuple[dict[str, Any], bytes] | None:  # fmt: skip
    """(numbers, the table); None: the images lie in no folders of classes. `near`: of `find_neighbours`; `said`: int64
    [N], answers, as of `Answers`, which count in place of the folder; `rows`: int64 [M], of each image, that of its
    picture; `people`: who named each image."""
    folders = find_folders(names, classes)
    places = np.flatnonzero(folders != OPEN)
    if not len(places):
        return None
    others = len(folders) - len(places)
    notes = [f"not checked: {others:,} in no folder of a class"] if others else []
    rows, folders, given = rows[places], folders[places], np.full(len(said), OPEN)
    given[rows[::-1]] = folders[::-1]  # the first one's, if copies lie in several
    given = np.where(said >= NO_CLASS, said, given)
    predicted = cross_validate(pool, torch.from_numpy(given).to(near.groups.device), near, near.groups.device).numpy()
    label, sure, known = predicted.argmax(1), predicted.max(1), np.flatnonzero(given >= 0)
    counts = np.bincount(given[known], minlength=len(classes))
    limits = np.bincount(given[known], predicted[known, given[known]], len(classes)) / np.maximum(counts, 1)
    doubted = (sure >= np.maximum(limits, SURE)[label]) & (counts >= FEWEST)[label]
    answered = (said >= NO_CLASS)[rows]
    label, sure = np.where(answered, said[rows], label[rows]), np.where(answered, 1, sure[rows])
    wrong = np.flatnonzero((answered | doubted[rows] & (counts >= FEWEST)[folders]) & (label != folders))
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    cells, table = [*map(escape_cell, classes), NONE_OF_THESE], [["image", "folder", "class", "probability", "by"]]
    for one, place in zip(wrong, places[wrong], strict=True):
        named = cells[folders[one]], cells[label[one]], f"{sure[one]:.6f}", people[place]
        table.append([escape_cell(names[place]), *named])
    seem = "seems" if len(wrong) == 1 else "seem"
    pairs = np.unique(np.stack([rows, folders]), axis=1)
    if twice := int((np.bincount(pairs[0]) > 1).sum()):
        notes.append(f"{pluralize(twice, 'picture')} with copies in the folders of two classes")
    text = f"{len(wrong):,} of {pluralize(len(places), 'picture')} {seem} to lie in the wrong folder"
    text += f" ({'; '.join(notes)})" if notes else ""
    summary = {"wrong": len(wrong), "asked": int((~answered[wrong]).sum()), "text": text}
    return summary, format_csv(table)
