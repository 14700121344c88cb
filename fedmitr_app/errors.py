"""Errors that a user can mend. Each message is one sentence that says how."""

from fedmitr_app.utils.text import harmless

_LONGEST = 4000


class FedmitrError(Exception):
    """Base of every error this package raises on purpose.

    Both sentences may quote what strangers wrote, names of files too: see :func:`harmless`.

    Parameters
    ----------
    sentence : str
        For the log of the machine that it happened on.
    public : str
        For other machines: without paths, names of files, or anything else that is read from
        a client's data. Empty: the sentence itself holds no such thing.
    """

    def __init__(self, sentence: str, *, public: str = "") -> None:
        super().__init__(harmless(sentence, _LONGEST))
        self._public = harmless(public, _LONGEST)

    @property
    def public(self) -> str:
        """The sentence that may leave this machine."""
        return self._public or str(self)


class ConfigError(FedmitrError):
    """A setting is unknown, of the wrong type, or impossible."""

    @classmethod
    def bad_value(cls, key: str, value: object, allowed: str, *, public: str = "") -> "ConfigError":
        """Return the sentence for a setting whose value is not allowed.

        ``public`` stands for ``allowed`` where that tells what a client's data hold.
        """
        start = f"{key} = {value!r} is not allowed: it must be "
        return cls(f"{start}{allowed}.", public=f"{start}{public}." if public else "")


class DataError(FedmitrError):
    """A dataset is missing, unreadable, or lacks what was asked of it."""

    @property
    def public(self) -> str:
        """The sentence that may leave this machine; without one of its own it tells nothing."""
        return self._public or "its data can't be used: its own log says why."


class ModelError(FedmitrError):
    """A model cannot be built, or is not a plain Vision Transformer."""


class TrainingError(FedmitrError):
    """Training left the finite numbers."""

    @classmethod
    def diverged(cls, stage: str, learning_rate: float) -> "TrainingError":
        """Return the sentence for a stage whose numbers became infinite or not a number."""
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
