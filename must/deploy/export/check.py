"""Does the exported file say what PyTorch says? Compared on the same images, at several batch sizes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from must.data.augment.normalize import normalize
from must.deploy.predict.session import OnnxClassifier
from must.method.model.bundle import Bundle, preprocess_of

BATCH_SIZES_TRIED = (1, 3, 8)
TIE = 1e-4  # two classes as probable as this to each other are a tie, either of which is right
LARGEST_DIFFERENCE = 1e-3  # in a probability, of float32 arithmetic
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95}
"""Of an image's embedding with PyTorch's, by the precision."""


@dataclass(frozen=True)
class Check:
    """The comparison of one exported file with PyTorch in float32."""

    images: int
    batches: tuple[int, ...]
    agreement: float  # share of images with the same class, ties counted as the same
    largest_difference: float  # of any probability
    mean_difference: float
    batch_difference: float  # largest difference of a probability between batch sizes
    cosine: float | None = None  # smallest one of an image's embedding with PyTorch's; None: the file gives none

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self) | {"batches": list(self.batches)}
        return told if self.cosine is not None else {name: told[name] for name in told if name != "cosine"}

    def line(self) -> str:
        sizes = ", ".join(map(str, self.batches))
        besides = "" if self.cosine is None else f", smallest cosine of an embedding {self.cosine:.6f}"
        return (
            f"same class as PyTorch on {100 * self.agreement:.2f}% of {self.images} images at batch sizes {sizes}; "
            f"largest difference of a probability {self.largest_difference:.1e}{besides}"
        )


def reference(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """PyTorch's probabilities, float32 [N, K], of uint8 pixels [N, S, S, 3]."""
    images = normalize(torch.from_numpy(pixels), preprocess_of(bundle.description))
    return features_of(bundle.model, images).softmax(dim=-1).numpy()


def reference_embeddings(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """PyTorch's image features of length 1, float32 [N, D], by open_clip's own tower."""
    images = normalize(torch.from_numpy(pixels), preprocess_of(bundle.description))
    return F.normalize(features_of(bundle.model.visual, images), dim=-1).numpy()


def compare(
    expected: np.ndarray, classifier: OnnxClassifier, pixels: np.ndarray, embeddings: np.ndarray | None = None
) -> Check:
    """Runs the exported classifier over uint8 pixels [N, S, S, 3] at each batch size.

    `expected` [N, K] are PyTorch's probabilities; `embeddings` [N, D], if the file gives them, its unit features.
    """
    answers = [predict_onnx(classifier, pixels, batch) for batch in BATCH_SIZES_TRIED]
    results = [probability for probability, _ in answers]
    best = expected.max(axis=1)
    agree = np.ones(len(pixels), dtype=bool)
    for got in results:
        chosen = np.take_along_axis(expected, got.argmax(axis=1)[:, None], axis=1)[:, 0]
        agree &= chosen >= best - TIE
    differences = np.stack([np.abs(got - expected) for got in results])
    return Check(
        images=len(pixels),
        batches=BATCH_SIZES_TRIED,
        agreement=float(agree.mean()),
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean(dtype=np.float64)),
        batch_difference=float(np.ptp(np.stack(results), axis=0).max()),
        cosine=None if embeddings is None else min(smallest_cosine(embeddings, found) for _, found in answers),
    )


def smallest_cosine(expected: np.ndarray, found: np.ndarray | None) -> float:
    """Of unit vectors [N, D] with those that should be the same. -1: there are none, of another shape, no numbers, or
    of a length that differs from 1 by a thousandth."""
    if found is None or found.shape != expected.shape:
        return -1.0
    lengths = np.linalg.norm(found, axis=1)
    return float((found * expected).sum(axis=1).min()) if np.all(np.abs(lengths - 1) < 1e-3) else -1.0


def predict_onnx(classifier: OnnxClassifier, pixels: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities [N, K], and embeddings [N, D] of a file that gives them."""
    wanted = classifier.dimensions > 0
    parts = [classifier.answer(pixels[i : i + batch], wanted) for i in range(0, len(pixels), batch)]
    embeddings = [embedding for _, embedding in parts if embedding is not None]
    return np.concatenate([found for found, _ in parts]), np.concatenate(embeddings) if embeddings else None


def features_of(encode: Any, images: torch.Tensor) -> torch.Tensor:
    """[N, D], 32 images at a time."""
    with torch.inference_mode():
        return torch.cat([encode(part) for part in images.split(32)])
