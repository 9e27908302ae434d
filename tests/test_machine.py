"""A sample of the suite passes in the worst of places: a pod with a service account, proxies, and logins everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine import forget

ROOT = Path(__file__).parents[1]
WORST = {
    "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "9", "KUBERNETES_PORT_443_TCP_ADDR": "127.0.0.1",
    "ML_PIPELINE_SERVICE_HOST": "127.0.0.1", "KF_PIPELINES_SA_TOKEN_PATH": "/var/run/secrets/token", "KFP_TOKEN": "t",
    "KFP_HOST": "http://127.0.0.1:9", "KFP_POD_NAME": "notebook-0", "KUBECONFIG": "/var/run/kubeconfig",
    "HTTP_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9",
    "AWS_PROFILE": "none-such", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
    "GOOGLE_APPLICATION_CREDENTIALS": "/none/such.json", "AZURE_STORAGE_CONNECTION_STRING": "nonsense",
    "IDENTITY_ENDPOINT": "http://127.0.0.1:9", "IDENTITY_HEADER": "h",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_RUN_ID": "r", "HF_TOKEN": "h",
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MUST_RETRIES": "nonsense",
    "COLUMNS": "20", "FORCE_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
SAMPLE = [
    "tests/components/test_train_job.py::test_the_role_in_deploy_allows_what_the_launcher_asks_for",
    "tests/components/test_serving.py",
    "tests/pipeline/test_kfp_api.py::test_a_run_is_submitted_and_waited_for",
    "tests/pipeline/test_kfp_api.py::test_the_usual_ways_to_log_in",
    "tests/base/storage/test_storage.py::test_written_bytes_are_read_back_whole_and_by_range",
    "tests/base/storage/test_storage.py::test_without_credentials_one_line_says_how_to_log_in",
    "tests/runtime/test_notes.py::test_each_way_to_fail_has_its_summary",
    "tests/api/test_cli.py::test_a_long_help_has_headings_and_begins_with_what_matters_most",
]  # fmt: skip
POD = """
mount -t tmpfs none /run && account=/var/run/secrets/kubernetes.io/serviceaccount && mkdir -p "$account" &&
echo token >"$account/token" && echo vision >"$account/namespace" && : >"$account/ca.crt" && exec "$@"
"""


def test_what_the_machine_tells_is_taken_away():
    environ = {**WORST, "PATH": "/bin", "DOCKER_HOST": "unix:///d", "MUST_TESTS_SHARED": "/s", "SSL_CERT_FILE": "/c"}
    forget(environ)
    kept = {"PATH", "DOCKER_HOST", "MUST_TESTS_SHARED", "SSL_CERT_FILE"}
    assert kept <= environ.keys() and "/var/run/secrets/token" not in environ.values()
    assert not (WORST.keys() & environ.keys()) - {"KUBECONFIG", "KF_PIPELINES_SA_TOKEN_PATH"}
    assert not Path(environ["KUBECONFIG"]).exists()


@pytest.mark.slow
def test_the_suites_sample_in_a_pod(tmp_path):
    pod = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", POD, "pod"]
    if not shutil.which("unshare") or subprocess.run([*pod, "true"], capture_output=True, check=False).returncode:
        pod = []  # no rights to have folders of its own: the variables alone
    command = [*pod, sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *SAMPLE]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MUST_TESTS_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | WORST, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    print(f"in a pod: {bool(pod)}; {done.stdout.splitlines()[-1]}")
