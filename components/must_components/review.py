"""If the gate needs people's answers: writes a page with pictures, and the run ends."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def review(
    work_uri: str,
    run_id: str,
    bundle: dsl.Input[dsl.Model],
    classifier: dsl.Input[dsl.Model],
    key: str,
    questions: dsl.Output[dsl.Artifact],
) -> None:
    """Compares the zero-shot, the selected and the fully adapted model, and writes the page. Never cached.

    Args:
        work_uri: the page, review.json and later the answers go to its folder reviews.
        key: of the data and settings; the resumed run has the same.
        questions: folder with review.html; download it: inside Kubeflow's page it cannot save answers.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised
    from must_components.kept import download_of

    page = supervised(
        "review", stages.review, run_id, work_uri, bundle=bundle.path, classifier=classifier.path,
        key=key, output=questions.path, link=download_of(f"{questions.uri}/review.html"),
    )  # fmt: skip
    questions.metadata.update({"display_name": f"{page['pictures']} pictures to answer about", "page": page["place"]})
