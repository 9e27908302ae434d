"""The calls of Kubeflow Pipelines' v2beta1 API that submit.py and schedule.py need, and how they log in."""

import argparse
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kfp_server_api as api  # imported only here: kfp 3 is to rename this client
import urllib3.exceptions

from must import __version__
from must.base.errors import TransientError, UserError
from must.base.storage import is_transient, parse_object_or_none
from must.base.text import make_one_line
from must_pipeline import DESCRIPTION
from must_pipeline.cluster import load_cluster

__all__ = ["Kfp", "api", "api_errors"]

POD_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # a pod's token, if its spec projects one
SECOND = 1.1  # Kubeflow's times are whole seconds: of two versions of one second, either may count as the newest
MAX_MESSAGE = 1000  # characters of the server's message: the missing permission comes last
IDENTITY = 1800.0  # seconds for which a Google identity token is used; it is valid for an hour
UPLOADING = "; if no reason is given: may this account create pipelines in the namespace (deploy/scheduler.yaml)?"
REFUSED_ACCOUNT = (  # 2.18 checks what 2.17 does not
    "Pipelines 2.18 starts a run as the service account {} only if you may `use` it{}, by deploy/scheduler.yaml, and "
    "its administrator lists it in ALLOWEDSERVICEACCOUNTS. Or leave service_account out of cluster.yaml "
    "(docs/kubeflow.md, step 2)"
)
LOGIN = (
    "log in with one of: $KFP_TOKEN or --token-file (a bearer token), --iap-client-id, "
    "--cookie NAME=VALUE or $KFP_COOKIE (an OIDC session), --header NAME=VALUE"
)


class Kfp:
    """A Kubeflow Pipelines server, and the namespace and the service account that cluster.yaml names for it. Its errors
    are raised as ValueError, one line each."""

    def __init__(self, options: argparse.Namespace) -> None:
        cluster = load_cluster(options.cluster)
        self.namespace, self.account = options.namespace or cluster.namespace, cluster.service_account
        if not options.host:
            raise UserError("--host is missing: the URL of Kubeflow Pipelines; or set $KFP_HOST")
        self.host = options.host.rstrip("/")
        configuration = api.Configuration(host=self.host)
        configuration.retries = 2
        if options.ca_cert:
            configuration.ssl_ca_cert = str(options.ca_cert)
        self.token = Token(options)
        if self.token.value:
            configuration.api_key["authorization"] = self.token.value
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = self.token.refresh
        name, _, value = (options.header or "").partition("=")
        client = JsonClient(configuration, header_name=name or None, header_value=value, cookie=options.cookie)
        self.client, self.pipelines = client, api.PipelineServiceApi(client)
        self.uploads = api.PipelineUploadServiceApi(client)
        self.experiments = api.ExperimentServiceApi(client)
        self.runs = api.RunServiceApi(client)
        self.recurring = api.RecurringRunServiceApi(client)

    def version(self) -> str:
        """The version of Kubeflow Pipelines, such as 2.17.0; '' if it does not tell. The client's own model leaves it
        out; the server of Kubeflow's page, which may stand in front of the API's, has another name for it."""
        answer: Any = {}
        with suppress(UserError), api_errors(self.host):
            path = "/apis/v2beta1/healthz"
            answer = self.client.call_api(
                path, "GET", response_type="object", auth_settings=["Bearer"], _return_http_data_only=True
            )
        if not isinstance(answer, dict):  # another server's
            return ""
        tag = re.match(r"v?(\d+\.\d+[\w.-]*)", str(answer.get("tag_name") or answer.get("apiServerTagName")))
        return tag[1] if tag else ""

    def upload(self, file: Path, name: str) -> tuple[str, str, bool]:
        """The ids of the pipeline and of its newest version, which has this file's content, and whether it is new. A
        version's name has the content's checksum: the same file is not uploaded twice in a row."""
        content = f"{__version__}-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
        with api_errors(self.host):
            pipeline = self.pipeline(name)
            known = self.versions(pipeline)
            if known and known[0].display_name.startswith(content):
                return pipeline, known[0].pipeline_version_id, False
            number = sum(version.display_name.startswith(content) for version in known)
            version = f"{content}-{number + 1}" if number else content  # an older version had this content, too
            if known:
                time.sleep(SECOND)
            uploaded = self.uploads.upload_pipeline_version(
                str(file), name=version, pipelineid=pipeline, description=DESCRIPTION
            )
            return pipeline, uploaded.pipeline_version_id, True

    def pipeline(self, name: str) -> str:
        """The id of the pipeline `name`, which is created if there is none."""
        for pipeline in self.pages(self.pipelines.pipeline_service_list_pipelines, "pipelines"):
            if pipeline.display_name == name:
                return pipeline.pipeline_id
        space = self.namespace or None
        body = api.V2beta1Pipeline(name=name, display_name=name, description=DESCRIPTION, namespace=space)
        return self.pipelines.pipeline_service_create_pipeline(body).pipeline_id

    def versions(self, pipeline: str) -> list[Any]:
        """The newest first."""
        found = self.pages(self.pipelines.pipeline_service_list_pipeline_versions, "pipeline_versions", pipeline)
        return sorted(found, key=lambda version: version.created_at, reverse=True)

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, which is created if there is none. Runs get its namespace."""
        namespace, call = self.namespace or None, self.experiments.experiment_service_list_experiments
        description = f"Runs of the pipeline must. {DESCRIPTION}"
        body = api.V2beta1Experiment(display_name=name, description=description, namespace=namespace)
        with api_errors(self.host):
            experiment = next((item for item in self.pages(call, "experiments") if item.display_name == name), None)
            experiment = experiment or self.experiments.experiment_service_create_experiment(body)
        if namespace and not experiment.namespace:
            raise UserError(
                f"namespace {namespace}: this Kubeflow Pipelines is installed for a single user and runs everything in "
                "its own namespace; leave `namespace` out of cluster.yaml, and create the service account there"
            )
        return experiment.experiment_id

    def schedules(self, name: str = "") -> list[Any]:
        """Recurring runs, of that name if one is given; the newest first."""
        call = self.recurring.recurring_run_service_list_recurring_runs
        with api_errors(self.host):
            runs = [run for run in self.pages(call, "recurring_runs") if not name or run.display_name == name]
        return sorted(runs, key=lambda run: run.created_at, reverse=True)

    def pages(self, call: Callable[..., Any], field: str, *parent: str) -> Iterator[Any]:
        """All items of a list in the namespace, or in something else: of its id."""
        query: dict[str, Any] = {"page_size": 100}
        query |= {"namespace": self.namespace} if self.namespace and not parent else {}
        while True:
            page = call(*parent, **query)
            yield from getattr(page, field) or []
            if not page.next_page_token:
                return
            query["page_token"] = page.next_page_token


class JsonClient(api.ApiClient):
    """Refuses a login page, which the generated client reads as an empty response."""

    def deserialize(self, response: Any, response_type: Any) -> Any:
        kind = response.getheader("Content-Type") or "nothing"
        if "json" not in kind:
            raise UserError(f"{kind} instead of JSON: a login page?")
        return super().deserialize(response, response_type)


class Token:
    """A bearer token that is read again, because a projected one is valid for two hours and a run may last for days."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.value, self.since = find_token(options), time.monotonic()

    def refresh(self, configuration: Any) -> None:
        """Called by the client before each request. If the token cannot be read, the previous one is kept."""
        if self.options.iap_client_id and time.monotonic() - self.since < IDENTITY:
            return
        with suppress(ValueError, OSError):
            self.value, self.since = find_token(self.options), time.monotonic()
        configuration.api_key["authorization"] = self.value


