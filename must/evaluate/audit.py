"""Do look-alikes speak for the adapted model? The ladder of `must select`, asked about a finished one."""

from __future__ import annotations

import copy
from typing import Any

from must.config import EvaluateConfig
from must.data.loader import eval_batches
from must.distributed.process_group import World
from must.model.bundle import Bundle, preprocess_of
from must.select.choose import choose, shares_of
from must.select.looking import Looks, look, thinned


def audit(config: EvaluateConfig, bundle: Bundle, baseline: Bundle, here: World) -> dict[str, Any] | None:
    """What metrics.json holds as `audit`: Choice.to_dict() of the way from the baseline to the bundle.

    None where there is no way between the two: they are of different shape, or look at different pixels. Labels are
    not read. Every process must call this; at most 20,000 images are looked at.
    """
    start, end = baseline.model.state_dict(), bundle.model.state_dict()
    same_shape = {k: v.shape for k, v in start.items()} == {k: v.shape for k, v in end.items()}
    preprocess = preprocess_of(bundle.description)
    if not same_shape or preprocess != preprocess_of(baseline.description):
        return None
    source = thinned(
        eval_batches(
            config.shards, config.split, preprocess, config.batch_size, config.workers, here.rank, here.size,
            config.cache, config.cache_gb,
        )
    )  # fmt: skip
    judge = copy.deepcopy(baseline.model)
    judge.logit_factor = bundle.model.logit_factor
    looks = look(judge, end, source, preprocess, here.device)
    parts = here.gather((looks,))
    return choose(Looks.joined([part for (part,) in parts]), shares=shares_of(bundle.description)).to_dict()
