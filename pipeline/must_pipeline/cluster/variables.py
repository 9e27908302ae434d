"""Names of environment variables."""

import re
from collections.abc import Iterable

from must.base.parameters import require

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variables(names: Iterable[str]) -> None:
    for name in names:
        require(VARIABLE.fullmatch(name) is not None, f"env '{name}': is no name of an environment variable")
        require(not name.startswith(("MUST_", "PET_")), f"env '{name}': names that begin so are set by the pipeline")
