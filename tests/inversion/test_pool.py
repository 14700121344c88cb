"""The pool on disk, what fills it, and how its variety is measured."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedmitr_app.config import decisive
from fedmitr_app.errors import RunFolderError
from fedmitr_app.inversion import (
    Inverted,
    Place,
    Pool,
    PoolRequest,
    diversity,
    make_pool,
    steps_per_image,
)
from fedmitr_app.utils.files import load_tensors, save_tensors
from tests.helpers.tiny import (
    CLASSES,
    contents,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
)

shards_module = importlib.import_module("fedmitr_app.inversion.pool_shards")


def batch(count: int = 3, kept: int = 5, seed: int = 0) -> Inverted:
    rng = torch.Generator().manual_seed(seed)
    keep = [torch.randperm(16, generator=rng)[:kept].sort().values for _ in range(count)]
    return Inverted(
        random_images(count, seed, torch.float32),
        random_targets(count, seed, torch.float32),
        torch.stack(keep),
        {},
    )


def test_roundtrip_of_several_shards(tmp_path):
    pool, parts = Pool(tmp_path / "a" / "pool", 16), [batch(3, 5, 0), batch(2, 9, 1)]
    for index in (1, 0):
        pool.add(parts[index], {"part": index}, Place(0, index))
    names = ["pool-00000-00000.safetensors", "pool-00000-00001.safetensors"]
    assert [path.name for path in pool.shards()] == names
    data = pool.load()
    assert len(data) == 5
    images = torch.cat([part.images for part in parts])
    # Half precision: to 11 bits.
    torch.testing.assert_close(data.images, images, rtol=2**-11, atol=1e-6)
    assert torch.equal(data.images, images.half().float())
    assert torch.equal(data.targets, torch.cat([part.targets for part in parts]))
    kept = [row.nonzero().flatten().tolist() for row in data.mask]
    assert kept == [row.tolist() for part in parts for row in part.keep_idx]


def test_what_is_stored_is_half_precision_and_says_where_it_comes_from(tmp_path):
    pool, facts = Pool(tmp_path, 16), {"seed": 3, "settings": {"tv": 0.1}}
    pool.add(batch(), facts, Place(0))
    with safe_open(pool.shards()[0], framework="pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}
    assert dtypes == {
        "images": torch.float16,
        "targets": torch.float32,
        "keep_idx": torch.int32,
    }
    assert pool.provenance() == [facts]


def test_no_survivors(tmp_path):
    pool = Pool(tmp_path, 16)
    pool.add(batch(kept=0), {}, Place(0))
    assert not pool.load().mask.any()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    pool = Pool(tmp_path, 16)
    pool.add(batch(), {}, Place(0))

    def disk_full(tensors, path, metadata):
        Path(path).write_bytes(b"half a shard")
        raise OSError("No space left on device")

    monkeypatch.setattr("fedmitr_app.utils.files.save_file", disk_full)
    with pytest.raises(RunFolderError, match="cannot be written: no space left"):
        pool.add(batch(), {}, Place(1))
    assert [path.name for path in tmp_path.iterdir()] == ["pool-00000-00000.safetensors"]
    assert len(pool.load()) == 3


# --- filling it


def fill(folder, seed=0, count=7, **changes):
    pool = Pool(folder, 16)
    config = inversion_config(**{"iterations": 3, "stops": (1.0,), "candidates": 2, **changes})
    request = PoolRequest(count, seed)
    teacher = tiny_teacher("prior-probed", dtype=torch.float32)
    return pool, make_pool(teacher, pool, config, request, device=torch.device("cpu")), config


def test_a_pool_is_made_batch_by_batch(tmp_path):
    pool, made, config = fill(tmp_path)
    data = pool.load()
    assert [len(part.targets) for part in made.batches] == [4, 3] and len(pool.shards()) == 2
    assert len(data) == 7 and data.mask.sum(1).tolist() == [11] * 7
    assert all(part.images.untyped_storage().nbytes() == 0 for part in made.batches)
    facts = pool.provenance()
    assert [fact["batch"] for fact in facts] == [0, 1]
    for fact in facts:
        assert (fact["seed"], fact["teacher"]) == (0, "prior-probed")
        assert fact["settings"].keys() == decisive(config).keys()
        assert fact["settings"]["learning_rate"] == config.learning_rate


def test_the_same_seed_makes_the_same_pool(tmp_path):
    torch.manual_seed(1)
    first = contents(fill(tmp_path / "a", teachers_per_image=2)[0])
    torch.manual_seed(2)
    assert contents(fill(tmp_path / "b", teachers_per_image=2)[0]) == first
    assert contents(fill(tmp_path / "c", seed=1, teachers_per_image=2)[0]) != first


def test_a_batch_does_not_depend_on_those_before_it(tmp_path):
    whole, part = fill(tmp_path / "a", count=8)[0], fill(tmp_path / "b", count=4)[0]
    assert torch.equal(whole.load().images[:4], part.load().images)


@pytest.mark.parametrize("targets", ["balanced", "mixed"])
def test_images_that_are_not_inverted_carry_the_teachers_own_labels(tmp_path, targets):
    """The control: the same starts; a label that was only drawn would be taught as noise."""
    pool, made, _ = fill(tmp_path / "a", iterations=0, targets=targets)
    data, teacher = pool.load(), tiny_teacher("prior-probed", dtype=torch.float32)
    labels = teacher(data.images).logits.softmax(-1)
    torch.testing.assert_close(data.targets, labels, rtol=0.05, atol=0.02)
    assert not data.mask.any()


def test_an_inversion_begins_at_the_controls_images(tmp_path):
    # One step moves each pixel by no more than that share of its range, which is 1 / 0.3 wide.
    control = fill(tmp_path / "a", iterations=0)[0].load()
    inverted = fill(tmp_path / "b", iterations=1, stops=(), learning_rate=0.005)[0].load()
    assert (inverted.images - control.images).abs().max() < 0.02


@pytest.mark.parametrize("candidates", [1, 2])
def test_each_image_is_reported_once_per_candidate_and_iteration(tmp_path, candidates):
    points = []
    config = inversion_config(iterations=3, stops=(), candidates=candidates)
    make_pool(
        tiny_teacher(dtype=torch.float32),
        Pool(tmp_path, 16),
        config,
        PoolRequest(7, 0),
        device=torch.device("cpu"),
        on_step=lambda job, point: points.append((job.count, sorted(point))),
    )
    curves = ["alive", "confidence", "loss"]
    assert points == [
        (count, point) for count in (4, 3) for point in [[]] * candidates + [curves] * 3
    ]
    assert sum(count for count, _ in points) == 7 * steps_per_image(config)


# --- images that are unusable


def spoil(monkeypatch, how, tries, images=(1, 2)):
    """Let some images of a batch's first tries be unusable."""
    honest, calls = shards_module.invert_batch, []

    def invert(teacher, starts, *arguments, **keywords):
        made = honest(teacher, starts, *arguments, **keywords)
        calls.append(len(starts))
        if len(calls) > tries:
            return made
        pixels, sure = made.images.clone(), made.confidence.clone()
        for image in images if len(pixels) > max(images) else range(len(pixels)):
            if how == "nan":
                pixels[image, 0, 0, 0] = torch.nan
            elif how == "flat":
                pixels[image] = 0.5
            else:
                sure[image] = 0.09 / CLASSES
        return made._replace(images=pixels, confidence=sure)

    monkeypatch.setattr(shards_module, "invert_batch", invert)
    return calls


