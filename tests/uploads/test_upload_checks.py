"""Arrays, payload bytes and claims of one upload."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmitr_app.errors import UploadError
from fedmitr_app.models import InputSpec
from fedmitr_app.uploads import (
    ArrayHeader,
    ArraySpec,
    Expected,
    Metadata,
    check_arrays,
    check_headers,
    check_metadata,
    check_num_examples,
    decode_npy,
)
from fedmitr_app.utils.files import arrays_digest

REFERENCE = {
    "w": ArraySpec((2, 3), np.dtype(np.float32)),
    "n": ArraySpec((1,), np.dtype(np.int64)),
}


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.one_of(
            hnp.floating_dtypes(endianness="?"),
            hnp.integer_dtypes(endianness="?"),
            hnp.boolean_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_decoding_gives_back_what_numpy_saved(array, fortran):
    array = np.asfortranarray(array) if fortran and array.ndim else array
    decoded = decode_npy(npy(array))
    assert decoded.dtype == array.dtype and decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 127), st.integers(0, 255))
def test_decoding_refuses_anything_else_in_one_sentence(noise, place, value):
    damaged = bytearray(npy(np.arange(6.0)))
    damaged[place] = value
    for data in (noise, b"\x93NUMPY\x01\x00" + noise, bytes(damaged), bytes(damaged[:-1])):
        try:
            decode_npy(data)
        except UploadError as error:
            assert str(error).endswith(".")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([Bomb()], dtype=object), allow_pickle=True),
        pickle.dumps(Bomb()),
        npy(np.array(["text"])),
        npy(np.zeros(2, dtype=[("a", "f4")])),
        npy(np.zeros(2, dtype=complex)),
        npy(np.zeros(2, dtype="M8[s]")),
    ],
    ids=["object", "pickle", "text", "structured", "complex", "dates"],
)
def test_nothing_but_plain_numbers_is_decoded(data):
    with pytest.raises(UploadError):
        decode_npy(data)


def test_a_header_can_promise_more_than_there_is():
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**9,), }"
    for shape in (b"(1000000000, 1000000000, 1000000000)", b"(-1, -1)", b"(-2,)"):
        text = head.replace(b"(10**9,)", shape).ljust(117) + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)
        with pytest.raises(UploadError):
            decode_npy(data)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_floats_are_cast_and_the_cast_is_noted(dtype):
    arrays = {"n": np.array([1]), "w": np.ones((2, 3), dtype)}
    clean, notes = check_arrays(arrays, REFERENCE)
    assert clean["w"].dtype == np.float32 and list(clean) == ["w", "n"]
    assert notes == [f"1 array(s) cast from {np.dtype(dtype)} to float32"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("w", np.ones((2, 3), np.int32), "of type int32 where the server has float32"),
        ("w", np.ones((2, 3), bool), "of type bool"),
        ("w", np.ones((2, 3), complex), "of type complex128"),
        ("w", np.ones((2, 3), object), "of type object"),
        ("w", np.ones(6, np.float32), "shape (6,)"),
        ("w", np.full((2, 3), np.inf, np.float32), "NaN or infinite"),
        ("w", np.full((2, 3), -1e39), "NaN or infinite"),
        ("n", np.array([1.0]), "of type float64"),
        ("n", np.array([1], np.uint64), "of type uint64"),
    ],
)
def test_what_cannot_be_cast_safely_is_refused(name, value, words):
    arrays = {"w": np.ones((2, 3), np.float32), "n": np.array([1]), name: value}
    with pytest.raises(UploadError) as error:
        check_arrays(arrays, REFERENCE)
    assert words in str(error.value) and name in str(error.value)


def test_headers_bound_what_decoding_can_cost():
    good = {"w": ArrayHeader((2, 3), "float32", 128 + 24), "n": ArrayHeader((1,), "int64", 136)}
    check_headers(good, REFERENCE)
    check_headers(good | {"n": ArrayHeader((1,), "int32", 132)}, REFERENCE)
    for bad in (
        ArrayHeader((2, 3), "float32", 23),
        ArrayHeader((2, 3), "float32", 10**9),
        ArrayHeader((2, 3), "float128", 128 + 96),
        ArrayHeader((2, 3), "f4,f4", 128 + 48),
        ArrayHeader((2, 3), "O", 128 + 48),
        ArrayHeader((-2, -3), "float32", 128 + 24),
        ArrayHeader((10**9, 10**9), "float32", 128 + 24),
    ):
        with pytest.raises(UploadError, match="^w "):
            check_headers(good | {"w": bad}, REFERENCE)


def test_long_lists_of_names_are_shortened():
    reference = {f"layer{number}": ArraySpec((1,), np.dtype("f4")) for number in range(50)}
    with pytest.raises(UploadError) as error:
        check_arrays({"x" * 500: np.zeros(1)}, reference)
    assert "50 missing (layer0, layer1, layer2, …)" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [1, 10**12 - 1, 7.0, np.float64(3)])
def test_good_numbers_of_examples(value):
    assert check_num_examples(value) == int(value)


@pytest.mark.parametrize(
    "value",
    [0, -1, True, 1.5, float("nan"), float("inf"), 10**12, 10**400, None, "5", [5], np.bool_(True)],
)
def test_bad_numbers_of_examples(value):
    with pytest.raises(UploadError, match="num-examples = "):
        check_num_examples(value)


@pytest.mark.parametrize(
    "claims",
    [
        {"client": ""},
        {"client": 3},
        {"client": " a"},
        {"client": "a\udc80"},
        {"client": "a" * 201},
        {"client": "zero\u200bwidth"},
        {"architecture": [1]},
        {"architecture": {"num_classes": 3}},
        {"architecture": {}},
        {"input_spec": {"size": 8}},
        {"input_spec": "text"},
        {"input_spec": {"size": float("inf"), "channels": 1, "mean": [0.5], "std": [0.5]}},
        {"input_spec": {"size": 8, "channels": 1, "mean": [float("nan")], "std": [0.5]}},
        {"input_spec": {"size": 8, "channels": 1, "mean": [0.5] * 2, "std": [0.5]}},
        {"input_spec": {"size": 8, "channels": 0, "mean": [], "std": []}},
        {"input_spec": {"size": -8, "channels": 1, "mean": [0.5], "std": [0.5]}},
    ],
)
def test_bad_claims(claims):
    with pytest.raises(UploadError):
        check_metadata(Metadata(**{"num_examples": 10, **claims}), Expected(num_classes=2))


def endless(depth: int = 5000) -> list:
    """A table in a table, deeper than what writes tables goes."""
    table: list = []
    for _ in range(depth):
        table = [table]
    return table


HUGE = 9 * 10**5000  # Python doesn't write numbers of so many digits


@pytest.mark.parametrize(
    "claims",
    [
        {"input_spec": {"size": 8, "channels": 2 * 10**8, "mean": [0.5], "std": [0.5]}},
        {"input_spec": {"size": 2 * 10**8, "channels": 1, "mean": [0.5], "std": [0.5]}},
        {"input_spec": {"size": HUGE, "channels": HUGE, "mean": [0.5], "std": [0.5]}},
        {"architecture": {"num_classes": HUGE}},
        {"architecture": {"num_classes": endless()}},
        {"client": "a" * 10**8},
        {"num_examples": [1] * 10**7},
        {"num_examples": HUGE},
        {"label_counts": [1] * 10**7},
    ],
    ids=lambda claims: next(iter(claims)),
)
@pytest.mark.parametrize("known", [True, False])
def test_what_is_declared_is_compared_before_it_is_expanded(claims, known):
    spec = InputSpec(8, 1, (0.5,), (0.5,)) if known else None
    tracemalloc.start()
    try:
        _, notes = check_metadata(Metadata(**{"num_examples": 10, **claims}), Expected({}, spec, 2))
    except UploadError as error:
        notes = [str(error)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert notes and all(len(note) < 300 and note.endswith(".") for note in notes)
    assert peak < 2**20


def test_shapes_and_names_without_end_are_not_written_out():
    header = ArrayHeader((1,) * 10**6, "float32", 4)
    with pytest.raises(UploadError, match="a has shape of 1000000 dimensions where") as error:
        check_headers({"a": header}, {"a": ArraySpec((2,), np.dtype(np.float32))})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("mean", "same"), [((0.5,), True), ((0.5, 0.5, 0.5), True), ((0.5, 0.5, 0.4), False)]
)
def test_one_mean_for_all_channels_is_that_mean_for_each(mean, same):
    known = InputSpec(8, 3, (0.5,), (0.5,))
    declared = {"size": 8, "channels": 3, "mean": list(mean), "std": [0.5]}
    for one, other in ((known, declared), (InputSpec.from_dict(declared), known.to_dict())):
        claims, expected = Metadata(10, input_spec=other), Expected(input_spec=one)
        if same:
            check_metadata(claims, expected)
        else:
            with pytest.raises(UploadError, match="input spec differs from the server's: mean is"):
                check_metadata(claims, expected)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, -1, 6], "whole numbers"),
        ([5, True], "whole numbers"),
        ([5.0, 5.0], "whole numbers"),
        ("55", "whole numbers"),
        ([10], "of 1 classes where the server has 2"),
        ([4, 5], "sum to 9 but num-examples = 10"),
        ([10**400, 0], "whole numbers"),
        ([10**12, 0], "below 1e12"),
        ([9 * 10**4299] * 2, "whole numbers"),  # their sum has more digits than Python writes
    ],
)
def test_label_counts_that_lie_are_left_out_and_the_weights_kept(counts, words):
    claims, (note,) = check_metadata(Metadata(10, label_counts=counts), Expected(num_classes=2))
    assert claims.label_counts is None and claims.num_examples == 10
    assert words in note and note.endswith(".")


def test_metrics_that_are_not_finite_numbers_are_left_out():
    metrics = {"loss": 0.5, "nan": float("nan"), "list": [1], "yes": True, "huge": 10**400, "n": 3}
    assert check_metadata(Metadata(10, metrics=metrics))[0].metrics == {"loss": 0.5, "n": 3.0}


def test_the_digest_depends_on_names_types_shapes_and_values_only():
    base = {"a": np.zeros((2, 2), np.float32), "b": np.ones(1, np.float32)}
    assert arrays_digest(base) == arrays_digest(dict(reversed(base.items())))
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(4), "b": base["b"]},
        {"a": base["a"].view(np.int32), "b": base["b"]},
        {"a": base["a"], "b": base["b"] * 2},
    ]
    assert len({arrays_digest(other) for other in [base, *others]}) == 5
