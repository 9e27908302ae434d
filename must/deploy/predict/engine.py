"""What the stage needs of a model, whoever computes: onnxruntime here, torch in a room above (infer)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from must.base import storage
from must.base.parameters import require
from must.config import PredictConfig
from must.data.image.preprocess import Preprocess
from must.deploy.predict.session import OnnxClassifier, model_uri


class Classifier(Protocol):
    where: str
    classes: list[str]
    preprocess: Preprocess
    metadata: dict[str, str]
    dimensions: int  # D of the embeddings; 0: it has none

    def answer(self, pixels: np.ndarray, embeddings: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [B, S, S, 3] -> probabilities float32 [B, K]; and, if they are asked for, embeddings float32 [B, D]."""

    def require_embeddings(self, what: str = "--embeddings") -> None:
        """Raises ValueError: it has none."""


class Model(NamedTuple):
    """A model that is there: what its predictions are known by, and how to open it.

    `open` takes whether threads sleep between two passes: better beside processes that decode.
    """

    sha256: str
    open: Callable[[bool], Classifier]


Opener = Callable[[PredictConfig], AbstractContextManager[Model]]


@contextmanager
def onnx_model(config: PredictConfig) -> Iterator[Model]:
    """The ONNX file of --model, copied from its bucket. Raises ValueError: there is none."""
    require(config.device == "auto", "--device is for a model that torch runs; onnxruntime takes what it was built for")
    uri = model_uri(config.model)
    with storage.local_copy(uri) as path:
        yield Model(storage.sha256_of(path), lambda patient: OnnxClassifier(path, uri, config.threads, patient))
