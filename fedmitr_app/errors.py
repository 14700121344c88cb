"""Errors that a user can mend. Each message is one sentence that says how."""


class FedmitrError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(FedmitrError):
    """A setting is unknown, of the wrong type, or impossible."""

    @classmethod
    def bad_value(cls, key: str, value: object, allowed: str) -> "ConfigError":
        """The sentence for a setting whose value is not allowed."""
        return cls(f"{key} = {value!r} is not allowed: it must be {allowed}.")


class DataError(FedmitrError):
    """A dataset is missing, unreadable, or lacks what was asked of it."""


class ModelError(FedmitrError):
    """A model cannot be built, or is not a plain Vision Transformer."""


class TrainingError(FedmitrError):
    """Training left the finite numbers."""

    @classmethod
    def diverged(cls, stage: str, learning_rate: float) -> "TrainingError":
        """The sentence for a stage whose numbers became infinite or not a number."""
        return cls(
            f"{stage}.learning-rate = {learning_rate:g} made {stage} leave the finite numbers: "
            "lower it."
        )


class UploadError(FedmitrError):
    """One client's upload cannot be used. It never ends the round by itself."""


class RunFolderError(FedmitrError):
    """The run folder cannot be used."""


class BackendError(FedmitrError):
    """The workers that should make synthetic images can't be had, or are lost."""


class MethodUnavailable(FedmitrError):
    """A method lacks what it needs; the message finishes "not run: ..."."""
