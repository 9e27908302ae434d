"""`--preset auto`: settings that follow from the data's size and the model's shape, for users who cannot tune.

What it is made of: the bundled digits' settings at their size (1,097 images, a tower of width 128), the published ones
(arXiv 2206.02967) at theirs, views that every kind of picture bears, and the ladder. docs/training.md says what was
tried.
"""

import math
from typing import Any

from must.base.progress import loading
from must.data.format.index import load_index
from must.method.model.classifier import read_header, require_shares

ALPHA = 0.5  # WiSE-FT's own default (arXiv 2109.01903)

IMAGES = 44_000  # to look at in training, where the data are few
EPOCHS = (10, 60)
LEARNED = 2_475  # images of which 60 epochs are not too many; the square root gives 1,100 of them 40
BATCHES = (16, 256)
STEPS_AN_EPOCH = 16
TINY, ITS_LR, ITS_CLASSES = 128, 1e-3, 10  # width of a tower, its learning rate at 64 images a step, and of how many
LARGE, ITS_LR_TOO = 768, 2e-5  # ViT-B, at the same batch, of 43 to 1,000 classes
EMA_END, EMA_START = 0.15, 0.015  # the teacher's horizon, as shares of all steps


def auto(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of `must train` for the shards, the split and the classifier in `values`.

    Raises:
        ValueError: one of them is wrong.
    """
    index = load_index(values["shards"])
    header = read_header(values["classifier"])
    if values.get("class_prior") == "given":
        require_shares(header.get("shares"), values["classifier"])
    images = sum(shard.samples for shard in index.shards_of(values.get("split", "train")))
    loading()
    from must.method.model.backbone import tower_shape  # imports torch: wrong input was told before that

    model, pretrained = values.get("model") or "", values.get("pretrained") or ""
    if not model:
        kept = "" if pretrained else header["model_folder"]
        model, pretrained = kept or header["model"], pretrained or ("" if kept else header["pretrained"])
    found = settings(images, len(header["classes"]), *tower_shape(model, pretrained))
    return found | ({"class_prior": "given"} if header.get("shares") else {})


def settings(images: int, classes: int, width: int, size: int, patch: int, looked_at: float = IMAGES) -> dict[str, Any]:
    """Pure function of the numbers.

    - batch_size: a power of two, about a sixteenth of the images, and as many as there are classes where that is
      possible: the class balance is a batch's.
    - epochs: as many as show 44,000 images at width 128, 10 to 60; a wider tower learns in smaller steps, and looks at
      more of them, with the square root of its width. At width 128 no more than 40 sqrt(images / 1,100), for few images
      were seen to be learned by heart; and with the classes they fall as the learning rate does: with many, what lies
      beyond a third of that length was seen to harm.
    - lr: for 64 images a step 1e-3 at width 128 and 2e-5 at 768, on a straight line of the logarithms in between and
      beyond; it grows with the square root of the batch. At width 128 it falls with the square root of the classes
      beyond ten, at 768, where it was found with hundreds of them, not at all.
    - the teacher's horizon grows from 1.5% to 15% of the steps, over 15% of the steps.
    - of a tower narrower than 768 the mask token starts as the mean patch, and the self-training loss is divided by all
      images of the batch: with few patches, or few confident images, the published two unlearn whole images.
    - mask cells of two patches a side where there are eight or more, else of one.
    """
    wanted = max(images / STEPS_AN_EPOCH, classes)
    batch = 2 ** round(math.log2(min(max(wanted, BATCHES[0]), BATCHES[1])))
    batch = min(batch, max(images, 1))
    looked_at *= math.sqrt(width / TINY)
    fewer = for_classes(classes, width)
    most = EPOCHS[1] * min(math.sqrt(images / LEARNED), 1.0) ** narrow(width)
    epochs = max(round(max(min(looked_at / max(images, 1), most), EPOCHS[0]) * fewer), 1)
    steps = max(images // batch, 1) * epochs
    slope = math.log(ITS_LR_TOO / ITS_LR) / math.log(LARGE / TINY)
    lr = ITS_LR * (width / TINY) ** slope * math.sqrt(batch / 64) * fewer
    side = size // patch
    cell = 2 * patch if side >= 8 and side % 2 == 0 else patch
    return {
        "batch_size": batch,
        "epochs": epochs,
        "lr": float(f"{lr * 256 / batch:.3g}"),
        "min_lr": float(f"{lr * 256 / batch / 100:.3g}"),
        "ema_decay_init": round(decay(EMA_START * steps), 5),
        "ema_decay": round(decay(EMA_END * steps), 5),
        "ema_warmup_steps": round(EMA_END * steps),
        "mask_patch_size": cell,
        "mask_ratio": 0.1,
        "mask_token": "mean" if width < LARGE else "random",
        "confidence_threshold": 0.7,
        "fairness_weight": 1.0,
        "align_weight": 0.2,
        "loss_reduction": "batch" if width < LARGE else "global",
        "logit_factor": "model",
        "weak_padding": size // 16 if size <= 64 else 0,
        "flip": 0.0,
        "strong_scale": [0.7, 1.0],
        "randaugment": "rand-m5-mstd0.5-inc1",
        "randaugment_ops": [
            "Rotate", "ShearX", "ShearY", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
        ],
        "alpha": ALPHA,
    }  # fmt: skip


def for_classes(classes: int, width: int) -> float:
    """What learning rate and epochs are multiplied by because there are so many classes: at most 1."""
    return min(math.sqrt(ITS_CLASSES / max(classes, 1)), 1.0) ** narrow(width)


def narrow(width: int) -> float:
    """1 for a tower of width 128 and narrower ones, 0 for one of 768 and wider ones, between them as the logarithm."""
    return min(max(math.log(LARGE / width) / math.log(LARGE / TINY), 0.0), 1.0)


def decay(horizon: float) -> float:
    """EMA decay whose memory is so many steps: 0.9 to 0.9998."""
    return min(max(1 - 1 / max(horizon, 1), 0.9), 0.9998)
