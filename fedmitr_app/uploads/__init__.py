"""What a client sends once, checked by itself and kept on disk until the server fuses it."""

from fedmitr_app.uploads.class_means import (
    ClassMeans,
    most_lack_class_means,
    read_class_means,
    set_class_means,
)
from fedmitr_app.uploads.compatibility import require_compatible
from fedmitr_app.uploads.example_weights import doubtful_counts, example_counts
from fedmitr_app.uploads.metadata import Expected, Metadata, check_metadata, check_num_examples
from fedmitr_app.uploads.moments import (
    ClassMoments,
    check_moments,
    moments_reference,
    pool_moments,
    too_long,
)
from fedmitr_app.uploads.npy import decode_npy
from fedmitr_app.uploads.outcome import RoundOutcome
from fedmitr_app.uploads.rounds import RoundFolder, read_round
from fedmitr_app.uploads.spool import Rejection, Spool, read_spool
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.uploads.validate import (
    ArrayHeader,
    ArraySpec,
    check_arrays,
    check_headers,
)
from fedmitr_app.uploads.weight_checks import WeightCheck, check_weights

__all__ = [
    "ArrayHeader",
    "ArraySpec",
    "ClassMeans",
    "ClassMoments",
    "Metadata",
    "Expected",
    "Rejection",
    "RoundFolder",
    "RoundOutcome",
    "Spool",
    "Upload",
    "WeightCheck",
    "check_arrays",
    "check_metadata",
    "check_headers",
    "check_moments",
    "check_num_examples",
    "check_weights",
    "decode_npy",
    "doubtful_counts",
    "example_counts",
    "moments_reference",
    "most_lack_class_means",
    "pool_moments",
    "read_class_means",
    "read_round",
    "read_spool",
    "require_compatible",
    "set_class_means",
    "too_long",
]
