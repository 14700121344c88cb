"""Configuration: one frozen, typed object, checked once at the door."""

from fedmitr_app.config.parse import (
    as_run_config,
    changed_from_preset,
    default_run_config,
    differing,
    flatten,
    given_settings,
    parse_config,
    preset_run_config,
)
from fedmitr_app.config.resume import decisive, require_same, result_neutral_keys
from fedmitr_app.config.schema import (
    COMBINATIONS,
    NEED_LABEL_COUNTS,
    ClientConfig,
    Config,
    DataConfig,
    DistillationConfig,
    GeneratorConfig,
    InversionConfig,
    MergeConfig,
    ModelConfig,
    OutputConfig,
    PartitionConfig,
    ServerConfig,
    TeacherConfig,
)
from fedmitr_app.config.validation import check_source

__all__ = [
    "COMBINATIONS",
    "NEED_LABEL_COUNTS",
    "ClientConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "GeneratorConfig",
    "InversionConfig",
    "MergeConfig",
    "ModelConfig",
    "OutputConfig",
    "PartitionConfig",
    "ServerConfig",
    "TeacherConfig",
    "as_run_config",
    "changed_from_preset",
    "check_source",
    "decisive",
    "default_run_config",
    "differing",
    "flatten",
    "given_settings",
    "parse_config",
    "preset_run_config",
    "require_same",
    "result_neutral_keys",
]