def find_token(options: argparse.Namespace) -> str:
    """A bearer token, or ''. Raises OSError: the file is missing; ValueError: Google gives none."""
    if options.iap_client_id:
        return fetch_identity_token(options.iap_client_id)
    if options.token_file:
        return options.token_file.read_text().strip()
    if token := os.environ.get("KFP_TOKEN"):
        return token
    projected = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", POD_TOKEN))
    return projected.read_text().strip() if projected.is_file() else ""


def fetch_identity_token(audience: str) -> str:
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request
    from google.oauth2 import id_token

    try:
        return id_token.fetch_id_token(Request(), audience)
    except GoogleAuthError as error:
        raise UserError(
            f"--iap-client-id: Google gives no identity token ({make_one_line(error)}); it needs a service "
            "account: set GOOGLE_APPLICATION_CREDENTIALS to its key, or run where one is attached"
        ) from None


@contextmanager
def api_errors(host: str, account: str = "", namespace: str = "") -> Iterator[None]:
    """Raises the server's errors as one line: TransientError if it may pass by itself, else ValueError. `account`: the
    service account of the namespace as which a run or a schedule was to be started; '' for the default one."""
    try:
        yield
    except api.ApiException as error:
        refused = f"ask for access to the namespace, or {LOGIN}"
        if account and error.status == 403:
            refused = REFUSED_ACCOUNT.format(account, may_use(account, namespace))
        hints = {401: f"; {LOGIN}", 403: f"; {refused}"}
        hint = hints.get(error.status, UPLOADING if "error_message" in str(error.body) else "")
        text = f"{host}: {error.status} {error.reason}: {describe_api_error(error)}{hint}"
        # the server answers 500 for a version that does not exist
        transient = error.status == 401 or (is_transient(error.status) and error.status != 500)
        raise (TransientError if transient else UserError)(text) from None
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise TransientError(
            f"{host}: cannot be reached ({type(reason).__name__}); is the address right, and the port forwarded "
            "(kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80)?"
        ) from None
    except ValueError as error:  # the client's parser, given a page of HTML
        raise UserError(
            f"{host}: answers, but not as Kubeflow Pipelines does ({make_one_line(error)[:200]}); {LOGIN}"
        ) from None


def describe_api_error(error: api.ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    fields = parse_object_or_none(
        body, lambda content: [content.get(name) for name in ("message", "error_message", "error")]
    )
    return make_one_line(next(filter(None, fields or ()), body))[:MAX_MESSAGE]


def connect() -> Any:
    """The Kubernetes API, or None: no configuration, or no client (kfp installs it, but submitting needs no kfp)."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        return None
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"))
        except (config.ConfigException, OSError, TypeError):
            return None
    return client.CustomObjectsApi()


def may_use(account: str, namespace: str) -> str:
    """Whether kubectl's user, or this pod's account, may use the service account; "" if the cluster cannot be asked."""
    if connect() is None:
        return ""
    from kubernetes import client

    attributes = {"namespace": namespace, "verb": "use", "resource": "serviceaccounts", "name": account}
    review = {"spec": {"resourceAttributes": attributes}}
    try:
        answer = client.AuthorizationV1Api().create_self_subject_access_review(review, _request_timeout=10)
    except (client.ApiException, urllib3.exceptions.HTTPError, OSError, ValueError):
        return ""
    return " (kubectl's user may)" if answer.status.allowed else " (kubectl's user may not)"
