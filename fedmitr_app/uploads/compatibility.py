"""Hold uploads that are on disk to the model of the run that is to use them."""

from collections.abc import Iterable, Mapping

from fedmitr_app.errors import ConfigError, RunFolderError, UploadError
from fedmitr_app.uploads.metadata import Expected, Metadata, check_metadata
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.uploads.validate import ArraySpec, check_names, check_shape
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.reading import open_tensors


def require_compatible(
    uploads: Iterable[Upload], reference: Mapping[str, ArraySpec], expected: Expected
) -> None:
    """Refuse uploads of an earlier round that are of another model than the server's.

    Raises
    ------
    ConfigError
        With the first difference.
    """
    for upload in uploads:
        try:
            check_fit(upload, reference, expected)
        except UploadError as error:
            raise ConfigError(
                f"The uploads of {upload.client!r} are of another model than this run's settings "
                f"make: {str(error).rstrip('.')}; set data.* and model.* as they were."
            ) from error


def check_fit(upload: Upload, reference: Mapping[str, ArraySpec], expected: Expected) -> None:
    """Refuse an upload on disk that is of another model than ``reference``.

    Raises
    ------
    UploadError
        With the first difference.
    RunFolderError
        If its weights can't be read.
    """
    metadata = Metadata(architecture=upload.architecture, input_spec=upload.input_spec)
    check_metadata(metadata, expected)
    counts = upload.label_counts
    if counts is not None and expected.num_classes not in (None, len(counts)):
        raise UploadError(
            f"it counts the labels of {len(counts)} classes where the server has "
            f"{expected.num_classes}."
        )
    try:
        with open_tensors(upload.weights) as file:
            check_names(file.keys(), reference)
            for name, spec in reference.items():
                value = file.get_tensor(name)
                check_shape(name, value.shape, spec)
                if value.dtype != spec.dtype:
                    raise UploadError(f"{name} is {value.dtype} where the server has {spec.dtype}.")
    except (OSError, ValueError) as error:
        why = f"{upload.weights} cannot be read back: {reason_of(error)}."
        raise RunFolderError(why) from error