@pytest.mark.parametrize("how", ["nan", "flat", "never reached"])
def test_unusable_images_are_made_again(tmp_path, monkeypatch, how):
    whole = fill(tmp_path / "whole", count=4)[0].load()
    calls = spoil(monkeypatch, how, tries=1)
    pool, made, _ = fill(tmp_path / "spoilt", count=4)
    data = pool.load()
    assert calls == [4, 2] and made.dropped == 0 and len(data) == 4
    assert data.images.isfinite().all() and data.images.flatten(1).std(1).min() > 0.01
    for image in (0, 3):  # the others are as they were
        assert torch.equal(data.images[image], whole.images[image])
        assert torch.equal(data.mask[image], whole.mask[image])
    for image in (1, 2):
        assert not torch.equal(data.images[image], whole.images[image])
    assert contents(fill(tmp_path / "again", count=4)[0]) != contents(pool)


def test_a_second_retry_draws_anew(tmp_path, monkeypatch):
    made, honest = [], shards_module.invert_batch

    def noting(*arguments, **keywords):
        made.append(honest(*arguments, **keywords).images)
        return honest(*arguments, **keywords)

    monkeypatch.setattr(shards_module, "invert_batch", noting)
    spoil(monkeypatch, "nan", tries=2)
    assert fill(tmp_path, count=4)[1].dropped == 0
    assert [len(images) for images in made] == [4, 2, 2]
    assert not torch.allclose(made[1], made[2])


