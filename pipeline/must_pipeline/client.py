"""kfp.Client as submit.py uses it: its login is kfp's own, its errors are one line, its lists are whole."""

import argparse
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from operator import attrgetter
from typing import Any

from must.base import storage
from must.base.errors import MustError, TransientError, UserError
from must.base.parameters import read_mapping, require
from must.base.text import make_one_line, remove_secrets, suggest_name

HINTS = {  # by HTTP status
    401: "; log in with --client FILE, by an argument of kfp.Client such as existing_token or cookies",
    403: "; ask for access to the namespace, or to its service account (docs/kubeflow.md, step 2)",
}
FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"


class Kubeflow:
    """A Kubeflow Pipelines server. `host` is its address, `namespace` that of the runs, or None."""

    def __init__(self, options: argparse.Namespace, namespace: str = "") -> None:
        self.options, self.answered = options, False
        self.connect()
        self.host = remove_secrets(self.api.configuration.host)
        self.namespace = namespace or self.client.get_user_namespace() or None

    def connect(self) -> None:
        """Raises ValueError: the file --client has something else than kfp.Client's arguments."""
        import kfp

        class Client(kfp.Client):
            def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
                """Asks nothing: a wrong login would be five tracebacks in 25 s, only to guess a namespace."""
                return argparse.Namespace(multi_user=False)

        file = self.options.client
        login = read_mapping(file, f"--client {file}") if file else {}
        known = sorted(inspect.signature(kfp.Client).parameters.keys() - {"credentials"})
        for name in login:
            require(name in known, f"--client {file}: kfp.Client takes no '{name}'; {suggest_name(name, known)}")
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)  # that it is for Pipelines 2
            self.client = Client(**{"host": self.options.host or None} | login)
        self.api = self.client._run_api.api_client  # one for all services
        vars(self.api)["deserialize"] = partial(read_answer, self.api.deserialize)

    def ask(self, method: str, /, **values: Any) -> Any:
        """What a method of kfp.Client returns. Raises TransientError: the error may pass by itself; else UserError."""
        import kfp_server_api
        import urllib3.exceptions

        try:
            with redirect_stdout(io.StringIO()):  # kfp prints links
                answer = attrgetter(method)(self.client)(**values)
            self.answered = True
            return answer
        except kfp_server_api.ApiException as error:
            if expired := error.status == 401 and self.answered:
                self.connect()  # the file may have a new token
            # The server answers 500 for a version that does not exist.
            passes = expired or (storage.is_transient(error.status) and error.status != 500)
            text = f"{self.host}: {error.status} {error.reason}: {describe_error(error)}{HINTS.get(error.status, '')}"
            raise (TransientError if passes else UserError)(text) from None
        except (urllib3.exceptions.HTTPError, ConnectionError) as error:
            reason = type(getattr(error, "reason", None) or error).__name__
            text = f"{self.host}: cannot be reached ({reason}); is --host right, and the port forwarded ({FORWARD})?"
            raise TransientError(text) from None
        except MustError:
            raise
        except ValueError as error:
            raise UserError(f"{self.host}: {make_one_line(error)}") from None

    def list(self, what: str, **query: Any) -> Iterator[Any]:
        """All `pipelines`, `pipeline_versions`, `runs` or `recurring_runs`."""
        token: str | None = ""
        while token is not None:
            page = self.ask(f"list_{what}", page_token=token, page_size=100, **query)
            yield from getattr(page, what) or []
            token = page.next_page_token or None


def read_answer(read: Callable[[Any, Any], Any], response: Any, kind: Any) -> Any:
    """Refuses a login page, which the generated client would read as an empty answer."""
    found = response.getheader("Content-Type") or "nothing"
    require("json" in found, f"answers {found}, not as Kubeflow Pipelines does: a login page?{HINTS[401]}")
    return read(response, kind)


def describe_error(error: Any) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    fields = storage.parse_object_or_none(
        body, lambda content: [content.get(name) for name in ("message", "error_message", "error")]
    )
    return make_one_line(next(filter(None, fields or ()), body))[:1000]
