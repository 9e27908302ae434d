"""The suite does not look at the machine it runs on: a pod of a cluster, a cloud's notebook, a laptop with logins. What
such a machine tells its programs (variables, a service account's folder, files of credentials) is taken away before
anything is imported, and the processes that tests start inherit that. A test that wants some of it sets it."""

import os
import re
from collections.abc import MutableMapping

TOLD = re.compile(
    r"""
      KUBERNETES_.* | KUBE.* | .*_SERVICE_HOST | .*_SERVICE_PORT(_.*)? | .*_PORT(_\d+_(TCP|UDP).*)?  # a pod
    | KFP_.* | KF_.* | ARGO_.* | PET_.* | RANK | NODE_RANK | WORLD_SIZE | TF_CONFIG  # a stage, a node
    | (LOCAL|GROUP|ROLE|MASTER|TORCHELASTIC|NCCL|GLOO)_.*
    | (AWS|BOTO|AZURE|GOOGLE|GCLOUD|GCE|GCS|CLOUDSDK|CLOUD_ML|AIP)_.* | STORAGE_EMULATOR_HOST       # clouds
    | (MSI|IDENTITY|ARM|DATABRICKS|ECS)_.* | NB_PREFIX                                              # their notebooks
    | (MLFLOW|HF|HUGGINGFACE|MODEL_REGISTRY)_.* | NETRC
    | (https?|ftp|all|no)_proxy                                                                     # a company
    | PYTHONDONTWRITEBYTECODE  # an image for containers; each process would compile torch anew
    | COLUMNS | LINES | NO_COLOR | FORCE_COLOR | PY_COLORS | TQDM_.* | MUST_.*                      # a person
    """,
    re.VERBOSE | re.IGNORECASE,
)
OURS = re.compile(r"MUST_TESTS_.*")  # the suite's own
LOGINS = (
    "KUBECONFIG", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "CLOUDSDK_CONFIG", "AZURE_CONFIG_DIR", "NETRC",
    "KF_PIPELINES_SA_TOKEN_PATH",
)  # fmt: skip
NOWHERE = dict.fromkeys(LOGINS, "/nonexistent/of-the-tests")
"""In place of ~/.kube, ~/.aws and the like. HOME itself stays: container engines keep their images there."""


def forget(environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes away what the machine tells by variables, and names files of credentials that are not there."""
    for name in [name for name in environ if TOLD.fullmatch(name) and not OURS.fullmatch(name)]:
        del environ[name]
    environ.update(NOWHERE)
    environ.update(AWS_EC2_METADATA_DISABLED="true", NO_GCE_CHECK="true")  # no cloud is asked who its machine is
