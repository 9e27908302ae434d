"""Weight interpolation between the zero-shot weights and the adapted ones (WiSE-FT, arXiv 2109.01903).

`must train` writes the model at `--alpha` between them, and the fully adapted one beside it, in OUTPUT/adapted; `must
select` makes a model with another alpha from the same two ends.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from must.base import storage
from must.base.files import ADAPTED, DESCRIPTION_FILE
from must.base.parameters import require
from must.base.progress import watched
from must.config import SelectConfig
from must.data.augment.normalize import normalize
from must.data.format.index import load_index
from must.data.loading.loader import EvalSource
from must.method.answers.estimate import AccuracyEstimate, difference
from must.method.answers.review import Review
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import (
    LOG_FILE,
    Bundle,
    Description,
    have_same_shape,
    load_bundle,
    preprocess_of,
    require_classes,
    save_bundle,
    zero_shot_bundle,
)
from must.method.model.classifier import load_text_classifier
from must.method.model.masked_vit import MaskedViT
from must.method.model.provenance import Selection
from must.method.select.check import CHECKED_IMAGES, Predicted, agreement_gain, check_of, selection_text
from must.method.select.features import extract_features, subsample
from must.method.select.propagate import nearest, whitened

logger = logging.getLogger(__name__)

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the candidates where labels or answers choose
DEFAULT_ALPHA = 0.4
HALF, CLEAR = 0.5, 5.0  # alpha is 1 if the agreement from HALF to 1 grows by more than CLEAR standard errors
CLASSIFIER_PREFIXES = ("visual.", "classifier")  # the other weights are for training only

Weights = dict[str, Tensor]


def fully_adapted_bundle(model: str) -> str:
    """The bundle with alpha 1, which training writes beside one with a smaller alpha."""
    full = storage.join(model, ADAPTED)
    return full if storage.exists(storage.join(full, DESCRIPTION_FILE)) else model


def select(config: SelectConfig) -> Selection:
    """The stage: writes a bundle with another alpha; its provenance has the reason and a check.
    Raises ValueError: no bundle, no such split, or a classifier file of other classes or of another model."""
    bundle, zero_shot = load_adapted_and_zero_shot(fully_adapted_bundle(config.model), config.baseline)
    description = bundle.description
    with init_distributed(config.device, timeout=600) as world:
        require(world.size == 1, "must select runs in one process")
        frozen, adapted, device = zero_shot_network(bundle, zero_shot), bundle.model.state_dict(), world.device

        def chosen(alpha: float | str) -> Selection:
            source = subsample(EvalSource.of(config, preprocess_of(description)), CHECKED_IMAGES)
            return choose_alpha(frozen, adapted, source, device, description.classes, alpha)

        labels, split = known_labels(config, description)
        choice = chosen(config.alpha)
        if config.alpha == "auto" and labels:
            source = EvalSource.of(config, preprocess_of(description), split=split)
            source.numbers = sorted(labels)
            correct = correct_at(frozen, adapted, source, labels, device)
            alpha = best_alpha(correct, choice.alpha)
            by = f"{len(labels):,} {'answers' if config.answers else f'labels of {split}'}"
            measured = AccuracyEstimate.from_correct(correct[0], correct[ALPHAS.index(alpha)])
            choice = replace(choice if alpha == choice.alpha else chosen(alpha), by=by, measured=measured)
        network = zero_shot_network(bundle, zero_shot)
        network.load_state_dict(between(frozen.cpu().state_dict(), bundle.model.cpu().state_dict(), choice.alpha))
        save_bundle(config.output, network, with_selection(description, choice))
    copy_log(config.model, config.output)
    logger.info(f"{selection_text(choice)}\n-> {config.output}")
    return choice


def choose_alpha(
    zero_shot: MaskedViT,
    adapted: Weights,
    source: EvalSource,
    device: torch.device,
    classes: list[str],
    alpha: float | str,
    pause: Callable[[], None] | None = None,
) -> Selection:
    """Takes `alpha`, or chooses it for "auto", and checks the model with it. No label is read.

    "auto" is DEFAULT_ALPHA, or 1 if similar images share a class more often at 1 than at HALF, by more than CLEAR
    standard errors.

    Args:
        zero_shot: with the adapted model's logit factor.
        adapted: weights of the same network.
        source: at most 2,000 images are enough.
        pause: called before every batch; it may raise to stop.
    """
    alphas = (0.0, DEFAULT_ALPHA, HALF, 1.0) if alpha == "auto" else (0.0, float(alpha))
    path = WeightPath(zero_shot.to(device), adapted, alphas[1:])
    extracted = extract_features(zero_shot, source, device, path, pause)
    neighbours, _ = nearest(whitened(extracted.features.to(device).float()))
    probabilities = extracted.probabilities.to(device)
    chosen, by = len(alphas) - 1, "--alpha"
    if alpha == "auto":
        labels = probabilities.argmax(-1)
        gain = agreement_gain(labels[alphas.index(HALF)], labels[-1], neighbours)
        chosen = alphas.index(1.0 if gain > CLEAR else DEFAULT_ALPHA)
        by = (
            f"from alpha 0.5 to 1 the agreement of similar images changes by {gain:+.1f} standard errors; "
            f"alpha is 1 above {CLEAR:+g}"
        )
    before, after = Predicted.of(probabilities[0]), Predicted.of(probabilities[chosen])
    return Selection(alphas[chosen], by, check_of(neighbours, before, after, classes))


class WeightPath:
    """The models between the zero-shot weights and the adapted ones; a call with images yields the logits of each."""

    def __init__(self, zero_shot: MaskedViT, adapted: Weights, alphas: Sequence[float]) -> None:
        device = next(zero_shot.parameters()).device
        self.start = {name: value.detach().clone() for name, value in zero_shot.state_dict().items()}
        self.end = {name: value.detach().to(device) for name, value in adapted.items()}
        self.model, self.alphas = copy.deepcopy(zero_shot).eval(), alphas

    def __call__(self, images: Tensor) -> Iterator[Tensor]:
        for alpha in self.alphas:
            self.model.load_state_dict(between(self.start, self.end, alpha))
            yield self.model(images)


def known_labels(config: SelectConfig, description: Description) -> tuple[dict[int, int], str]:
    """({number in the split: class number}, the split) of the answers or the labelled split that choose alpha."""
    if config.answers:
        review = Review.load(config.answers)
        review.require(description.classes, load_index(config.shards).sha256, f"--answers {config.answers}")
        answered = review.labels(config.answers, drawn=True)
        problem = "there are no answers yet about pictures that were drawn at random, and others measure nothing"
        require(bool(answered), f"--answers {config.answers}: {problem}")
        return answered, review.split
    if not config.labelled:
        return {}, ""
    reader = EvalSource.of(config, preprocess_of(description), split=config.labelled).reader
    numbers = {name: number for number, name in enumerate(description.classes)}
    texts = [reader.description(sample).get("label") for sample in range(len(reader))]
    known = {sample: numbers[text] for sample, text in enumerate(texts) if text in numbers}
    require(bool(known), f"--labelled {config.labelled}: none of its images has a label that is one of the classes")
    return known, config.labelled


@torch.inference_mode()
def correct_at(
    zero_shot: MaskedViT, adapted: Weights, source: EvalSource, labels: dict[int, int], device: torch.device
) -> np.ndarray:
    """Bool [len(ALPHAS), A]: whether the model with each alpha is right about the source's images."""
    path = WeightPath(zero_shot.to(device), adapted, ALPHAS)
    rows = []
    for batch in watched(source, "alpha"):
        images = normalize(batch.pixels.to(device), source.preprocess)
        truth = torch.tensor([labels[number] for number in batch.samples.tolist()])
        rows.append(torch.stack([logits.argmax(1).cpu() == truth for logits in path(images)]))
    require(bool(rows), "none of the labelled images can be decoded")
    return torch.cat(rows, 1).numpy()


