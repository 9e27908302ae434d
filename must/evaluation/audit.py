"""Do look-alikes speak for the adapted model? The ladder of `must select`, asked about a finished one."""

import copy
from typing import Any

from must.config import EvaluateConfig
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import World
from must.method.model.bundle import Bundle, Description, have_one_shape, preprocess_of, selection_of
from must.method.select.alpha import choose_alpha, shares_of
from must.method.select.ladder import RUNGS
from must.method.select.rung_predictions import RungPredictions, predict_rungs, subsample


def ladder_predictions(config: EvaluateConfig, bundle: Bundle, baseline: Bundle, here: World) -> RungPredictions | None:
    """What the way from the baseline to the bundle says about the split's images, at most 20,000 of them.

    None where there is no way between the two: they are of different shape, or look at different pixels. Labels are
    not read. Every process must call this, and gets the looks of all.
    """
    if not have_one_shape(bundle, baseline):
        return None
    source = EvalSource.of(config, preprocess_of(bundle.description), here.rank, here.size)
    judge = copy.deepcopy(baseline.model)
    judge.logit_factor = bundle.model.logit_factor
    looks = predict_rungs(judge, bundle.model.state_dict(), subsample(source), here.device, encoder=baseline.encoder)
    return RungPredictions.joined([part for (part,) in here.gather((looks,))])


def kept_of(description: Description, found: dict[str, Any]) -> float:
    """How much of an adaptation is in the model, from 0 (zero-shot) to 1: what `must select` has kept of it, or for a
    model that it did not choose, how far look-alikes speak for it."""
    chosen = selection_of(description).get("alpha")
    return float(found["alpha"] if chosen is None else chosen)


def audit(looks: RungPredictions, bundle: Bundle) -> dict[str, Any]:
    """What metrics.json holds as `audit`: Choice.to_dict() of that way, without its abstention.

    Its `outcome` is about the bundle, the end of the way: `gain` only where look-alikes decided for half or more of the
    images that change class. Where `must select` has kept a part of an adaptation, the way is as short as that part,
    and needs as little evidence.
    """
    chosen = selection_of(bundle.description).get("alpha") or 1.0
    found = choose_alpha(looks, shares=shares_of(bundle.description), length=float(chosen)).to_dict()
    found.pop("abstention", None)
    if found["outcome"] == "gain":
        before, kept, after = looks.labels[[0, (0.0, *RUNGS).index(found["alpha"]), -1]]
        if (kept != after).mean() > (before != after).mean() / 2:
            found["outcome"] = "undecided"
    return found
