"""The features of pictures: what one pass of an image tower gives, in a folder, so that no picture passes twice.

    FEATURES/TOWER/whitening.safetensors      the whitenings of tokens and embedding, from the first pictures
    FEATURES/TOWER/SPLIT/rows-*.safetensors   of each picture: the hash of its content, its embedding, its vector

TOWER is a hash of the tower's weights and of the preprocessing, so that another tower has other files. Pictures are
known by their content: copies are one row. Probabilities are computed from the embedding and the classes' text
embeddings, so that other classes or prompts need no pass. A picture takes 2 (D + V) bytes, 1.5 kB for a ViT-B.

Rows are written in parts while the pass runs: a program that is killed loses the last part. The whitening is fitted on
at most FITTED pictures, whose tokens are in raw-*.safetensors until then, and stays until there are twice as many
pictures as then. Rows of pictures that are gone leave when rows are next written.

N pictures, D numbers of an embedding, V of a vector (must/model/memory.py), F of flattened tokens, K classes."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.program import is_first_rank, show_bar
from must.base.text import make_printable, pluralize
from must.data.augment import normalize
from must.data.format import read_hashes
from must.data.image.preprocess import Preprocess
from must.data.loader import EvalSource
from must.model.distributed import World
from must.model.masked_vit import MaskedViT
from must.model.memory import FITTED, Memory, Whitening, flatten_tokens, join_vectors

logger = logging.getLogger(__name__)


@dataclass
class Pool:
    """N pictures of distinct content that could be decoded; V numbers a vector, K classes."""

    numbers: Tensor  # int64 [N], in the split
    sources: list[str]  # their names; [] where nobody asks
    vectors: Tensor  # float16 [N, V], unit vectors
    probabilities: Tensor  # float16 [N, K], of the model
    others: Tensor  # float16 [M, N, K], of the other models
    tokens: Whitening
    embedding: Whitening


PART = 1_024  # pictures of a part, about
PART_SECONDS = 20.0  # a part is written after this time, too
MOST_PARTS = 32  # more are joined
BATCH_ON_CPU = 32  # pictures of a forward pass: more are not faster
AT_ONCE = 8_192  # pictures whose probabilities are computed at a time
WHITENING_FILE, ROWS, RAW, ENDING = "whitening.safetensors", "rows-", "raw-", ".safetensors"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """Of N pictures of a split, no two of the same content; only those that could be decoded."""

    numbers: Tensor  # int64 [N], rising: the first image of the split with this content
    contents: np.ndarray  # uint64 [N], the first 8 bytes of the content's sha256
    embedding: Tensor  # float16 [N, D], of length 1
    vectors: Tensor  # float16 [N, V], of length 1; V is 0 if nothing is known to whiten with
    whitenings: tuple[Whitening, Whitening] | None  # of tokens and embedding; None: vectors are empty
    split: np.ndarray  # uint64 [M], the contents of all images of the split
    undecodable: int  # images of the split
    tower: str  # the folder in FEATURES; "" if there is no FEATURES

    def logits(self, model: MaskedViT, rows: Tensor, device: torch.device) -> Tensor:
        """Float32 [B, K] of rows [B], of a model whose tower these features are of."""
        embedding, head = self.embedding[rows].to(device).float(), model.classifier.detach().to(device).float()
        return model.logit_factor * F.normalize(embedding, dim=1) @ head

    def probabilities(self, model: MaskedViT) -> Tensor:
        """Float16 [N, K]."""
        blocks = torch.arange(len(self.embedding)).split(AT_ONCE)
        device = model.classifier.device
        return torch.cat([self.logits(model, rows, device).softmax(-1).half().cpu() for rows in blocks])

    def pool(self, model: MaskedViT, others: Sequence[Tensor] = (), sources: Sequence[str] = ()) -> Pool:
        """`others`: float16 [N, K], probabilities of other models for the same pictures; `sources`: their names."""
        P = self.probabilities(model)
        other = torch.stack(list(others)) if others else P.new_zeros(0, *P.shape)
        assert self.whitenings
        return Pool(self.numbers, list(sources), self.vectors, P, other, *self.whitenings)

    def find_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [M], the numbers of all images of the split whose picture is here, copies too; int64 [M], its row)."""
        order = self.contents.argsort()
        places = np.searchsorted(self.contents, self.split, sorter=order).clip(max=len(order) - 1)
        numbers = np.flatnonzero(self.contents[order[places]] == self.split)
        return numbers, order[places][numbers]