def best_alpha(correct: np.ndarray, default: float) -> float:
    """The alpha with the highest accuracy in `correct`, bool [len(ALPHAS), A], but `default` unless the difference
    from it is more than its standard error."""
    best = int(correct.mean(1).argmax())
    return ALPHAS[best] if difference(correct[ALPHAS.index(default)], correct[best], z=1).low > 0 else default


def load_adapted_and_zero_shot(model: str, baseline: str) -> tuple[Bundle, Bundle]:
    """(the adapted model, the zero-shot model), between which weights are interpolated.
    Raises ValueError: no bundle, or a classifier file of other classes or of another model."""
    bundle, classifier = load_bundle(model), load_text_classifier(baseline)
    description = bundle.description
    require_classes(f"--baseline {baseline}", description.classes, list(classifier.classes))
    zero_shot = zero_shot_bundle(classifier)
    require(
        have_same_shape(bundle, zero_shot),
        f"--baseline {baseline}: is of {zero_shot.description.backbone}, the model is a {description.backbone} of "
        "another shape; take the classifier file that the model was trained with",
    )
    return bundle, zero_shot


def zero_shot_network(bundle: Bundle, zero_shot: Bundle) -> MaskedViT:
    """A copy of the zero-shot model with the adapted model's logit factor and training-only weights."""
    frozen = MaskedViT(copy.deepcopy(zero_shot.model.visual), zero_shot.model.classifier, bundle.model.logit_factor)
    frozen.load_state_dict(start_weights(zero_shot.model.state_dict(), bundle.model.state_dict()))
    return frozen.eval()


def start_weights(zero_shot: Weights, adapted: Weights) -> Weights:
    """The zero-shot weights, with the adapted training-only weights: decoder, mask token, patch norm."""
    return zero_shot | {name: value for name, value in adapted.items() if not name.startswith(CLASSIFIER_PREFIXES)}


def between(start: Weights, end: Weights, alpha: float) -> Weights:
    """start + alpha (end - start); at 0 and 1 exactly `start` and `end`."""
    if alpha in (0, 1):
        return end if alpha else start
    return {
        name: torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else value
        for name, value in start.items()
    }


def with_selection(description: Description, choice: Selection) -> Description:
    """The bundle's description with alpha, its reason, and the check."""
    return replace(description, provenance=replace(description.provenance, selection=choice))


def copy_log(model: str, output: str) -> None:
    """Copies the training log beside the weights."""
    log = storage.join(model, LOG_FILE)
    if storage.exists(log) and log != storage.join(output, LOG_FILE):
        storage.write_bytes(storage.join(output, LOG_FILE), storage.read_bytes(log))
