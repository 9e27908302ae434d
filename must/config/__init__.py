"""The parameters of every stage, one dataclass per stage: the only definition of names, types, defaults, help texts.

The command line, the YAML files (``--config``), the presets and the pipeline components all use these classes.
Flags override the ``--config`` file, which overrides ``--preset``, which overrides the defaults."""

from must.config.adapt import AdaptConfig, DemoConfig, QuickstartConfig, SortConfig
from must.config.deploy import ExportConfig, PredictConfig, PromoteConfig, ServeConfig
from must.config.evaluate import EvaluateConfig, GateConfig, RefineConfig, ReviewConfig
from must.config.train import ClassifierConfig, PlanConfig, ShardConfig, TrainConfig

__all__ = [
    "AdaptConfig", "ClassifierConfig", "DemoConfig", "EvaluateConfig", "ExportConfig", "GateConfig", "PlanConfig",
    "PredictConfig", "PromoteConfig", "QuickstartConfig", "RefineConfig", "ReviewConfig", "ServeConfig", "ShardConfig",
    "SortConfig", "TrainConfig",
]  # fmt: skip
