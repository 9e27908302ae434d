"""The trackers to which training can write its curves, and the packages that they need."""

from collections.abc import Sequence
from importlib.util import find_spec

from must.base.parameters import require

TRACKERS = {"tensorboard": "train", "mlflow": "mlflow"}  # name of the tracker and of its package: our extra


def require_packages(names: Sequence[str], flag: str = "--trackers") -> None:
    """Raises ValueError, about `flag`: a tracker's package is not installed."""
    for name in names:
        require(
            find_spec(name) is not None,
            f"{flag} {name}: the package {name} is not installed here; install it with: "
            f"pip install 'must-clip[{TRACKERS[name]}]'",
        )
