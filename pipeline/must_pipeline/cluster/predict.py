"""What `predict.settings` of cluster.yaml ask of `must predict`, and so of the model that it is to work with."""

from must.base.parameters import settings_of, with_name
from must.config import PredictConfig
from must_pipeline.cluster.config import Cluster, Prediction

OWN = ("model", "images", "output", "shards", "index_sha256", "part")  # that the pipeline sets


def predict_config(predict: Prediction) -> PredictConfig:
    """The stage's parameters, with places that stand for those to come. Raises ValueError, naming the key."""
    settings = settings_of(PredictConfig, predict.settings, "predict.settings", OWN)
    return with_name("predict.settings", PredictConfig, shards="-", output="-", **settings)


def predicts_embeddings(cluster: Cluster) -> bool:
    """Whether there is a stage that needs a model with embeddings."""
    return cluster.predict.pods > 0 and predict_config(cluster.predict).embeddings
