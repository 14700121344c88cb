"""Which column of a dataset holds the images."""

from datasets import Features, Image

from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.rows import require_column

USUAL_NAMES = ("img", "image")


def find_image_column(features: Features, wanted: str, where: str) -> str:
    """Return the image column: ``wanted``, else the first Image feature, else a usual name.

    Raises
    ------
    ConfigError
        If ``wanted`` isn't there, or nothing looks like an image.
    """
    if wanted:
        return require_column("data.image-column", wanted, list(features), where)
    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    found = typed + [name for name in USUAL_NAMES if name in features]
    if not found:
        known = ", ".join(repr(name) for name in features)
        raise ConfigError.bad_value(
            "data.image-column", wanted, f"set, because no column of {where} looks like an "
            f"image: its columns are {known}"
        )
    return found[0]
