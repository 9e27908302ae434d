"""The stage `must export`: a bundle as a file or folder that others read, compared with it before it gets its name."""

from typing import Any

from must.config import ExportConfig


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes what `config.to` names; returns the comparison.

    Raises:
        ValueError: no bundle, no shards, a model that the format cannot hold, or too little agreement; nothing is
            written then.
    """
    if config.to == "onnx":
        from must.deploy.export import onnx

        return onnx.export(config)
    from must.deploy.export.takeaway import take_away

    return take_away(config)
