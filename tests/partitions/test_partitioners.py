"""Dealing: seeded, disjoint, complete, and clear about what can't be dealt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmitr_app.config import PartitionConfig
from fedmitr_app.config.schema import PARTITIONERS
from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.partitioners import deal
from fedmitr_app.partitions.rows import make_rows, stratified_order


def rows_of(labels, domains=None):
    return make_rows(list(labels), lambda rows: iter(()), "data.source = 'test'", domains=domains)


def rows_for(kind: str, labels):
    domains = [f"d{row % 4}" for row in range(len(labels))]
    return rows_of(labels, domains if kind == "natural" else None)


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_same_seed_same_rows_and_no_row_twice(kind, labels):
    rows, partition = rows_for(kind, labels), PartitionConfig(kind=kind, alpha=0.5, min_samples=2)
    first, again = (deal(rows, partition, 4, seed=1) for _ in range(2))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    dealt = np.concatenate(first)
    assert len(set(dealt)) == len(dealt) and len(first) == 4
    if kind != "pathological":
        assert sorted(dealt) == list(range(len(labels)))


@pytest.mark.parametrize("kind", [kind for kind in PARTITIONERS if kind != "natural"])
def test_another_seed_deals_differently(kind, labels):
    partition = PartitionConfig(kind=kind, alpha=0.5, min_samples=0)
    one, other = (deal(rows_of(labels), partition, 4, seed) for seed in (1, 2))
    assert any(a.tolist() != b.tolist() for a, b in zip(one, other, strict=True))


def test_inner_dirichlet_and_iid_give_equal_sizes(labels):
    for kind in ("inner-dirichlet", "iid"):
        sizes = [len(part) for part in deal(rows_of(labels), PartitionConfig(kind=kind), 3, 0)]
        assert sorted(sizes) == [66, 67, 67]


def test_balanced_dirichlet_is_more_even(labels):
    spread = {}
    for kind in ("dirichlet", "dirichlet-balanced"):
        partition = PartitionConfig(kind=kind, alpha=0.3, min_samples=0)
        sizes = [
            [len(part) for part in deal(rows_of(labels), partition, 4, seed)] for seed in range(8)
        ]
        spread[kind] = np.std(sizes, axis=1).mean()
    assert spread["dirichlet-balanced"] < spread["dirichlet"]


def test_pathological_gives_each_client_its_number_of_classes(labels):
    partition = PartitionConfig(kind="pathological", classes_per_client=2)
    parts = deal(rows_of(labels), partition, 5, seed=0)
    assert [len(set(labels[part])) for part in parts] == [2] * 5
    assert len(np.concatenate(parts)) == len(labels)


def test_natural_is_one_domain_each_in_the_order_of_names():
    rows = rows_of([0, 1, 0, 1], ["b", "a", "b", "c"])
    parts = deal(rows, PartitionConfig(kind="natural"), 3, seed=5)
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3]]


def test_natural_takes_numbered_domains_in_numeric_order():
    rows = rows_of([0, 0, 0], [10, 9, 2])
    parts = deal(rows, PartitionConfig(kind="natural"), 3, seed=5)
    assert [part.tolist() for part in parts] == [[2], [1], [0]]


def test_natural_draws_no_progress_bar(capfd, labels):
    deal(rows_for("natural", labels), PartitionConfig(kind="natural"), 4, seed=0)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_as_many_clients_as_samples_or_one_class_or_one_client(kind):
    def sizes(labels, clients):
        domains = [row % clients for row in range(len(labels))]
        partition = PartitionConfig(kind=kind, alpha=1.0, min_samples=0, classes_per_client=1)
        return [len(part) for part in deal(rows_of(labels, domains), partition, clients, 0)]

    assert sum(sizes([0] * 6, 6)) == 6
    assert sum(sizes([0] * 6, 2)) == 6
    assert sum(sizes([0, 0, 0], 1)) == 3


def test_class_numbers_with_gaps(labels):
    sparse = labels * 7 + 3
    for kind in ("inner-dirichlet", "dirichlet"):
        parts = deal(rows_of(sparse), PartitionConfig(kind=kind, min_samples=0), 4, 0)
        assert sorted(np.concatenate(parts)) == list(range(len(labels)))


def refusal(rows, partition, clients, *parts):
    with pytest.raises(ConfigError) as error:
        deal(rows, partition, clients, seed=0)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("kind", PARTITIONERS)
@pytest.mark.parametrize("clients", [0, 7])
def test_more_clients_than_images(kind, clients):
    rows = rows_of([0, 1] * 3, ["a", "b"] * 3)
    refusal(rows, PartitionConfig(kind=kind), clients, f"num-supernodes = {clients}", "1 to 6")


def test_more_classes_per_client_than_classes(labels):
    partition = PartitionConfig(kind="pathological", classes_per_client=6)
    refusal(rows_of(labels), partition, 4, "partition.classes-per-client = 6", "at most 5")


def test_fewer_images_of_a_class_than_clients_that_want_it():
    partition = PartitionConfig(kind="pathological", classes_per_client=2)
    rows = rows_of([0] * 9 + [1])
    refusal(rows, partition, 3, "partition.classes-per-client = 2", "10 training images", "lower")


@pytest.mark.parametrize("kind", ["dirichlet", "dirichlet-balanced"])
def test_min_samples_out_of_reach(kind, labels):
    partition = PartitionConfig(kind=kind, alpha=0.05, min_samples=60)
    refusal(
        rows_of(labels),
        partition,
        4,
        "partition.min-samples = 60",
        "partition.alpha = 0.05",
        "4 clients",
        "lower",
    )


def test_natural_without_or_with_other_domains(labels):
    natural = PartitionConfig(kind="natural")
    refusal(rows_of(labels), natural, 4, "partition.kind = 'natural'", "data.domain-column")
    refusal(
        rows_for("natural", labels),
        natural,
        3,
        "num-supernodes = 3",
        "4, one for each domain",
        "'d0', 'd1', 'd2', 'd3'",
    )


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    clients=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    kind=st.sampled_from(["dirichlet", "dirichlet-balanced", "inner-dirichlet", "iid"]),
)
def test_any_data_is_dealt_whole_or_refused_in_words(labels, clients, seed, alpha, kind):
    partition = PartitionConfig(kind=kind, alpha=alpha, min_samples=0)
    try:
        parts = deal(rows_of(labels), partition, clients, seed)
    except ConfigError as error:
        assert clients > len(labels) or kind == "inner-dirichlet", error
        return
    assert len(parts) == clients
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_prefixes_of_the_stratified_order_are_stratified(labels, data):
    labels = np.asarray(labels)
    order = stratified_order(labels, "property")
    assert sorted(order) == list(range(len(labels)))
    count = data.draw(st.integers(0, len(labels)))
    kept = np.bincount(labels[order[:count]], minlength=5)
    fair = np.bincount(labels, minlength=5) * count / len(labels)
    # Each class's place in line is off by less than one row, and so is the prefix's end.
    assert (np.abs(kept - fair) < 2 + 1e-9).all()
