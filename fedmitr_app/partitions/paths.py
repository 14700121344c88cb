"""Local paths of datasets."""

from pathlib import Path

from fedmitr_app.errors import DataError


def existing_path(setting: str, text: str) -> Path:
    """Return an existing path.

    Raises
    ------
    DataError
        If nothing is there; names the absolute path, since the working directory of a
        Flower process is not always where the command was typed.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise DataError(
            f"{setting} = {text!r} does not exist on this machine ({path.absolute()}): set it to "
            "a file or folder that does, best as an absolute path."
        )
    return path
