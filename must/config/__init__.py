"""The parameters of every stage, one dataclass per stage: the only definition of names, types, defaults, help texts.

The command line, the YAML files (``--config``), the presets and the pipeline components all use these classes.
Flags override the ``--config`` file, which overrides ``--preset``, which overrides the defaults.
"""

from must.config.adapt import AdaptConfig, DemoConfig
from must.config.classifier import BackbonesConfig, ClassifierConfig
from must.config.evaluate import EvaluateConfig, GateConfig
from must.config.export import ExportConfig
from must.config.predict import PredictConfig
from must.config.promote import PromoteConfig
from must.config.push import PushConfig
from must.config.review import ReviewConfig
from must.config.select import RefineConfig, SelectConfig
from must.config.serve import ServeConfig
from must.config.shard import ShardConfig
from must.config.train import PlanConfig, TrainConfig

__all__ = [
    "AdaptConfig", "BackbonesConfig", "ClassifierConfig", "DemoConfig", "EvaluateConfig", "ExportConfig", "GateConfig",
    "PlanConfig", "PredictConfig", "PromoteConfig", "PushConfig", "RefineConfig", "ReviewConfig",
    "SelectConfig", "ServeConfig", "ShardConfig", "TrainConfig",
]  # fmt: skip
