"""A client's training on good and on degenerate shards."""

import importlib
import math

import pytest
import torch
from torch import nn

from fedmitr_app.config import ClientConfig
from fedmitr_app.errors import DataError, TrainingError
from fedmitr_app.training import fit, parameter_groups
from fedmitr_app.uploads.class_means import SCALE
from fedmitr_app.utils.randomness import generator
from tests.helpers.shards import SPEC, shard_of, tiny_vit

fit_module = importlib.import_module("fedmitr_app.training.fit")  # not the function
QUICK = {"epochs": 3, "batch_size": 8}


def run(model, shard, on_step=None, seed=0, **settings):
    config = ClientConfig(**{**QUICK, **settings})
    draws = generator(seed, "client-0", "training")
    return fit(model, shard, config, generator=draws, device="cpu", on_step=on_step)


def test_the_loss_goes_down_and_the_shard_is_learnt():
    losses = []
    metrics = run(
        tiny_vit(),
        shard_of([0, 1, 2] * 16),
        lambda loss: losses.append(loss.item()),
        epochs=80,
        learning_rate=1e-2,
        augment="none",
    )
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert metrics["train_accuracy"] > 0.9 and metrics["train_loss"] < 0.8


@pytest.mark.parametrize("augment", ["none", "shift", "shift-flip"])
@pytest.mark.parametrize("labels", [[1], [2] * 5, [0] * 9, [0, 1] * 4, [0, 1, 2] * 9])
def test_any_shard_of_one_image_or_more_trains(labels, augment):
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = run(model, shard_of(labels), augment=augment)
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 <= metrics["train_accuracy"] <= 1
    assert metrics["steps"] == 3 * math.ceil(len(labels) / 8) and metrics["epochs"] == 3
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5])])
def test_batches_cover_the_shard_once_and_never_exceed_the_limit(count, sizes):
    seen = []
    model = tiny_vit()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    shard = shard_of([0] * count)
    run(model, shard, epochs=1, augment="none")
    assert [len(batch) for batch in seen] == sizes
    expected = SPEC.normalise(shard.images).flatten(1)
    assert sorted(torch.cat(seen).flatten(1).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("kind", ["none", "shift", "shift-flip", "affine"])
def test_images_are_augmented_as_the_settings_say(kind, monkeypatch):
    seen, asked, honest = [], [], fit_module.augment

    def noting(images, given, generator):
        asked.append(given)
        return honest(images, given, generator)

    monkeypatch.setattr(fit_module, "augment", noting)
    model, shard = tiny_vit(), shard_of([0, 1, 2] * 2)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run(model, shard, epochs=1, augment=kind)
    assert asked == [kind]
    plain = {tuple(image.flatten().tolist()) for image in SPEC.normalise(shard.images)}
    same = [tuple(image.flatten().tolist()) in plain for image in torch.cat(seen)]
    assert all(same) == (kind == "none")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_labels_are_smoothed_as_the_settings_say(smoothing):
    losses, model, shard = [], tiny_vit(), shard_of([0, 1, 2, 0])
    with torch.no_grad():
        log_shares = model(SPEC.normalise(shard.images)).logits.log_softmax(-1)
    run(model, shard, losses.append, epochs=1, augment="none", label_smoothing=smoothing)
    hard = torch.nn.functional.one_hot(shard.labels, 3)
    labels = (1 - smoothing) * hard + smoothing / 3
    assert losses[0].item() == pytest.approx(-(labels * log_shares).sum(1).mean().item(), rel=1e-5)


def test_the_same_generator_gives_the_same_weights():
    def weights(seed):
        model = tiny_vit()
        run(model, shard_of([0, 1, 2] * 5), seed=seed)
        return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])

    torch.manual_seed(1)
    one = weights(0)
    torch.manual_seed(2)  # the global generator must not matter
    assert torch.equal(one, weights(0)) and not torch.equal(one, weights(1))


def test_steps_are_reported_and_the_model_is_left_in_evaluation_mode():
    news, model = [], tiny_vit()
    metrics = run(model, shard_of([0, 1] * 6), news.append)
    assert len(news) == metrics["steps"] == 6
    assert all(loss.isfinite() and not loss.requires_grad for loss in news)
    assert metrics["seconds"] > 0 and not model.training


