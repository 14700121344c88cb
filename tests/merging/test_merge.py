"""The merges of weights against slow oracles, and what each may never do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmitr_app.config import MergeConfig
from fedmitr_app.errors import UploadError
from fedmitr_app.merging import (
    Mergeable,
    class_weights,
    class_wise_head,
    merge,
    own_length,
    ties,
)
from fedmitr_app.uploads import WeightCheck
from tests.helpers.merges import SHAPES, State, drawn, sent, unasked
from tests.helpers.plain_merges import average

EVERY = [
    MergeConfig(trunk=trunk, head=head, knowledge="head-rows")
    for trunk in ("average", "ties")
    for head in ("average", "class-wise")
]


def trained(start: State, clients: int, step: float = 0.1) -> list[State]:
    return [
        {name: start[name] + value for name, value in drawn(100 + number, step).items()}
        for number in range(clients)
    ]


@pytest.fixture
def start() -> State:
    return drawn(0)


def same(one: State, other: State, **near: float) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert one[name].dtype == value.dtype
        torch.testing.assert_close(one[name], value, **(near or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("clients", [1, 3])
def test_ties_by_loops(tmp_path, start, clients, density):
    states, sizes = trained(start, clients), [30, 10, 20][:clients]
    taken = Mergeable.of(sent(tmp_path, states, sizes), start)
    trunk = [name for name in SHAPES if not name.startswith("head")]

    def flat(state: State) -> list[float]:
        return [float(x) for name in trunk for x in state[name].double().flatten()]

    began, steps = flat(start), []
    for state in states:
        step = [end - begin for end, begin in zip(flat(state), flat(start))]
        order = sorted(range(len(step)), key=lambda place: -abs(step[place]))
        stay = set(order[: max(1, round(density * len(step)))])
        steps.append([x if place in stay else 0.0 for place, x in enumerate(step)])
    expected = []
    for place, begin in enumerate(began):
        values = [(size, step[place]) for size, step in zip(sizes, steps)]
        total = sum(size * value for size, value in values)
        agree = [(size, value) for size, value in values if value * total > 0]
        weight = sum(size for size, _ in agree)
        mean = sum(size * value for size, value in agree) / weight if agree else 0.0
        expected.append(begin + mean)
    found = ties(taken, density)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-5, atol=1e-6)
    plain = average(taken.uploads)
    assert all(torch.equal(found[name], plain[name]) for name in ("head.weight", "head.bias"))


def test_a_class_wise_head_by_hand(tmp_path, start):
    states = trained(start, 2)
    taken = Mergeable.of(sent(tmp_path, states, [10, 30]), start)
    # Class 0: the first knows it alone; 1: three to one; 2: nobody; 3: alike; 4: the second.
    weights = torch.tensor([[2.0, 3.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.1]]).double()
    found = class_wise_head(taken, weights)
    first = [1.0, 0.75, 0.25, 0.5, 0.0]
    assert found.keys() == {"head.weight", "head.bias"}
    for name, value in found.items():
        for label, share in enumerate(first):
            rows = [state[name][label] for state in states]
            torch.testing.assert_close(value[label], share * rows[0] + (1 - share) * rows[1])


def test_shared_counts_weigh_by_the_root_of_a_classes_images(tmp_path, start):
    counts = [(4, 6, 0, 0, 0), (0, 9, 1, 0, 0)]
    taken = Mergeable.of(sent(tmp_path, trained(start, 2), [10, 10], counts), start)
    weights = class_weights(taken, "label-counts", unasked)
    ratio = weights / weights[0, 0]
    torch.testing.assert_close(ratio, torch.tensor(counts).double().sqrt() / 2)


def test_counts_that_one_client_keeps_to_itself(tmp_path, start, caplog):
    uploads = sent(tmp_path, trained(start, 2), [10, 10], [(4, 6, 0, 0, 0), None])
    taken = Mergeable.of(uploads, start)
    found = class_weights(taken, "label-counts", unasked)
    assert "not every client shared (client.share-label-counts); using 'head-rows'" in caplog.text
    assert torch.equal(found, class_weights(taken, "head-rows", unasked))


@pytest.mark.parametrize("reset", [False, True])
def test_rows_that_stayed_where_they_began_tell_who_holds_what(tmp_path, start, reset):
    """Client 0 holds classes 0 and 3; client 1 class 4 alone; client 2 all."""
    states, held = trained(start, 3), ([0, 3], [4], range(5))
    for state, own in zip(states, held):
        for label in range(5):
            row = start["head.weight"][label] * (0 if reset else 1)
            moved = torch.tensor([0.0, 3.0, 0.0, 4.0]) if label in own else -1e-3 * row
            if label == 3 and own == [0, 3]:  # a class of few images: its row hardly moved
                moved = 0.08 * moved
            state["head.weight"][label] = row + moved
    taken = Mergeable.of(sent(tmp_path, states, [36, 48, 16]), start)
    expected = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1] * 5]).double()
    torch.testing.assert_close(class_weights(taken, "head-rows", unasked), expected)


def test_what_answers_show_weighs_by_its_root(tmp_path, start):
    taken = Mergeable.of(sent(tmp_path, trained(start, 2), [20, 80]), start)
    priors = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.05, 0.8, 0.05, 0.05, 0.05]])
    expected = (torch.tensor([[0.2], [0.8]]) * priors).sqrt().double()
    torch.testing.assert_close(
        class_weights(taken, "probed", lambda: priors), expected, rtol=1e-6, atol=1e-7
    )


def test_a_head_that_nobody_trained_is_averaged(tmp_path, start):
    states = [{**state, "head.weight": start["head.weight"]} for state in trained(start, 3)]
    uploads = sent(tmp_path, states)
    found = merge(Mergeable.of(uploads, start), EVERY[1], unasked)
    same(found, average(uploads))


@pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.trunk}, {config.head}")
def test_one_client_alone_keeps_its_head(tmp_path, start, config):
    (state,) = states = trained(start, 1)
    found = merge(Mergeable.of(sent(tmp_path, states), start), config, unasked)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name], state[name])
    if config.trunk == "average":
        same(found, state, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.trunk}, {config.head}")
def test_clients_that_agree_are_merged_into_what_they_are(tmp_path, start, config):
    """But for what a trunk's merge makes of a single step: that is the same for one and many."""
    (state,) = trained(start, 1)
    alone, many = tmp_path / "alone", tmp_path / "many"
    for folder in (alone, many):
        folder.mkdir()
    one = merge(Mergeable.of(sent(alone, [state]), start), config, unasked)
    found = merge(Mergeable.of(sent(many, [state] * 4), start), config, unasked)
    same(found, one, rtol=1e-5, atol=1e-6)
    still = merge(Mergeable.of(sent(alone, [start] * 2), start), config, unasked)
    same(still, start)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_the_order_of_uploads_changes_rounding_alone(tmp_path_factory, config, sizes, random):
    start, folder = drawn(0), tmp_path_factory.mktemp("uploads")
    uploads = sent(folder, trained(start, len(sizes)), sizes)
    shuffled = random.sample(uploads, len(uploads))
    one = merge(Mergeable.of(uploads, start), config, unasked)
    other = merge(Mergeable.of(shuffled, start), config, unasked)
    same(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=5, max_size=5), st.integers(1, 40))
