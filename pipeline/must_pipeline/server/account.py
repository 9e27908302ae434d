"""Why Kubeflow Pipelines refuses to start a run as a service account: 2.18 checks what 2.17 does not."""

from must_pipeline.server.wait import connect


def refused_account(account: str, namespace: str) -> str:
    """The end of a message about a run or a schedule that was refused (403); '' for the default account."""
    if not account:
        return ""
    known = {None: "", True: " (kubectl's user may)", False: " (kubectl's user may not)"}[may_use(account, namespace)]
    return (
        f"; Pipelines 2.18 starts a run as the service account {account} only if you may `use` it{known}, by "
        "deploy/scheduler.yaml, and its administrator lists it in ALLOWEDSERVICEACCOUNTS. Or leave service_account "
        "out of cluster.yaml (docs/kubeflow.md, step 2)"
    )


def may_use(account: str, namespace: str) -> bool | None:
    """Whether kubectl's user, or this pod's account, may use the service account; None: the cluster cannot be asked."""
    if connect() is None:
        return None
    from kubernetes import client
    from urllib3.exceptions import HTTPError

    attributes = client.V1ResourceAttributes(namespace=namespace, verb="use", resource="serviceaccounts", name=account)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    try:
        answer = client.AuthorizationV1Api().create_self_subject_access_review(review, _request_timeout=10)
        return bool(answer.status.allowed)
    except (client.ApiException, HTTPError, OSError, ValueError):
        return None
