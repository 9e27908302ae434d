import json

import pytest

from must.evaluation.evaluate import evaluate
from must.evaluation.result import parse_metrics
from tests.evaluation.digits import evaluation


@pytest.fixture(scope="session")
def evaluated(digits, tmp_path_factory):
    """(metrics, output folder) of a whole run with labels and a baseline."""
    output = tmp_path_factory.mktemp("report")
    metrics = evaluate(evaluation(digits, output, batch_size=50))
    written = json.loads((output / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics.to_dict())) and parse_metrics(written) == metrics
    return written, output
