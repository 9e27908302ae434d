"""The memory: what is known about the unlabeled images, as the model's last layer.

It holds the vectors of the images (vectors.py) and their refined labels (propagate.py). A new image x with
probabilities P(x) gets the votes of its ten nearest images j in the memory, by the formula of label propagation:

    p(x) ~ P(x) times the product over j of (1 - r + r Z_j / M) ^ (VOTES w_j f(x))

f(x) = s h. s, the image's *similarity* to the memory, is 1 for an image as near to its neighbours as the memory's own
images are, and falls to 0 for one unlike any of them, which so keeps the model's own answer. h is the share of P(x) in
classes that the pool holds: what the memory learned of other classes says nothing about an image of them. A class of
which the pool holds few images gets smaller votes: times n / (n + 5), n = the sum of its refined labels. An image never
votes for itself: a vector of almost the same direction is left out. Of Z_j the five largest probabilities are kept; a
constant factor of all classes cancels, so that the votes are sparse.

Where people answered "none of the classes" for some of the images, this is a class of its own, the last column of
everything here, and p has the columns of the K classes: what a row lacks of 1 is the probability of none of them. It
is divided by exp(`none_margin`), so that few images of the classes get none (`must refine`).

The idea of a memory of features beside CLIP is that of Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), whose images
have labels.

Shapes: B images, N images in the memory, K classes, C columns (K, or one more for none of the classes), V numbers a
vector, S labels kept of an image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.base.parameters import require
from must.method.model.description import MemoryFacts
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import NEIGHBOURS, SAME_IMAGE, Whitening, flatten_tokens, join_vectors, neighbour_weights

SAME_IMAGE_INT8 = 0.97  # SAME_IMAGE for vectors of an int8 tower, which differ a little from those in the memory
SMALLEST_PROBABILITY = 1e-4  # smallest probability that is multiplied


class Memory(nn.Module):
    """Probabilities [B, K] of a model and vectors [B, V] -> probabilities with the neighbours' votes, whose rows have a
    sum of at most 1."""

    vectors: Tensor  # float16 [N, V], unit vectors
    classes: Tensor  # int32 [N, S], class numbers of the largest refined labels
    lifts: Tensor  # float16 [N, S], VOTES log((1 - r + r Z / M) / (1 - r)) times n / (n + 5), 0 or more
    fade: Tensor  # float32 [2], the cosines where votes begin to count, and count fully
    held: Tensor  # float32 [K], 0 to 1, how far the pool holds images of the class
    correction: Tensor  # float16 [K + V, C] of `fit_correction`; [0, C] without answers
    answered: Tensor  # int64 [A], the first 8 bytes of the sha256 of the answered images, which measure nothing

    def __init__(self, tokens: Whitening, embedding: Whitening, buffers: dict[str, Tensor], facts: MemoryFacts) -> None:
        super().__init__()
        self.tokens, self.embedding, self.facts = tokens, embedding, facts
        self.same_image = SAME_IMAGE
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def join(self, flat_tokens: Tensor, feature: Tensor) -> Tensor:
        """Vectors float32 [B, V] of flattened tokens (`flatten_tokens`) and unit features [B, D]."""
        return join_vectors(self.tokens(flat_tokens), self.embedding(feature))

    def forward(self, probability: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities float32 [B, K], similarity float32 [B] from 0 to 1)."""
        cosines = vectors @ F.normalize(self.vectors.float(), dim=1).T  # half precision changes their length
        cosines = torch.where(cosines > self.same_image, -1.0, cosines)
        cosines, rows = cosines.topk(min(NEIGHBOURS, self.vectors.shape[0]), dim=1)
        weights = neighbour_weights(cosines)
        distance = (weights * cosines).sum(1)
        similarity = ((distance - self.fade[0]) / (self.fade[1] - self.fade[0])).clamp(0, 1)
        classes, share = probability.shape[1], similarity * (probability @ self.held)
        probability = apply_correction(probability, vectors, self.correction, self.facts.none, share)
        votes = (weights * share[:, None])[..., None] * self.lifts.float()[rows]
        total = torch.zeros_like(probability).scatter_add(1, self.classes.long()[rows].flatten(1), votes.flatten(1))
        # Not `total[:, classes:] -= ...`: torch 2.10 exports that with wrong shapes.
        margin = F.pad(self.held.new_zeros(classes), (0, total.shape[1] - classes), value=self.facts.none_margin)
        return (probability.log() + total - margin).softmax(-1)[:, :classes], similarity


