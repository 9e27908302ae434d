import json
from pathlib import Path

import pytest

from must.config import EvaluateConfig
from must.evaluation.evaluate import evaluate
from must.evaluation.result import metrics_of


@pytest.fixture(scope="session")
def evaluated(digits, tmp_path_factory):
    """(metrics, output folder) of a whole run with labels and a baseline."""
    output = tmp_path_factory.mktemp("report")
    metrics = evaluate(
        EvaluateConfig(
            model=digits.adapted,
            baseline=digits.classifier,
            shards=digits.shards,
            output=str(output),
            workers=0,
            batch_size=50,
            device="cpu",
        )
    )
    written = json.loads((Path(output) / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics.to_dict())) and metrics_of(written) == metrics
    return written, output
