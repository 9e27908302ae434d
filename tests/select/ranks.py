"""What the images look like, told by one process or by a rank of several."""

from must.config import TrainConfig
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.introduce import introduce


def introduced(shards, classifier, place, **changes):
    """The facts, as `must train` would gather them."""
    config = TrainConfig(shards=shards, classifier=classifier, output=place, workers=0, device="cpu", **changes)
    bundle = zero_shot_bundle(load_text_classifier(classifier))
    with init_distributed("cpu", 60) as here:
        return introduce(config, bundle.model, bundle, "index", place, here)
