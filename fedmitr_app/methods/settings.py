"""What decides the global model, given the uploads."""

from dataclasses import dataclass, field

from fedmitr_app.config import (
    Config,
    DistillationConfig,
    GeneratorConfig,
    InversionConfig,
    MergeConfig,
    TeacherConfig,
)


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