def test_an_empty_shard_is_refused():
    with pytest.raises(DataError, match="no training images.*partition.min-samples"):
        run(tiny_vit(), shard_of([]))


def test_a_loss_that_is_no_number_is_refused():
    model = tiny_vit()
    nn.init.constant_(model.vit.head.bias, float("nan"))
    with pytest.raises(TrainingError) as error:
        run(model, shard_of([0, 1, 2]), learning_rate=0.01)
    message = str(error.value)
    assert "client.learning-rate = 0.01" in message and "nan in epoch 1 of 3" in message
    assert "\n" not in message


def test_frozen_weights_stay():
    model = tiny_vit()
    frozen = model.vit.patch_embed.proj.weight.requires_grad_(False)
    before = frozen.clone()
    run(model, shard_of([0, 1, 2]))
    assert torch.equal(frozen, before)


def test_biases_norms_and_tokens_do_not_decay():
    model = tiny_vit()
    kept = {
        id(p)
        for group in parameter_groups(model, 0.1)
        if not group["weight_decay"]
        for p in group["params"]
    }
    decaying = {name for name, p in model.vit.named_parameters() if id(p) not in kept}
    assert decaying == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }


def test_every_parameter_is_in_one_group():
    model = tiny_vit()
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


class Clock:
    """Each look is a second later."""

    def __init__(self):
        self.now = -1.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_a_slow_machine_takes_fewer_steps_and_its_rate_falls_as_time_runs_out(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def noted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    config = ClientConfig(**{**QUICK, "epochs": 10, "max_seconds": 8.0, "warmup": 0.0})
    model, losses = tiny_vit(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = fit(
        model,
        shard_of([0, 1, 2] * 8),
        config,
        generator=generator(0, "client-0", "training"),
        device="cpu",
        on_step=losses.append,
        clock=Clock(),
    )
    # Three batches an epoch; a look before each, at 1 s, 2 s, ... until 8 s are over.
    assert measured["steps"] == len(losses) == 7 and measured["epochs"] == 3
    # A cosine over the time: at a quarter of it 85 % are left, at seven eighths 4 %.
    assert rates == sorted(rates, reverse=True)
    share = [rate / config.learning_rate for rate in rates]
    assert share[1] == pytest.approx(0.85, abs=0.03) and share[-1] == pytest.approx(0.04, abs=0.03)
    assert all(math.isfinite(value) for value in measured.values())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_time_that_is_over_at_once_still_allows_a_step():
    config = ClientConfig(**{**QUICK, "max_seconds": 0.5})
    measured = fit(
        tiny_vit(),
        shard_of([0, 1, 2] * 8),
        config,
        generator=generator(0, "client-0", "training"),
        device="cpu",
        clock=Clock(),
    )
    assert measured["steps"] == 1 and math.isfinite(measured["train_loss"])


def test_time_enough_changes_nothing():
    def weights(**settings):
        model = tiny_vit()
        run(model, shard_of([0, 1, 2] * 5), **settings)
        return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])

    assert torch.equal(weights(max_seconds=1e6), weights())


