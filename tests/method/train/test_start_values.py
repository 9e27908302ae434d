"""`--mask-token mean`."""

import torch

from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.model.bundle import zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess
from must.method.train import trainer
from must.method.train.trainer import start_mask_token


def test_the_mask_token_starts_as_the_images_mean_patch(digits, monkeypatch):
    monkeypatch.setattr(trainer, "MASK_TOKEN_IMAGES", 40)
    fresh = zero_shot_bundle(load_text_classifier(digits.classifier))
    preprocess, patches = get_preprocess(fresh.description), []
    reader = open_reader(digits.shards, "train")
    start_mask_token(fresh, EvalSource(reader, preprocess, 16, 0), torch.device("cpu"))
    source = EvalSource(reader, preprocess, 40, 0)
    fresh.model.tower.forward_features(
        normalize(next(iter(source)).pixels, preprocess), lambda seen: patches.append(seen) or seen, None
    )
    torch.testing.assert_close(fresh.model.mask_token[0, 0], patches[0].mean((0, 1)), atol=1e-5, rtol=1e-4)