@torch.inference_mode()
def read_features(
    model: MaskedViT,
    source: EvalSource,
    world: World,
    folder: str = "",
    limit: int | None = None,
    memory: Memory | None = None,
    fit: bool = True,
) -> Features:
    """The features of a split's pictures: those in FEATURES, and of a pass over the others, which are added there.

    Args:
        source: of the whole split. Every process of `world` calls this with the same one, passes its share, and gets
            the features of all.
        folder: FEATURES, which all processes can access; "" to keep nothing.
        limit: pictures at most, evenly spread; None: all.
        memory: of a model that has one; its whitenings are used.
        fit: whether whitenings may be fitted on these pictures; without any, vectors are empty, and nothing is kept."""
    split = source.reader.split
    contents = read_hashes(source.reader.uri, source.index, split)
    first = np.sort(np.unique(contents, return_index=True)[1])
    numbers = first if limit is None else first[spread(len(first), limit)]
    given = (memory.tokens.cpu(), memory.embedding.cpu()) if memory else None
    tower = hash_tower(model, source.preprocess) if folder else ""
    store = FeatureStore(folder and storage.join(folder, tower), split)
    if given and store.whitenings and not are_equal(given, store.whitenings):
        store = FeatureStore("", split)  # another model's vectors are there
    if fit and not given and 0 < 2 * store.fitted_on <= len(first):
        logger.info("there are twice as many pictures as those that vectors were fitted on: all are looked at again")
        store.clear(world)
    whitenings = store.whitenings or given
    if not whitenings and not fit:
        store = FeatureStore("", split)
    if given and not store.whitenings and world.is_main:
        store.write_whitenings(given, 0)

    def complete(kind: str, wanted: np.ndarray) -> Tensors:
        """The rows of the wanted images; those of a content without a row are computed."""
        missing = wanted[~np.isin(contents[wanted], store.contents(kind))]
        world.sum(0.0)  # no process writes before all have read
        mine, new = source.only(missing[world.rank :: world.size].tolist()), list[Tensors]()
        form = make_rows(whitenings, world.device) if kind == ROWS else dict
        for rows in run_tower(model, mine, world.device, contents, form):
            store.write(kind, rows)
            new.append(rows)
        for parts in world.gather(new):
            store.parts[kind] += parts
        return store.take(kind, contents[wanted])

    if not whitenings and fit:
        raw = complete(RAW, numbers[spread(len(numbers), FITTED)])
        whitenings = world.gather((Whitening.fit(raw["flat"]), Whitening.fit(raw["embedding"])))[0]
        if world.is_main:
            store.write_whitenings(whitenings, len(first))
    if whitenings and store.parts[RAW]:
        rows = make_rows(whitenings)(store.take(RAW))
        store.parts[ROWS].append(rows)
        if world.is_main:
            store.write(ROWS, rows)
            store.delete(RAW)
    rows = complete(ROWS, numbers)
    if world.is_main:
        store.tidy(contents)
    found = np.isin(contents[numbers], convert_to_hashes(rows["contents"]))
    return Features(
        torch.from_numpy(numbers[found]), convert_to_hashes(rows["contents"]), rows["embedding"], rows["vectors"],
        whitenings, contents, int((~found).sum()), tower,
    )  # fmt: skip


