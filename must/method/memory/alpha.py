"""Weight interpolation between the zero-shot weights and the trained ones (WiSE-FT, arXiv 2109.01903).

Training writes the model at `--alpha` between them, and the fully trained one beside it, in OUTPUT/adapted, from which
`must refine --alpha` makes another. There are three candidates: 0, ALPHA and 1.
"""

import copy

import numpy as np
import torch
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.config.defaults import ALPHA
from must.config.work import ADAPTED, DESCRIPTION_FILE
from must.method.answers.estimate import difference
from must.method.model.bundle import Bundle, load_bundle
from must.method.model.description import get_preprocess
from must.method.model.masked_vit import MaskedViT

CANDIDATES = (0.0, ALPHA, 1.0)
CLASSIFIER_PREFIXES = ("visual.", "classifier")  # the other weights are for training only

Weights = dict[str, Tensor]


def best_candidate(correct: np.ndarray, default: int) -> int:
    """The row of bool [C, A] with the highest accuracy, but `default` unless another is better by more than one
    standard error."""
    best = int(correct.mean(1).argmax())
    return best if difference(correct[default], correct[best], z=1).low > 0 else default


def load_trained(model: str) -> Bundle:
    """The fully trained bundle of a bundle: the one in its folder adapted/, or itself where its alpha is 1."""
    folder = storage.join(model, ADAPTED)
    if storage.exists(storage.join(folder, DESCRIPTION_FILE)):
        return load_bundle(folder)
    bundle = load_bundle(model)
    selection = bundle.description.provenance.selection
    if not bundle.description.provenance.config or (selection and selection.alpha != 1):
        raise UserError(f"--model {model}: has no trained weights in {ADAPTED}/, so that alpha cannot change")
    return bundle


def check_ends(model: str, trained: Bundle, zero_shot: Bundle) -> None:
    """The zero-shot model must be one that the trained one may have begun with: of the same shapes and pixels."""
    ends = trained, zero_shot
    shapes, other_shapes = ({name: value.shape for name, value in b.model.state_dict().items()} for b in ends)
    pixels, other_pixels = (get_preprocess(b.description) for b in ends)
    require(
        shapes == other_shapes and pixels == other_pixels,
        f"--classifier: is of {zero_shot.description.backbone}, --model {model} is a {trained.description.backbone} of "
        "another shape; take the classifier file that the model was trained with",
    )


def interpolate(zero_shot: MaskedViT, trained: MaskedViT, alpha: float) -> MaskedViT:
    """A network with the weights zero-shot + alpha (trained - zero-shot), at 0 and 1 exactly those of the ends, and the
    trained one's logit factor and training-only weights (decoder, mask token, patch norm)."""
    network = copy.deepcopy(zero_shot)
    network.logit_factor = trained.logit_factor
    start, end = zero_shot.state_dict(), trained.state_dict()
    start |= {name: value for name, value in end.items() if not name.startswith(CLASSIFIER_PREFIXES)}
    weights = end if alpha else start
    if alpha not in (0, 1):
        weights = {
            name: torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else value
            for name, value in start.items()
        }
    network.load_state_dict(weights)
    return network.eval()
