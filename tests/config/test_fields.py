"""Each kind of setting: what it takes, and the words with which it refuses."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.config.fields import choice, flag, number, numbers, text, whole

NOT_NUMBERS = [True, "1", "", None, math.nan, math.inf, -math.inf, 10**400]


def parse(field: dataclasses.Field, raw):
    return field.metadata["parse"](raw)


def refused(field: dataclasses.Field, raw) -> str:
    with pytest.raises(ValueError) as error:
        parse(field, raw)
    return str(error.value)


@pytest.mark.parametrize("raw", [0.0, 0.5, 1.0, 0, 1])
def test_number_takes_its_closed_range(raw):
    value = parse(number(0.5, low=0.0, high=1.0), raw)
    assert value == raw and isinstance(value, float)


@pytest.mark.parametrize("raw", [-1e-9, 1.0001, 2, *NOT_NUMBERS])
def test_number_refuses_with_its_range(raw):
    assert refused(number(0.5, low=0.0, high=1.0), raw) == "a number from 0 to 1"


@pytest.mark.parametrize(
    ("field", "raw", "words"),
    [
        (number(1.0, low=0.0, open_low=True), 0, "a number above 0"),
        (number(1.0, low=0.5), 0.4, "a number of at least 0.5"),
        (number(0.5, low=0.0, high=0.9, open_low=True), 0.0, "a number above 0 and at most 0.9"),
        (number(0.5, low=0.0, high=0.9, open_low=True), 1.0, "a number above 0 and at most 0.9"),
        (number(0.5), "x", "a number"),
        (whole(3, low=1), 0, "a whole number of at least 1"),
        (whole(3, low=1, high=5), 6, "a whole number from 1 to 5"),
    ],
)
def test_words_of_each_range(field, raw, words):
    assert refused(field, raw) == words


@pytest.mark.parametrize("raw", [1, 3, 5])
def test_whole_takes_its_range(raw):
    assert parse(whole(3, low=1, high=5), raw) == raw


@pytest.mark.parametrize("raw", [0, 6, 2.0, 2.5, *NOT_NUMBERS])
def test_whole_refuses(raw):
    assert refused(whole(3, low=1, high=5), raw) == "a whole number from 1 to 5"


def test_choice():
    field = choice("a", "a", "b")
    assert parse(field, "b") == "b"
    for raw in ("c", "A", "", 1, None, ["a"]):
        assert refused(field, raw) == "one of 'a', 'b'"


def test_flag():
    assert parse(flag(False), True) is True
    for raw in (0, 1, "true", None):
        assert refused(flag(False), raw) == "true or false"


def test_text():
    assert parse(text("x"), "") == ""
    for raw in (1, True, None):
        assert refused(text("x"), raw) == "a string"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("0.1,0.2", (0.1, 0.2)),
        (" 0.1 , 1 ", (0.1, 1.0)),
        ("0.3", (0.3,)),
        (0.3, (0.3,)),
        (1, (1.0,)),
        ("", ()),
    ],
)
def test_numbers_take_a_list_in_a_string_or_one_number(raw, expected):
    assert parse(numbers((0.5,), low=0.0, high=1.0), raw) == expected


@pytest.mark.parametrize(
    "raw", ["a", "0.1;0.2", "0.1,2", "-1", "nan", 2, True, None, [0.1], 10**400]
)
def test_numbers_refuse(raw):
    words = "numbers separated by commas, each from 0 to 1"
    assert refused(numbers((0.5,), low=0.0, high=1.0), raw) == words


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 10), st.floats(10, 20))
def test_a_number_is_taken_exactly_when_in_range(raw, low, high):
    field = number(low, low=low, high=high)
    if low <= raw <= high:
        assert parse(field, raw) == raw
    else:
        refused(field, raw)
