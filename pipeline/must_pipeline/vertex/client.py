"""Vertex AI's services for runs and schedules, by Google's client, over REST. Errors become one line each."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import google.auth
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.cloud import aiplatform, aiplatform_v1

from must.base.storage import TransientError, is_transient
from must.base.text import one_line
from must_pipeline.cluster.config import Vertex

TIMEOUT = 60.0  # seconds a request
REQUEST = re.compile(r"^[A-Z]+ \S+: ")  # which the client puts in front of what the server says
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class VertexAi:
    """One project and location. What its clients raise becomes a ValueError within `told`."""

    def __init__(self, place: Vertex, host: str = "") -> None:
        """Args: `host` is the address of an endpoint of one's own (Private Service Connect); Google's if empty."""
        self.place, self.parent = place, f"projects/{place.project}/locations/{place.location}"
        self.host = host or f"{place.location}-aiplatform.googleapis.com"
        logging.getLogger("google.cloud.aiplatform").setLevel(logging.WARNING)  # it logs what we print
        with self.translate_errors():
            credentials, _ = google.auth.default(scopes=[SCOPE])
            aiplatform.init(
                project=place.project, location=place.location, credentials=credentials, api_endpoint=self.host,
                api_transport="rest",
            )  # fmt: skip
            given: dict[str, Any] = {"credentials": credentials, "client_options": {"api_endpoint": self.host}}
            self.pipelines = aiplatform_v1.PipelineServiceClient(transport="rest", **given)
            self.schedules = aiplatform_v1.ScheduleServiceClient(transport="rest", **given)

    def page(self, job_id: str) -> str:
        """Where a person looks at the run."""
        place = self.place
        return (
            f"https://console.cloud.google.com/vertex-ai/locations/{place.location}/pipelines/runs/{job_id}"
            f"?project={place.project}"
        )

    def job(self, job_id: str) -> Any:
        with self.translate_errors():
            return self.pipelines.get_pipeline_job(name=f"{self.parent}/pipelineJobs/{job_id}", timeout=TIMEOUT)

    def start(self, job: Any, job_id: str) -> Any:
        with self.translate_errors():
            return self.pipelines.create_pipeline_job(
                parent=self.parent, pipeline_job=job, pipeline_job_id=job_id, timeout=TIMEOUT
            )

    def find_schedules(self, name: str = "") -> list[Any]:
        """Schedules that are not over, of that name if one is given; the newest first."""
        with self.translate_errors():
            request = {"parent": self.parent, "page_size": 100}
            found = [one for one in self.schedules.list_schedules(request=request, timeout=TIMEOUT)
                     if not name or one.display_name == name]  # fmt: skip
        over = aiplatform_v1.Schedule.State.COMPLETED
        return sorted((one for one in found if one.state != over), key=lambda one: one.create_time, reverse=True)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (RetryError, TransportError, OSError) as error:
            raise TransientError(f"{self.host} does not answer ({one_line(error)[:300]})") from None
        except DefaultCredentialsError:
            raise ValueError(
                "there are no Google credentials here; log in with: gcloud auth application-default login"
            ) from None
        except GoogleAuthError as error:
            raise ValueError(f"Google refuses the credentials: {one_line(error)[:300]}") from None
        except GoogleAPICallError as error:
            code = int(error.code or 500)
            kind = TransientError if is_transient(code) else ValueError
            said = one_line(REQUEST.sub("", error.message or str(error)))
            raise kind(f"{self.host} answers {code}: {said[:300]}") from None
