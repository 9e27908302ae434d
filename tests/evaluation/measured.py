"""What an evaluation of 200 labelled images found, for tests of those who read it."""

import numpy as np
import torch

from must.evaluation.metrics import Scores, score_batch
from must.evaluation.result import Accuracy, Compared, Data, LabelFree, Metrics, ModelFigures, Paired
from must.model.description import CheckResult


def scores_of(logits, labels):
    """One model's scores, of logits [N, K] and class numbers [N]."""
    return Scores(*score_batch(torch.from_numpy(logits).float(), torch.ones(len(logits)), np.asarray(labels)))


def accuracy(top1):
    values = {"top1": top1, "top5": 0.95, "mean_per_class": 0.7, "nll": 0.5, "ece": 0.1, "confidence": 0.8}
    return Accuracy(**values, intervals=dict.fromkeys(values, (0.1, 0.9)))


FIGURES = ModelFigures(confidence=0.8, histogram=[100, 100])
CHECK = CheckResult(
    images=200, changed=0.1, confidence_before=0.8, confidence_after=0.8, effective_before=2.0, effective_after=2.0
)
MEASURED = Metrics(
    images=200, labelled=200, skipped=0, classes=["cat", "dog"], adapted=accuracy(0.9), baseline=accuracy(0.7),
    intervals={"top1": (0.05, 0.2)}, paired=Paired(40, 0),
    label_free=LabelFree(FIGURES, FIGURES, Compared(0.9, CHECK)),
    data=Data(split="test", index_sha256="0" * 64),
)  # fmt: skip
