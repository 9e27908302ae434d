"""`--preset auto`: settings computed from the data's size and the model's shape, for users who cannot tune.

The published settings (arXiv 2206.02967) are of ViT-B/16 and ViT-L/14 with 3,760 to 1.28 million images; tiny towers
were measured (docs/selection.md). Learning rates between them are interpolated linearly in the logarithms.
"""

import math
from typing import Any

IMAGES_AT_WIDTH_128 = 48_000  # to train on in all epochs at width 128, for small data sets
EPOCHS = (10, 24)
BATCHES = (16, 256)
STEPS_AN_EPOCH = 16
TINY_WIDTH, TINY_LR, TINY_CLASSES = 128, 1e-3, 10  # a measured tower: width, learning rate at batch 64, classes
LARGE_WIDTH, LARGE_LR = 768, 2e-5  # ViT-B, at the same batch, with 43 to 1,000 classes
WIDER = 2  # times the learning rate of ViT-B: as published for ViT-L, on all six data sets with both
MEMORY = 0.12, 0.25  # of the EMA teacher, as shares of all steps: at the start and after the ramp
RAMP = 0.15  # of the steps
CONFIDENT = 0.4  # share of the images that are confident at the start


REASONS = {
    "batch_size": "a power of two near a sixteenth of the images, or the number of classes if that is more; 16 to 256: "
    "mostly 16 steps an epoch or more, and the class balance is computed per batch",
    "epochs": "24, and fewer, down to 10, where 24 are more than 48,000 images for a tower of width 128",
    "lr": "1e-3 at width 128, 2e-5 at 768, 4e-5 beyond, for 64 images a step, with the square root of the batch; less "
    "for narrow towers beyond 10 classes",
    "min_lr": "a hundredth of lr",
    "ema_decay_init": "an average over 12% of the steps",
    "ema_decay": "an average over 25% of the steps: a shorter one copies the student's errors",
    "ema_warmup_steps": "15% of the steps",
    "mask_patch_size": "two patches of the model where there are enough of them, else one",
    "mask_ratio": "as published for small data sets",
    "mask_token": "the mean patch below width 768: where an image has 16 patches, two random ones can change the class",
    "pseudo_labels": "similar images correct the teacher's errors",
    "confident_share": "a fixed threshold is another share of the images for each model",
    "fairness_weight": "with less, some classes are no longer predicted",
    "align_weight": "as published",
    "logit_factor": "the model's own; it is 100 for CLIP only",
    "weak_padding": "a shift, for images no larger than 64 pixels",
    "flip": "digits, text and signs change with it",
    "strong_scale": "a smaller crop may lose the object",
    "randaugment": "weaker than published",
    "randaugment_ops": "operations that change no class",
    "alpha": "half of the way: more gains more on some data, and harms more on others",
    "class_prior": "the class file has the classes' shares",
}


def settings(images: int, classes: int, width: int, size: int, patch: int) -> dict[str, Any]:
    """The settings, a pure function of the arguments; REASONS has the reason of each.

    Args:
        images: of the split.
        width, size, patch: of the image tower; `size` and `patch` are sides of its input and of a patch, in pixels.
    """
    target = max(images / STEPS_AN_EPOCH, classes)
    batch = 2 ** round(math.log2(min(max(target, BATCHES[0]), BATCHES[1])))
    batch = min(batch, max(images, 1))
    total = IMAGES_AT_WIDTH_128 * math.sqrt(width / TINY_WIDTH)
    epochs = round(min(max(total / max(images, 1), EPOCHS[0]), EPOCHS[1]))
    steps = max(images // batch, 1) * epochs
    narrow = min(max(math.log(LARGE_WIDTH / width) / math.log(LARGE_WIDTH / TINY_WIDTH), 0.0), 1.0)  # 0: 768
    many_classes = min(math.sqrt(TINY_CLASSES / max(classes, 1)), 1.0) ** narrow
    slope = math.log(LARGE_LR / TINY_LR) / math.log(LARGE_WIDTH / TINY_WIDTH)
    lr = TINY_LR * (min(width, LARGE_WIDTH) / TINY_WIDTH) ** slope * math.sqrt(batch / 64) * many_classes
    lr *= WIDER if width > LARGE_WIDTH else 1
    side = size // patch
    cell = 2 * patch if side >= 8 and side % 2 == 0 else patch
    return {
        "batch_size": batch,
        "epochs": epochs,
        "lr": float(f"{lr * 256 / batch:.3g}"),
        "min_lr": float(f"{lr * 256 / batch / 100:.3g}"),
        "ema_decay_init": round(decay(MEMORY[0] * steps), 5),
        "ema_decay": round(decay(MEMORY[1] * steps), 5),
        "ema_warmup_steps": round(RAMP * steps),
        "mask_patch_size": cell,
        "mask_ratio": 0.1,
        "mask_token": "mean" if width < LARGE_WIDTH else "random",
        "pseudo_labels": "propagated",
        "confident_share": CONFIDENT,
        "fairness_weight": 2.0,
        "align_weight": 0.2,
        "logit_factor": "model",
        "weak_padding": size // 16 if size <= 64 else 0,
        "flip": 0.0,
        "strong_scale": [0.7, 1.0],
        "randaugment": "rand-m5-mstd0.5-inc1",
        "randaugment_ops": [
            "Rotate", "ShearX", "ShearY", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
        ],
        "alpha": 0.5,
    }  # fmt: skip


def decay(memory: float) -> float:
    """The EMA decay that averages over so many steps: 0.9 to 0.9998."""
    return min(max(1 - 1 / max(memory, 1), 0.9), 0.9998)