def run_tower(
    model: MaskedViT, source: EvalSource, device: torch.device, contents: np.ndarray, form: Callable[[Tensors], Tensors]
) -> Iterator[Tensors]:
    """Parts of the rows of the source's images, each batch brought into its `form`. Does not change the state of
    torch's random generator. Raises UserError: features are not finite numbers."""
    if not source.numbers:
        return
    if device.type == "cpu":
        source.batch_size = min(source.batch_size, BATCH_ON_CPU)
    model, bad = model.to(device).eval(), list[str]()
    rows, since = list[Tensors](), time.monotonic()
    progress = show_bar(total=len(source.numbers), unit="img", desc="features", leave=False, quiet=not is_first_rank())
    with progress, torch.random.fork_rng(devices=[]):  # loaders draw a seed from it
        for batch in source:
            _, feature, tokens = model.classify(normalize(batch.pixels.to(device), source.preprocess))
            feature, flat = feature.float(), flatten_tokens(model.tower, tokens).half()
            finite = (feature.isfinite().all(1) & flat.isfinite().all(1)).cpu()
            bad += [name for name, good in zip(batch.sources, finite.tolist(), strict=True) if not good]
            hashes = convert_to_tensor(contents[batch.samples.numpy()])
            part = form({"contents": hashes, "embedding": feature, "flat": flat})
            rows.append({name: value.cpu()[finite] for name, value in part.items()})
            if sum(len(part["contents"]) for part in rows) >= PART or time.monotonic() - since > PART_SECONDS:
                yield join(rows)
                rows, since = [], time.monotonic()
            progress.update(len(batch.samples))
    if rows:
        yield join(rows)
    count, example = pluralize(len(bad), "image"), make_printable("".join(bad[:1]))
    require(not bad, f"the model's features of {count} are not finite numbers, such as of {example}")


def make_rows(
    whitenings: tuple[Whitening, Whitening] | None, device: torch.device | None = None
) -> Callable[[Tensors], Tensors]:
    """What makes rows of ROWS from those of RAW; vectors have no numbers without whitenings."""
    moved = [copy.deepcopy(part).to(device) for part in whitenings or ()]

    def form(raw: Tensors) -> Tensors:
        vectors = raw["embedding"][:, :0]
        if moved:
            vectors = join_vectors(moved[0](raw["flat"]), moved[1](raw["embedding"]))
        return {"contents": raw["contents"], "embedding": raw["embedding"].half(), "vectors": vectors.half()}

    return form


