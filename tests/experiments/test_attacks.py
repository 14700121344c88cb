"""What attackers send: what it is meant to be, and that the server's checks let it through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments.attacks import (
    ABSENT,
    ATTACKS,
    BIAS,
    HEAD,
    LONG,
    POSITION,
    SAME_FUNCTION,
    SCALE,
    Knowledge,
    attack,
)
from fedmitr_app.uploads import (
    ArraySpec,
    ClassMoments,
    Metadata,
    Spool,
    check_arrays,
    check_moments,
    doubtful_counts,
    read_class_means,
    read_spool,
    set_class_means,
)
from fedmitr_app.uploads.class_means import NORM, _read
from tests.helpers.tiny import tiny_vit

CLIENTS = 4


@pytest.fixture
def theta0():
    return tiny_vit(99, torch.float32).vit.state_dict()


@pytest.fixture
def uploads(tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    for number in range(CLIENTS):
        state = tiny_vit(number, torch.float32).vit.state_dict()
        arrays = {name: value.numpy() for name, value in state.items()}
        spool.add(arrays, Metadata(10, f"client-{number}"))
    return read_spool(spool.uploads)


def sent_by(uploads, theta0, folder, name, attackers=1, seed=0):
    """Return pairs of what each attacker would have sent honestly, and what it sends."""
    folder.mkdir(exist_ok=True)
    sent = attack(uploads, name, attackers, theta0, folder, seed)
    assert [upload.client for upload in sent] == [upload.client for upload in uploads]
    pairs = [(one, other) for one, other in zip(uploads, sent) if one is not other]
    assert len(pairs) == attackers
    return [(one.load_state(), other.load_state()) for one, other in pairs]


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"long-moments"}))
def test_all_of_it_passes_the_servers_checks(uploads, theta0, tmp_path, name):
    reference = {
        key: ArraySpec(tuple(value.shape), value.numpy().dtype) for key, value in theta0.items()
    }
    digests = set()
    for honest, sent in sent_by(uploads, theta0, tmp_path / "a", name, 2):
        clean, notes = check_arrays({key: value.numpy() for key, value in sent.items()}, reference)
        assert not notes and any(not torch.equal(honest[key], sent[key]) for key in sent)
        digests.add(b"".join(value.tobytes() for value in clean.values()))
    assert len(digests) == 2, "copies would count once"


def test_the_same_clients_attack_whatever_the_attack_and_the_seed_decides(
    uploads, theta0, tmp_path
):
    def chosen(name, seed):
        sent = attack(uploads, name, 2, theta0, tmp_path, seed)
        return [index for index in range(CLIENTS) if sent[index] is not uploads[index]]

    assert len({tuple(chosen(name, 3)) for name in ATTACKS}) == 1
    assert len({tuple(chosen("scale", seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_the_same_function_with_other_weights(uploads, theta0, tmp_path, name):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", name)
    model = tiny_vit(0, torch.float32)
    images, answers = torch.randn(5, *_shape(model)), []
    for state in (honest, sent):
        model.vit.load_state_dict(state)
        answers.append(model(images).logits)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)
    changed = [key for key in honest if not torch.equal(honest[key], sent[key])]
    assert (
        len(changed)
        == {
            "same-function-norms": 2 * 6,
            "same-function-head": 3,
            "same-function-queries": 2 * 2,
            "same-function-values": 2 * 3,
            "permuted-units": 2 * 3,
            "permuted-channels": len(honest) - 1,
            "long-moments": 0,
        }[name]
    )


@pytest.mark.parametrize("name", ["spike", "mild-spike"])
def test_a_spike_is_one_value(uploads, theta0, tmp_path, name):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", name)
    different = {key: int((honest[key] != sent[key]).sum()) for key in honest}
    assert sum(different.values()) == different[POSITION] == 1
    assert sent[POSITION][0, 0, 0] == (1e18 if name == "spike" else 1e3)


def test_copies_are_of_an_honest_clients_model(uploads, theta0, tmp_path):
    sent = attack(uploads, "near-copy", 2, theta0, tmp_path, 0)
    copies = [each.load_state() for one, each in zip(uploads, sent) if one is not each]
    victim = next(one for one, each in zip(uploads, sent) if one is each).load_state()
    for copy in copies:
        for key, value in victim.items():
            torch.testing.assert_close(copy[key], value, rtol=1e-5, atol=0.0)
    assert any(not torch.equal(copies[0][key], copies[1][key]) for key in victim)


@pytest.mark.parametrize("name", ["permuted-head", "permuted-copy"])
def test_every_class_is_named_as_another(uploads, theta0, tmp_path, name):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", name)
    states = [upload.load_state() for upload in uploads]
    source = (
        honest
        if name == "permuted-head"
        else next(state for state in states if torch.equal(state[POSITION], sent[POSITION]))
    )
    assert name == "permuted-head" or not torch.equal(source[POSITION], honest[POSITION])
    weight, bias = (sent[key] for key in HEAD)
    order = [(source[HEAD[1]] == value).nonzero().item() for value in bias]
    assert sorted(order) == list(range(len(order)))
    assert all(label != number for number, label in enumerate(order))
    assert torch.equal(weight, source[HEAD[0]][order])
    assert all(torch.equal(sent[key], source[key]) for key in sent if key not in HEAD)


def test_moments_too_long_are_scaled_in_all_their_parts(theta0, tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    for number in range(2):
        state = tiny_vit(number, torch.float32).vit.state_dict()
        arrays = {name: value.numpy() for name, value in state.items()}
        counts, sums = np.array([10.0, 0, 0, 0, 0]), np.zeros((5, 16))
        sums[0] = 5.0
        moments = ClassMoments(counts, sums, np.eye(16) * 40)
        spool.add(arrays, Metadata(10, f"client-{number}"), moments)
    uploads = read_spool(spool.uploads)
    for name, factor in (("long-moments", LONG), ("sign-flip", 1.0)):
        sent = attack(uploads, name, 1, theta0, tmp_path, 0)
        (guilty,) = (n for n in range(2) if sent[n] is not uploads[n])
        found, honest = (each[guilty].load_moments() for each in (sent, uploads))
        assert np.array_equal(found.counts, honest.counts)
        np.testing.assert_allclose(found.sums, factor * honest.sums)
        np.testing.assert_allclose(found.scatter, factor**2 * honest.scatter)
        check_moments(found.arrays(), 10)


def test_means_too_long_keep_their_shares(uploads, theta0, tmp_path):
    honest = uploads[0].load_state()
    head = nn.Linear(*honest["head.weight"].shape[::-1])
    labels = torch.tensor([0, 0, 0, 1, 3])
    features = honest["norm.weight"] * nn.functional.layer_norm(torch.randn(5, 16), (16,))
    set_class_means(head, features + honest["norm.bias"], labels, by_share=True)
    honest |= {f"head.{name}": value.detach() for name, value in head.named_parameters()}
    sent = ATTACKS["long-means"](0, Knowledge(theta0, [honest], honest), torch.Generator())
    told = read_class_means([honest, sent], theta0 | {n: honest[n] for n in NORM})
    assert told[0] is not None and told[1] is None  # nor believed
    read = [_read(state) for state in (honest, sent)]
    torch.testing.assert_close(read[1].shares, read[0].shares)
    torch.testing.assert_close(read[1].means, LONG * read[0].means)


def test_who_is_absent_sends_nothing(uploads, theta0, tmp_path):
    attacked = attack(uploads, "scale", 2, theta0, tmp_path, 5)
    rest = attack(uploads, ABSENT, 2, theta0, tmp_path, 5)
    assert rest == [each for each in attacked if any(each is one for one in uploads)]
    assert len(rest) == CLIENTS - 2


@pytest.mark.parametrize(("name", "factor"), [("sign-flip", -1.0), ("scale", SCALE)])
def test_steps_are_taken_the_other_way_or_too_far(uploads, theta0, tmp_path, name, factor):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", name)
    for key, start in theta0.items():
        torch.testing.assert_close(sent[key], start + factor * (honest[key] - start))


def test_flipped_labels_are_the_honest_answers_in_reverse(uploads, theta0, tmp_path):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", "label-flip")
    model = tiny_vit(0, torch.float32)
    images, answers = torch.randn(3, *_shape(model)), []
    for state in (honest, sent):
        model.vit.load_state_dict(state)
        answers.append(model(images).logits)
    torch.testing.assert_close(answers[1], answers[0].flip(1))


def _shape(model):
    return model.spec.channels, model.spec.size, model.spec.size


def test_one_class_for_every_image(uploads, theta0, tmp_path):
    ((_, sent),) = sent_by(uploads, theta0, tmp_path / "a", "constant-class")
    model = tiny_vit(0, torch.float32)
    model.vit.load_state_dict(sent)
    logits = model(torch.randn(3, *_shape(model))).logits
    assert (logits[:, 0] == BIAS).all() and (logits[:, 1:] == 0).all()


def test_a_little_is_one_and_a_half_deviations_from_the_attackers_mean(uploads, theta0, tmp_path):
    pairs = sent_by(uploads, theta0, tmp_path / "a", "a-little-is-enough", 3)
    honest = [state for state, _ in pairs]
    for key in theta0:
        values = torch.stack([state[key] for state in honest])
        expected = values.mean(0) - 1.5 * values.std(0)
        for _, sent in pairs:
            torch.testing.assert_close(sent[key], expected, rtol=1e-3, atol=1e-3)


def test_sybils_send_nearly_the_same(uploads, theta0, tmp_path):
    (_, first), (_, second) = sent_by(uploads, theta0, tmp_path / "a", "sybils", 2)
    assert any(not torch.equal(first[key], second[key]) for key in first)
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-2, atol=1e-3)


def test_boasters_claim_just_what_is_believed(uploads, theta0, tmp_path):
    sent = attack(uploads, "boast", 1, theta0, tmp_path, 0)
    claimed = max(sent, key=lambda upload: upload.num_examples)
    assert not doubtful_counts(sent)
    others = [upload for upload in sent if upload is not claimed]
    more = replace(claimed, num_examples=claimed.num_examples + 1)
    assert doubtful_counts([*others, more]) == [claimed.client]


@pytest.mark.parametrize("name", ["gaussian-noise", "random-weights"])
def test_noise_is_as_large_as_the_weights(uploads, theta0, tmp_path, name):
    ((honest, sent),) = sent_by(uploads, theta0, tmp_path / "a", name)
    key = "blocks.0.mlp.fc1.weight"
    noise = sent[key] - honest[key] if name == "gaussian-noise" else sent[key]
    assert noise.square().mean().sqrt() == pytest.approx(
        honest[key].square().mean().sqrt().item(), rel=0.3
    )
    assert set(HEAD) <= set(sent)


def test_somebody_must_be_honest(uploads, theta0, tmp_path):
    with pytest.raises(ConfigError, match="attackers = 4: with 4 uploads at least one"):
        attack(uploads, "scale", 4, theta0, tmp_path, 0)
