"""Configuration: one frozen, typed object, checked once at the door."""

from fedmitr_app.config.parse import default_run_config, flatten, parse_config
from fedmitr_app.config.same import MAY_DIFFER, decisive, require_same
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

__all__ = [
    "MAY_DIFFER",
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
    "decisive",
    "default_run_config",
    "flatten",
    "parse_config",
    "require_same",
]
