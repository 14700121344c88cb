"""Steps recorded once and replayed: the same images, and a loop that waits for no device."""

import pytest
import torch

from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion import invert_batch, recorded, require_recordable
from fedmitr_app.inversion.recorded import Recorded
from fedmitr_app.inversion.serving import Serving
from fedmitr_app.randomness import generator
from tests.inversion.pretended import gpu, on_gpu, recording
from tests.inversion.tiny import (
    CLASSES,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

CPU = torch.device("cpu")
BATCH, ITERATIONS = 4, 24
MEMBERS = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 1]]).bool()


def invert(config, device=CPU, members=MEMBERS, teacher=None):
    made = invert_batch(
        (teacher or tiny_teacher("prior-probed")).to(device),
        random_images(BATCH).to(device),
        random_targets(BATCH).to(device),
        config,
        generator(0, "test"),
        members=members if members is None else members.to(device),
        student=tiny_vit(17).requires_grad_(False).to(device),
    )
    return made


def require_equal(one, other):
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.keep_idx, other.keep_idx)
    assert torch.equal(one.confidence, other.confidence)
    assert one.curves == other.curves


CASES = [
    {},
    {"schedule": "dense"},
    {"schedule": "random"},
    {"schedule": "automatic"},
    {"ensemble": "stacked"},
    {"step_scale": "image"},
    {"loss": "per-teacher"},
    {"gradient": "frugal"},
    {"similarity": 0.3, "disagreement": 0.5},
    {"early_stop": 0.3},
]


@pytest.mark.parametrize("members", [None, MEMBERS], ids=["all", "some"])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_replayed_steps_make_the_same_images(monkeypatch, changes, members):
    plain = invert(inversion_config(iterations=ITERATIONS, **changes), members=members)
    tapes = recording(monkeypatch)
    config = inversion_config(iterations=ITERATIONS, cuda_graphs=True, **changes)
    require_equal(invert(config, members=members), plain)
    # Of each number of patches: once as it is, then from the tape, but for the step that looks
    # for what to stop. The first stop comes too soon for a tape.
    if not changes:
        assert [tape.replays for tape in tapes] == [1, ITERATIONS - 5 - 1]
    assert sum(tape.replays for tape in tapes) >= ITERATIONS // 3


def test_steps_that_ask_others_each_time_are_not_recorded(monkeypatch):
    changes = {"iterations": ITERATIONS, "loss": "per-teacher", "teachers_per_step": 2}
    plain = invert(inversion_config(**changes), members=None)
    tapes = recording(monkeypatch)
    require_equal(invert(inversion_config(cuda_graphs=True, **changes), members=None), plain)
    assert not tapes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (RuntimeError("not permitted when stream is capturing\nand more"), "not permitted when"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_steps_that_cannot_be_recorded_are_taken_as_they_are(monkeypatch, caplog, error, reason):
    plain = invert(inversion_config(iterations=ITERATIONS))

    def fail(work, device):
        raise error

    monkeypatch.setattr(recorded, "DEVICES", ("cpu",))
    monkeypatch.setattr(recorded, "record", fail)
    require_equal(invert(inversion_config(iterations=ITERATIONS, cuda_graphs=True)), plain)
    assert f"without a recording ({reason}" in caplog.text and "and more" not in caplog.text


def test_a_recording_that_baked_in_a_number_would_be_seen(monkeypatch):
    """The tape is worth something: work that counts in Python goes wrong on it."""
    tapes, count, total = recording(monkeypatch), [0], torch.zeros(())

    def work():
        count[0] += 1
        return total.add_(count[0])

    again = Recorded(work, CPU)
    found = [float(again()) for _ in range(4)]
    assert found == [1.0, 3.0, 5.0, 7.0]  # 1, 3, 6, 10 if it were done each time
    assert tapes[0].replays == 3


def test_on_a_cpu_there_is_nothing_to_record():
    require_recordable(inversion_config(), CPU)
    with pytest.raises(ConfigError, match="inversion.cuda-graphs = True .* false, .* on cpu"):
        require_recordable(inversion_config(cuda_graphs=True), CPU)


@pytest.mark.parametrize("members", [None, MEMBERS], ids=["all", "some"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "random"},
        {"ensemble": "stacked"},
        {"similarity": 0.3},
        {"loss": "per-teacher"},
    ],
    ids=str,
)
def test_the_loop_waits_for_no_device(monkeypatch, changes, members):
    waited = []

    class Enough(Exception):
        """Of the loop: its curves are read after it."""

    def on_step(point):
        waited.append(len(waits.copies))
        if len(waited) == ITERATIONS:
            raise Enough

    teacher = tiny_teacher()
    with gpu(monkeypatch) as waits, pytest.raises(Enough):
        there = on_gpu(teacher)
        images = torch.empty_like(random_images(BATCH), device="cuda")
        targets = torch.empty(BATCH, CLASSES, dtype=torch.float64, device="cuda")
        # Who serves which image is looked up once: here it was.
        served = [torch.empty(count, dtype=torch.long, device="cuda") for count in (2, 3, 3)]
        monkeypatch.setattr(Serving, "served", None if members is None else served)
        invert_batch(
            there,
            images,
            targets,
            inversion_config(iterations=ITERATIONS, **changes),
            generator(0, "test"),
            members=None if members is None else torch.empty(3, BATCH, device="cuda").bool(),
            on_step=on_step,
        )
    # What is waited for is before the first step: where images and bounds are put.
    assert waited == waited[:1] * ITERATIONS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", CASES[:-1], ids=str)
def test_a_gpu_records_and_waits_for_nothing(changes):
    gpu = torch.device("cuda")
    invert(inversion_config(iterations=ITERATIONS, **changes), gpu)  # what is made once is made
    plain = invert(inversion_config(iterations=ITERATIONS, **changes), gpu)
    config = inversion_config(iterations=ITERATIONS, cuda_graphs=True, **changes)
    found = invert(config, gpu)
    torch.testing.assert_close(found.images, plain.images, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.keep_idx, plain.keep_idx)
