"""Configuration: one frozen, typed object, checked once at the door."""

from fedmitr_app.config.parse import default_run_config, flatten, parse_config
from fedmitr_app.config.same import decisive, harmless_keys, require_same
from fedmitr_app.config.schema import (
    NEED_LABEL_COUNTS,
    ClientConfig,
    Config,
    DataConfig,
    DistillationConfig,
    GeneratorConfig,
    InversionConfig,
    ModelConfig,
    OutputConfig,
    PartitionConfig,
    ServerConfig,
    TeacherConfig,
)
from fedmitr_app.config.together import check_source

__all__ = [
    "NEED_LABEL_COUNTS",
    "ClientConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "GeneratorConfig",
    "InversionConfig",
    "ModelConfig",
    "OutputConfig",
    "PartitionConfig",
    "ServerConfig",
    "TeacherConfig",
    "check_source",
    "decisive",
    "default_run_config",
    "flatten",
    "harmless_keys",
    "parse_config",
    "require_same",
]
