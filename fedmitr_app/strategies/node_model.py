"""What a node keeps of the global model, if its owner wants it to."""

from collections.abc import Sequence
from pathlib import Path

from fedmitr_app.errors import ConfigError, ModelError
from fedmitr_app.models import PatchViT, architecture_of
from fedmitr_app.run_folder.global_model import save_global_model
from fedmitr_app.utils.files import local_path, unwritable


def model_dir(setting: object) -> Path | None:
    """Return the folder that a node's ``model-dir`` names; None if it is empty.

    Raises
    ------
    ConfigError
        If it is no text, or names the home of a user that there is not.
    """
    if not isinstance(setting, str):
        raise ConfigError(
            f"node-config model-dir = {setting!r} is not allowed: it must be a folder, in quotes.",
            public="its node-config model-dir is no folder in quotes.",
        )
    return local_path("node-config model-dir", setting, ConfigError) if setting else None


def keep_model(folder: Path, run_id: int, model: PatchViT, class_names: Sequence[str]) -> Path:
    """Write the global model into ``run-<id>`` in a folder of the node's, for its owner alone.

    Nothing of where it goes comes from the server, and its size is that of the node's own model.
    A run that is gone on with replaces what it wrote.

    Parameters
    ----------
    folder : Path
        Made if absent.
    run_id : int
        Flower's id of the run.
    class_names : Sequence[str]
        One per output, in order; numbers stand for them if there are not as many.

    Returns
    -------
    Path
        The folder, with the two files of
        :func:`~fedmitr_app.run_folder.global_model.save_global_model`.

    Raises
    ------
    ModelError
        If the weights aren't finite.
    RunFolderError
        If they can't be written.
    """
    state = model.vit.state_dict()
    if not all(value.isfinite().all() for value in state.values()):
        raise ModelError("The global model holds NaN or infinity: it is not kept.")
    fits = len(class_names) == model.num_classes
    names = class_names if fits else [str(number) for number in range(model.num_classes)]
    target = folder / f"run-{run_id}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(0o700)
        save_global_model(target, state, architecture_of(model), model.spec.to_dict(), names)
        for file in target.iterdir():
            file.chmod(0o600)
    except OSError as error:
        raise unwritable(target, error) from error
    return target