class MemoryClassifier(nn.Module):
    """A model with its memory: images [B, 3, H, W], normalised -> log probabilities [B, K]."""

    def __init__(self, model: MaskedViT, memory: Memory) -> None:
        super().__init__()
        self.model, self.memory = model, memory

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(images)[0].log()

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities float32 [B, K], similarity float32 [B])."""
        return self.vote(*self.model.classify(images))

    def vote(self, logits: Tensor, feature: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `classify`, from the outputs of `self.model.classify`."""
        vectors = self.memory.join(flatten_tokens(self.model.tower, tokens), feature.float())
        return self.memory(logits.float().softmax(-1), vectors)


def apply_correction(
    probabilities: Tensor, values: Tensor, correction: Tensor, none: float, share: Tensor | None = None
) -> Tensor:
    """Float32 [N, C]: the probabilities [N, K], and `none` in a last column unless it is 0, corrected; with `share`
    [N], by this share of the correction and of `none`. Rows have the sum 1."""
    corrected = probabilities
    if none:
        column = torch.full_like(probabilities[:, :1], none)
        corrected = torch.cat([probabilities, column if share is None else column * share[:, None]], 1)
    if correction.shape[0]:
        change = torch.cat([probabilities, values.float()], 1) @ correction.float()
        corrected = corrected + (change if share is None else share[:, None] * change)
    return as_probabilities(corrected)


def as_probabilities(values: Tensor) -> Tensor:
    """[N, K], at least SMALLEST_PROBABILITY each, rows of sum 1."""
    values = values.clamp(min=SMALLEST_PROBABILITY)
    return values / values.sum(-1, keepdim=True)


def parse_memory(tensors: dict[str, Tensor], facts: MemoryFacts, model: MaskedViT) -> Memory:
    """Raises ValueError or KeyError: the tensors do not belong together, or to the model."""
    values = {"held": torch.ones(model.classifier.shape[1]), **tensors}  # a memory of before had none
    parts = [
        Whitening(values.pop(f"{part}.projection"), values.pop(f"{part}.offset")) for part in ("tokens", "embedding")
    ]
    memory = Memory(parts[0], parts[1], {name: values.pop(name) for name in Memory.__annotations__}, facts)
    require(not values, "other tensors")
    D, K = model.classifier.shape
    N, V = memory.vectors.shape
    require(memory.embedding.projection.shape[0] == D and memory.classes.shape == memory.lifts.shape, "shapes")
    require(len(memory.classes) == N > 0 and memory.fade.shape == (2,) and memory.held.shape == (K,), "shapes")
    require(memory.tokens.projection.shape[0] % model.tower.width == 0 and memory.facts.images == N, "shapes")
    require(all(part.projection.shape[1:] == part.offset.shape for part in parts), "shapes")
    require(sum(len(part.offset) for part in parts) == V, "shapes")
    C = K + (facts.none > 0)
    require(memory.correction.shape in ((0, C), (K + V, C)), "shapes")
    require(0 <= facts.none < 1 and 0 <= facts.none_margin < math.inf, "none")
    require(int(memory.classes.min()) >= 0 and int(memory.classes.max()) < C, "classes")
    finite = all(bool(value.isfinite().all()) for value in memory.state_dict().values())
    held = bool(((memory.held >= 0) & (memory.held <= 1)).all())
    require(finite and held and bool((memory.lifts >= 0).all()), "numbers")
    return memory.eval()