def test_a_shard_made_under_other_settings_is_made_again(tmp_path):
    fill(tmp_path / "one", tv=0.0)
    again = fill(tmp_path / "one", tv=0.5)[0]
    assert contents(again) == contents(fill(tmp_path / "two", tv=0.5)[0])
    assert contents(again) != contents(fill(tmp_path / "three", tv=0.0)[0])


def test_those_that_stay_unusable_are_dropped_and_counted(tmp_path, monkeypatch, caplog):
    calls = spoil(monkeypatch, "nan", tries=9)
    pool, made, _ = fill(tmp_path, count=4)
    assert calls == [4, 2, 2] and made.dropped == 2
    assert len(pool.load()) == 2 and pool.load().images.isfinite().all()
    assert "2 of 4 images are unusable again: dropped." in caplog.text
    # A run that goes on counts them, too.
    assert fill(tmp_path, count=4)[1].dropped == 2 and calls == [4, 2, 2]


def test_initial_images_are_taken_as_they_come(tmp_path):
    pool, made, _ = fill(tmp_path, iterations=0)
    assert made.dropped == 0 and len(pool.load()) == 7


# --- diversity


def test_diversity_against_all_pairs():
    teacher, images = tiny_teacher(clients=2), random_images(9)
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 3, 3, 3])
    distances = []
    for model in teacher.models:
        features = model(images).features
        for label in range(CLASSES):
            rows = [features[i] for i in range(9) if labels[i] == label]
            pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
            if pairs:
                cosines = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
                distances.append(1 - sum(cosines) / len(pairs))
    found = diversity(teacher, images, labels, batch_size=4)
    assert found == pytest.approx(sum(distances) / len(distances))


def test_diversity_of_copies_and_of_single_images():
    teacher, images = tiny_teacher(), random_images(1).expand(4, -1, -1, -1)
    assert diversity(teacher, images, torch.zeros(4).long()) == pytest.approx(0, abs=1e-9)
    assert diversity(teacher, images, torch.arange(4)) == 0.0


def stored(**changes):
    """A shard's tensors, some of them others."""
    made = batch(3, 5)
    tensors = {
        "images": made.images.half(),
        "targets": made.targets,
        "keep_idx": made.keep_idx.int(),
    }
    return {**tensors, **changes}


FACTS = {"provenance": {}, "curves": {"loss": [1.0, None]}, "seconds": 2.0}


@pytest.mark.parametrize(
    ("tensors", "facts", "why"),
    [
        ({}, {"provenance": []}, "are no tables"),
        ({}, {"curves": {"loss": 1.0}}, "are no numbers"),
        ({}, {"curves": {"loss": ["1"]}}, "are no numbers"),
        ({}, {"seconds": None}, "are no numbers"),
        ({"images": torch.zeros(3, 1, 8, 8)}, {}, "its tensors are others"),
        ({"images": torch.zeros(3, 8, 8).half()}, {}, "its tensors are others"),
        ({"more": torch.zeros(1)}, {}, "its tensors are others"),
        ({"targets": torch.zeros(2, 3)}, {}, "different numbers of images"),
        ({"targets": torch.full((3, 3), -1.0)}, {}, "targets below zero"),
        ({"images": torch.full((3, 1, 8, 8), float("nan")).half()}, {}, "not finite"),
        ({"keep_idx": torch.full((3, 1), 16).int()}, {}, "patches beyond 16"),
        ({"keep_idx": torch.full((3, 1), -1).int()}, {}, "patches beyond 16"),
    ],
)
def test_a_shard_that_is_whole_and_none_is_made_again(tmp_path, caplog, tensors, facts, why):
    """Its digest is right: whoever can write a folder can work that out."""
    pool, place = Pool(tmp_path, 16), Place(0)
    save_tensors(tmp_path / "pool-00000-00000.safetensors", stored(), FACTS)
    found, seconds = pool.find({}, place)
    assert seconds == 2.0 and math.isnan(found.curves["loss"][1])
    save_tensors(tmp_path / "pool-00000-00000.safetensors", stored(**tensors), {**FACTS, **facts})
    assert pool.find({}, place) is None and why in caplog.text
    assert pool.digests() == [""]
    with pytest.raises(RunFolderError, match=why):
        pool.load()


def test_a_shard_of_other_images_is_made_again_or_refused(tmp_path):
    pool, _, _ = fill(tmp_path)
    whole, first = contents(pool), pool.shards()[0]
    left = load_tensors(first)
    save_tensors(first, {**left.tensors, "images": left.tensors["images"][..., :4]}, left.facts)
    with pytest.raises(RunFolderError, match="holds other images or classes than those before"):
        pool.load()
    fill(tmp_path)
    assert contents(pool) == whole
