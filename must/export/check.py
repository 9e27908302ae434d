"""Does the exported file say what PyTorch says? Compared on the same images, at several batch sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from must.augment.normalize import normalize
from must.model.bundle import Bundle, preprocess_of
from must.predict.session import OnnxClassifier

BATCHES = (1, 3, 8)
TIE = 1e-4  # two classes as probable as this to each other are a tie, either of which is right
LARGEST_DIFFERENCE = 1e-3  # in a probability, of float32 arithmetic


@dataclass(frozen=True)
class Check:
    """Of one exported file against PyTorch in float32."""

    images: int
    batches: tuple[int, ...]
    agreement: float  # share of images with the same class, ties counted as the same
    largest_difference: float  # of any probability
    mean_difference: float
    batch_difference: float  # largest difference of a probability between batch sizes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"batches": list(self.batches)}

    def line(self) -> str:
        sizes = ", ".join(map(str, self.batches))
        return (
            f"same class as PyTorch on {100 * self.agreement:.2f}% of {self.images} images at batch sizes {sizes}; "
            f"largest difference of a probability {self.largest_difference:.1e}"
        )


def reference(bundle: Bundle, pixels: np.ndarray, batch: int = 32) -> np.ndarray:
    """PyTorch's probabilities, float32 [N, K], of uint8 pixels [N, S, S, 3]."""
    preprocess = preprocess_of(bundle.description)
    with torch.inference_mode():
        parts = [
            bundle.model(normalize(torch.from_numpy(pixels[i : i + batch]), preprocess)).softmax(dim=-1)
            for i in range(0, len(pixels), batch)
        ]
    return torch.cat(parts).numpy()


def compare(expected: np.ndarray, classifier: OnnxClassifier, pixels: np.ndarray) -> Check:
    """Runs the exported classifier over uint8 pixels [N, S, S, 3] at each batch size; `expected` [N, K]."""
    results = [predict(classifier, pixels, batch) for batch in BATCHES]
    best = expected.max(axis=1)
    agree = np.ones(len(pixels), dtype=bool)
    for got in results:
        chosen = np.take_along_axis(expected, got.argmax(axis=1)[:, None], axis=1)[:, 0]
        agree &= chosen >= best - TIE
    differences = np.stack([np.abs(got - expected) for got in results])
    return Check(
        images=len(pixels),
        batches=BATCHES,
        agreement=float(agree.mean()),
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean(dtype=np.float64)),
        batch_difference=float(np.ptp(np.stack(results), axis=0).max()),
    )


def predict(classifier: OnnxClassifier, pixels: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([classifier(pixels[i : i + batch]) for i in range(0, len(pixels), batch)])