def test_no_stranger_owns_a_class_by_the_length_of_its_rows(tmp_path_factory, lengths, size):
    """Whatever one client's rows are, it counts for one holder of a class."""
    start, folder = drawn(0), tmp_path_factory.mktemp("uploads")
    states = trained(start, 3)
    states[2]["head.weight"] = start["head.weight"] + torch.tensor(lengths)[:, None]
    taken = Mergeable.of(sent(folder, states, [10, 10, size]), start)
    honest = Mergeable.of(taken.uploads[:2], start)
    found = class_weights(taken, "head-rows", unasked)
    assert (found[2] <= 1).all()
    # Nor does it change what the others count for beside each other.
    alone = class_weights(honest, "head-rows", unasked)
    torch.testing.assert_close(found[0] / found[1], alone[0] / alone[1])


@pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.trunk}, {config.head}")
def test_an_unfit_upload_is_in_no_merge_and_a_scaled_one_scaled_back(tmp_path, start, config):
    states = trained(start, 3)
    broken = {name: 1e6 * value for name, value in states[1].items()}
    louder = {**states[2], "blocks.0.fc.weight": 8 * states[2]["blocks.0.fc.weight"]}
    louder["head.weight"] = 4 * louder["head.weight"]
    weighed = [
        WeightCheck(),
        WeightCheck(unfit="whatever"),
        WeightCheck(scaled="so", factors=(("blocks.0.fc.weight", 1 / 8), ("head.weight", 1 / 4))),
    ]
    uploads = sent(tmp_path, [states[0], broken, louder], [10, 20, 30])
    found = merge(Mergeable.of(uploads, start, weighed), config, unasked)
    folder = tmp_path / "honest"
    folder.mkdir()
    rest = sent(folder, [states[0], states[2]], [10, 30])
    same(found, merge(Mergeable.of(rest, start), config, unasked))
    nobody = Mergeable.of(uploads, start, [WeightCheck(unfit="whatever")] * 3)
    same(merge(nobody, config, unasked), start)
    with pytest.raises(UploadError, match="no upload"):
        Mergeable.of([], start)


@pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.trunk}, {config.head}")
def test_arrays_keep_their_types(tmp_path, start, config):
    odd = {
        "steps": torch.tensor([3, 5]),
        "flag": torch.tensor([True, False]),
        "blocks.2.fc.weight": torch.randn(4, 4).half(),
        "empty": torch.zeros(0),
    }
    start |= odd
    states = [{**state, **odd} for state in trained(drawn(0), 2)]
    states[0]["steps"], states[0]["flag"] = torch.tensor([6, 5]), torch.tensor([False, True])
    states[1]["blocks.2.fc.weight"] = odd["blocks.2.fc.weight"] + 0.5
    uploads = sent(tmp_path, states, [30, 10])
    found = merge(Mergeable.of(uploads, start), config, unasked)
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in start.items()
    }
    assert found["steps"].tolist() == [5, 5] and found["flag"].tolist() == [False, True]
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())


@pytest.mark.parametrize("trunk", ["average", "ties"])
def test_a_scale_stretches_the_step_of_all_but_the_head(tmp_path, start, trunk):
    taken = Mergeable.of(sent(tmp_path, trained(start, 3)), start)
    plain = merge(taken, MergeConfig(trunk, density=0.5), unasked)
    found = merge(taken, MergeConfig(trunk, density=0.5, scale=1.7), unasked)
    for name, value in plain.items():
        times = 1.0 if name.startswith("head") else 1.7
        torch.testing.assert_close(found[name], start[name] + times * (value - start[name]))


def length(state: State, start: State) -> float:
    squares = [(state[name] - start[name]).square().sum() for name in SHAPES if "head" not in name]
    return float(sum(squares) ** 0.5)


def test_a_merged_step_may_be_as_long_as_the_clients_own(tmp_path, start):
    shared, states = drawn(7, 0.1), trained(start, 3)
    states = [{name: value + shared[name] for name, value in state.items()} for state in states]
    taken = Mergeable.of(sent(tmp_path, states, [10, 20, 70]), start)
    found = merge(taken, MergeConfig(scale=0.0), unasked)
    lengths = [length(state, start) for state in states]
    expected = sum(share * own for share, own in zip((0.1, 0.2, 0.7), lengths))
    assert length(found, start) == pytest.approx(expected, rel=1e-4)
    assert length(found, start) > 1.05 * length(average(taken.uploads), start)


def test_who_goes_against_the_others_stretches_no_step_without_end(tmp_path, start):
    (state,) = trained(start, 1)
    against = {name: start[name] - 0.99 * (value - start[name]) for name, value in state.items()}
    taken = Mergeable.of(sent(tmp_path, [state, state, against, against], [5] * 4), start)
    scale = own_length(taken, average(taken.uploads))
    assert scale == pytest.approx(2.0, rel=1e-3)  # the root of their number
    still = Mergeable.of(sent(tmp_path, [start] * 2), start)
    assert own_length(still, start) == 1.0


def test_by_default_a_merge_is_the_average_to_the_last_bit(tmp_path, start):
    uploads = sent(tmp_path, trained(start, 4))
    same(merge(Mergeable.of(uploads, start), MergeConfig(), unasked), average(uploads))


def test_a_density_of_all_is_a_mean_of_those_that_agree(tmp_path, start):
    """Of two alike with opposite steps nothing is left; nor is anything made up."""
    state = trained(start, 1)[0]
    mirrored = {name: 2 * start[name] - value for name, value in state.items()}
    found = ties(Mergeable.of(sent(tmp_path, [state, mirrored], [7, 7]), start), 1.0)
    for name, value in found.items():
        most = (state[name] - start[name]).abs().max()
        assert math.isfinite(float(most)) and (value - start[name]).abs().max() <= 1.01 * most
