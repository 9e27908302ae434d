"""Parameters of `must push`."""

import re
from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?", re.ASCII)
OCI = "oci:"  # prefix of a local folder that holds an OCI image layout
LONGEST_ID = 96  # characters of a repository's name: the limit of the hub


@dataclass(kw_only=True)
class PushConfig(StageConfig):
    example = "must push ours/ --repo my-team/birds --private"

    model: str = param("folder written by `must export`", metavar="URI", bare=True)
    repo: str = param("repository on the hub; made if there is none; or oci:FOLDER", metavar="TEAM/NAME")
    private: bool = param("the repository is private; one that is public already is refused", False)
    revision: str = param("branch to push to, made if there is none; main if empty", "", metavar="BRANCH")

    def check_values(self) -> None:
        if self.repo.startswith(OCI):
            require(len(self.repo) > len(OCI), "--repo oci: needs a folder, such as oci:image")
            require(not (self.private or self.revision), f"--repo {self.repo}: --private and --revision need a hub")
            return
        invalid = "--" in self.repo or ".." in self.repo or self.repo.endswith(".git") or len(self.repo) > LONGEST_ID
        require(
            REPOSITORY.fullmatch(self.repo) is not None and not invalid,
            f"--repo {self.repo[:LONGEST_ID]}: expected TEAM/NAME of letters, digits, '-', '_' and '.', without '--' "
            f"and '..' and not ending in .git, at most {LONGEST_ID} characters",
        )
        require(
            re.fullmatch(r"[\w][\w./-]*|", self.revision, re.ASCII) is not None,
            f"--revision {self.revision[:LONGEST_ID]}: expected a branch's name of letters, digits, '-', '_', '.' "
            "and '/'",
        )