class FeatureStore:
    """The rows of a tower's features of one split, and their whitenings; on a disk or in a bucket, or in memory alone.

    `parts`: {kind: tensors of some rows each}; those of ROWS are `contents`, int64 [n], `embedding`, float16 [n, D],
    and `vectors`, float16 [n, V]; those of RAW have `embedding`, float32, and `flat`, float16 [n, F]."""

    def __init__(self, uri: str, split: str) -> None:
        self.uri, self.split = uri, storage.join(uri, split)
        self.fitted_on, self.written, self.whitenings = 0, False, None
        tensors = read_tensors(storage.join(uri, WHITENING_FILE)) if uri else None
        if tensors:
            self.fitted_on = int(tensors["fitted_on"])
            self.whitenings = (
                Whitening(tensors["tokens.projection"], tensors["tokens.offset"]),
                Whitening(tensors["embedding.projection"], tensors["embedding.offset"]),
            )
        # Rows without whitenings are of some that were removed.
        self.parts = {ROWS: self.read(ROWS) if self.whitenings else [], RAW: self.read(RAW)}

    def files(self, kind: str) -> list[str]:
        if not self.uri:
            return []
        names = sorted(entry.name for entry in storage.list_existing(self.split) if entry.name.startswith(kind))
        return [storage.join(self.split, name) for name in names if name.endswith(ENDING)]

    def read(self, kind: str) -> list[Tensors]:
        return [part for file in self.files(kind) if (part := read_tensors(file))]

    def contents(self, kind: str) -> np.ndarray:
        """Uint64 [n], those with a row."""
        return np.concatenate(
            [np.empty(0, np.uint64), *(convert_to_hashes(part["contents"]) for part in self.parts[kind])]
        )

    def take(self, kind: str, contents: np.ndarray | None = None) -> Tensors:
        """The rows of these contents, in their order; those without a row are left out. None: all."""
        rows, have = join(self.parts[kind]), self.contents(kind)
        if not len(have):
            raise UserError("none of the split's images can be decoded; check them: must index verify")
        known, places = np.unique(have, return_index=True)
        wanted = known if contents is None else contents[np.isin(contents, known)]
        index = torch.from_numpy(places[np.searchsorted(known, wanted)])
        return {name: value[index] for name, value in rows.items()}

    def write(self, kind: str, rows: Tensors) -> None:
        """Of the same pictures always to the same file."""
        if self.uri and len(rows["contents"]):
            storage.write_bytes(self.name(kind, rows), save(rows))
            self.written = True

    def name(self, kind: str, rows: Tensors) -> str:
        digest = hashlib.sha256(rows["contents"].numpy().tobytes()).hexdigest()
        return storage.join(self.split, f"{kind}{digest[:12]}{ENDING}")

    def write_whitenings(self, whitenings: tuple[Whitening, Whitening], fitted_on: int) -> None:
        """Before, removes the rows of earlier whitenings, in all splits, which would then count as rows of these."""
        if self.uri:
            for entry in list(storage.list_existing(self.uri)):
                if entry.name.rpartition("/")[2].startswith(ROWS):
                    storage.delete(storage.join(self.uri, entry.name))
            names = zip(("tokens", "embedding"), whitenings, strict=True)
            tensors = {
                f"{name}.{key}": value.cpu().contiguous()
                for name, part in names
                for key, value in part.state_dict().items()
            }
            tensors["fitted_on"] = torch.tensor(fitted_on)
            storage.write_bytes(storage.join(self.uri, WHITENING_FILE), save(tensors))

    def delete(self, kind: str) -> None:
        self.parts[kind] = []
        for file in self.files(kind):
            storage.delete(file)

    def clear(self, world: World) -> None:
        """Removes all rows, and the whitenings."""
        world.sum(0.0)
        if world.is_main:
            storage.delete(storage.join(self.uri, WHITENING_FILE))  # first: rows without it are not read
            storage.delete_folder(self.uri)
        self.parts, self.whitenings, self.fitted_on = {ROWS: [], RAW: []}, None, 0

    def tidy(self, contents: np.ndarray) -> None:
        """Joins the files of rows if there are many, or if some of the rows are of pictures that are not among
        `contents` any more, and rows were written."""
        files, have = self.files(ROWS), self.contents(ROWS)
        kept = np.isin(have, contents)
        if len(files) > MOST_PARTS or (self.written and not kept.all()):
            joined = self.take(ROWS, np.unique(have[kept]))
            self.write(ROWS, joined)
            for file in {*files} - {self.name(ROWS, joined)}:
                storage.delete(file)


def hash_tower(model: MaskedViT, preprocess: Preprocess) -> str:
    """20 characters, of the weights of the image tower and what is done with its images."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    for name, value in sorted(model.visual.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:20]


def read_tensors(uri: str) -> Tensors | None:
    """None: there is no such file, or it is damaged; then it is made again."""
    try:
        return load_file(storage.local(uri)) if not storage.is_remote(uri) else load(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError):
        logger.warning(make_printable(f"warning: {uri} is damaged; it is made again"))
        storage.delete(uri)
        return None


def are_equal(first: tuple[Whitening, Whitening], second: tuple[Whitening, Whitening]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.projection, b.projection) and torch.equal(a.offset, b.offset) for a, b in pairs)


def join(parts: Sequence[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def convert_to_tensor(hashes: np.ndarray) -> Tensor:
    """Int64 of uint64 [n]: torch cannot index the latter."""
    return torch.from_numpy(hashes.view(np.int64))


def convert_to_hashes(values: Tensor) -> np.ndarray:
    """Uint64 of int64 [n]."""
    return values.numpy().view(np.uint64)


def spread(images: int, limit: int) -> np.ndarray:
    """Int64: `limit` of the numbers of images at even intervals, or all."""
    return np.linspace(0, images - 1, min(images, limit)).round().astype(np.int64)
