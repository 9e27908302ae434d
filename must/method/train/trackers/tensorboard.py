"""Event files in the run's folder."""

from typing import Any

from must.method.train.trackers.base import Attempt


class TensorBoard:
    """Points of an earlier attempt that are after its checkpoint are struck out (TensorBoard's purge)."""

    run_id = ""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def start(self, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(
            str(self.attempt.folder / "tensorboard"), purge_step=self.attempt.first_step or None
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self, finished: bool) -> None:
        self.writer.close()
