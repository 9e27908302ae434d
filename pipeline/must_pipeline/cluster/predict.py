"""What `predict.settings` of cluster.yaml ask of `must predict`, and so of the model that it is to work with."""

from __future__ import annotations

from must.base.parameters import load, require
from must.config import PredictConfig
from must_pipeline.cluster.config import Cluster, Prediction

OWN = ("model", "images", "output", "shards", "index_sha256", "part")  # that the pipeline sets


def predict_config(predict: Prediction) -> PredictConfig:
    """The stage's parameters, with places that stand for those to come. Raises ValueError, naming the key."""
    for name in predict.settings:
        require(name not in OWN, f"predict.settings.{name}: is set by the pipeline; take it out")
    try:
        return load(PredictConfig, {**predict.settings, "model": "-", "shards": "-", "output": "-"})
    except ValueError as error:
        raise ValueError(f"predict.settings: {error}") from None


def predicts_embeddings(cluster: Cluster) -> bool:
    """Whether there is a stage that needs a model with embeddings."""
    return cluster.predict.pods > 0 and predict_config(cluster.predict).embeddings