@pytest.mark.parametrize("loss", ["one-vs-all", "logit-adjusted"])
@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("labels", [[1], [2] * 5, [0, 1] * 4])
def test_rows_of_the_head_tell_which_classes_a_client_holds(loss, head_first, labels):
    model = tiny_vit()
    before = model.vit.head.weight.detach().clone()
    metrics = run(model, shard_of(labels), loss=loss, head_first=head_first, weight_decay=0.0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    absent = sorted({0, 1, 2} - set(labels))
    left = torch.zeros_like(before) if head_first else before
    assert torch.equal(model.vit.head.weight[absent], left[absent])
    if loss == "one-vs-all" or len(set(labels)) > 1:  # softmax over one class has nothing to learn
        assert (model.vit.head.weight - left)[sorted(set(labels))].any(1).all()


def test_a_head_that_is_fitted_first_learns_from_features_of_the_initial_model():
    labels = [0, 1, 2] * 10
    alone, ready = tiny_vit(), tiny_vit()
    run(alone, shard_of(labels), loss="one-vs-all", epochs=1, learning_rate=1e-9)
    run(ready, shard_of(labels), loss="one-vs-all", epochs=1, learning_rate=1e-9, head_first=True)
    images = SPEC.normalise(shard_of(labels).images)
    with torch.no_grad():
        right = [
            (model(images).logits.argmax(1) == torch.tensor(labels)).float().mean().item()
            for model in (alone, ready)
        ]
    assert right[0] < 0.5 and right[1] > 0.7


def test_the_head_has_a_learning_rate_of_its_own():
    model = tiny_vit()
    before = {name: value.clone() for name, value in model.vit.state_dict().items()}
    run(model, shard_of([0, 1, 2] * 4), learning_rate=1e-12, head_learning_rate=1e-2)
    moved = {
        name: float((value - before[name]).abs().max())
        for name, value in model.vit.state_dict().items()
    }
    assert moved.pop("head.weight") > 1e-3 and moved.pop("head.bias") > 1e-3
    assert max(moved.values()) < 1e-8


def test_time_that_runs_out_in_the_heads_fit_leaves_one_step():
    ticks = iter(range(10_000))
    model, shard = tiny_vit(), shard_of([0, 1, 2] * 20)
    config = ClientConfig(epochs=50, batch_size=8, head_first=True, max_seconds=3.0)
    draws = generator(0, "client-0", "training")
    metrics = fit(
        model, shard, config, generator=draws, device="cpu", clock=lambda: float(next(ticks))
    )
    assert metrics["steps"] == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


MEANS = {"loss": "logit-adjusted", "head": "class-means"}


@pytest.mark.parametrize("labels", [[1], [2] * 5, [0, 1] * 4, [0, 1, 2] * 6])
def test_a_head_of_class_means_is_that_of_the_trained_features(labels):
    model = tiny_vit()
    before = {name: value.clone() for name, value in model.vit.state_dict().items()}
    run(model, shard_of(labels), **MEANS)
    with torch.no_grad():
        features = model(SPEC.normalise(shard_of(labels).images)).features
    for c in range(3):
        own = features[torch.tensor(labels) == c]
        row = SCALE / 4 * len(own) / len(labels) * own.mean(0) if len(own) else torch.zeros(16)
        assert torch.allclose(model.vit.head.weight[c], row, atol=1e-5)
    moved = [name for name, value in model.vit.state_dict().items() if value.ne(before[name]).any()]
    assert any(name.startswith("blocks") for name in moved)
    assert all(parameter.requires_grad for parameter in model.vit.parameters())


def test_features_are_trained_towards_their_class_means():
    shard = shard_of([0, 1, 2] * 16)

    def spread(model):  # within classes, over that between them
        with torch.no_grad():
            features = model(SPEC.normalise(shard.images)).features
        means = torch.stack([features[shard.labels == c].mean(0) for c in range(3)])
        return (features - means[shard.labels]).square().sum() / means.var(0).sum() / 48

    untrained, model = tiny_vit(), tiny_vit()
    metrics = run(model, shard, epochs=40, learning_rate=3e-3, augment="none", **MEANS)
    assert metrics["train_accuracy"] > 0.9
    assert spread(model.eval()) < 0.5 * spread(untrained.eval())


def test_training_leaves_time_for_the_class_means():
    model, shard, forwards = tiny_vit(), shard_of([0, 1, 2] * 20), []
    model.register_forward_pre_hook(lambda module, inputs: forwards.append(module.training))

    def clock() -> float:
        return float(len(forwards))

    # An epoch of 6 steps, its means of 6 batches: 37 twelfths would be 3 epochs and the last means.
    config = ClientConfig(epochs=9, batch_size=10, max_seconds=37.0, **MEANS)
    draws = generator(0, "client-0", "training")
    metrics = fit(model, shard, config, generator=draws, device="cpu", clock=clock)
    assert metrics["steps"] == 18 and forwards.count(False) == 3 * 6 + 1
    assert model.vit.head.weight.any()
