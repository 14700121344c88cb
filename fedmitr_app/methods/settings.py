"""What decides the global model, given the uploads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmitr_app.config import (
    Config,
    DistillationConfig,
    GeneratorConfig,
    InversionConfig,
    MergeConfig,
    TeacherConfig,
    parse_config,
)
from fedmitr_app.errors import ConfigError
from fedmitr_app.models import PatchViT, is_trained

AUTO = "auto"
SECTIONS = ("merge", "teacher", "inversion", "distillation", "generator")
SCRATCH, PRETRAINED = "default", "pretrained"
"""What ``auto`` comes to, by what θ₀ is."""


@dataclass(frozen=True)
class MethodSettings:
    """The methods' part of a run's settings."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    seed: int = 0
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)

    @classmethod
    def of(cls, config: Config) -> "MethodSettings":
        """Take the methods' part of a run's configuration."""
        return cls(
            config.teacher,
            config.inversion,
            config.distillation,
            config.seed,
            config.generator,
            config.merge,
        )

    @property
    def weighting(self) -> str:
        """How much an upload counts for: by what its client says, of which a defence doubts."""
        return "num-examples" if self.teacher.defence == "none" else "capped-examples"


def settings_for(
    model: PatchViT,
    preset: str = AUTO,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> tuple[str, MethodSettings]:
    """Return a preset's name and settings, by default those that suit θ₀.

    Parameters
    ----------
    model : PatchViT
        θ₀: one that has been trained gets ``pretrained``, another one ``default``.
    preset : str
        ``auto``, or the name of a preset.
    changes : Mapping[str, Any], optional
        Run-config keys such as ``distillation.steps``, which win over the preset.

    Raises
    ------
    ConfigError
        For an unknown preset or key, an impossible value, or a setting that says nothing to a
        method.
    """
    for key in changes or {}:
        if key.partition(".")[0] not in SECTIONS:
            raise ConfigError.bad_value(
                "changes",
                key,
                f"settings of {', '.join(SECTIONS)}: others are arguments of their own, or the "
                "clients' matter",
            )
    if preset == AUTO:
        preset = PRETRAINED if is_trained(model.vit) else SCRATCH
    config = parse_config({"preset": preset, "seed": seed, **(changes or {})})
    return preset, MethodSettings.of(config)
