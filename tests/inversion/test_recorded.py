"""Steps recorded once and replayed: the same images, and a loop that waits for no device."""

import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch

from fedmitr_app.config import parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion import invert_batch, recorded, require_recordable, variation
from fedmitr_app.inversion.recorded import Recorder
from fedmitr_app.inversion.serving import Serving
from fedmitr_app.memory import Halving
from fedmitr_app.models import VisitingViT
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


def invert(config, device=CPU, members=MEMBERS, teacher=None, dtype=torch.float64, **more):
    return invert_batch(
        (teacher or tiny_teacher("prior-probed")).to(device),
        random_images(BATCH, dtype=dtype).to(device),
        random_targets(BATCH, dtype=dtype).to(device),
        config,
        generator(0, "test"),
        members=members if members is None else members.to(device),
        student=tiny_vit(17, dtype).requires_grad_(False).to(device),
        **more,
    )


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
    {"zoom": 0.3, "colour": 0.3, "views": 2},
    {"loss": "per-teacher"},
    {"gradient": "frugal"},
    {"similarity": 0.3, "disagreement": 0.5},
]


@pytest.fixture(autouse=True)
def both_variations(monkeypatch):
    """Total variation of all pixels before the last stop, of windows after it."""
    monkeypatch.setattr(variation, "WINDOWED_BELOW", 1.0)


@pytest.mark.parametrize("members", [None, MEMBERS], ids=["all", "some"])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_replayed_steps_make_the_same_images(monkeypatch, changes, members):
    plain = invert(inversion_config(iterations=ITERATIONS, **changes), members=members)
    tapes = recording(monkeypatch)
    config = inversion_config(iterations=ITERATIONS, cuda_graphs=True, **changes)
    require_equal(invert(config, members=members), plain)
    # Of each number of patches: once as it is, then from the tape. The stops at 2 and 5 come too
    # soon for one.
    steps = ITERATIONS if changes == {"schedule": "dense"} else ITERATIONS - 5
    assert [tape.replays for tape in tapes] == [steps - 1]


@pytest.mark.parametrize(
    "changes", [{"loss": "per-teacher", "teachers_per_step": 2}, {"early_stop": 0.3}], ids=str
)
def test_steps_that_differ_too_much_are_not_recorded(monkeypatch, changes):
    config = inversion_config(iterations=ITERATIONS, **changes)
    plain = invert(config, members=None)
    tapes = recording(monkeypatch)
    require_equal(invert(replace(config, cuda_graphs=True), members=None), plain)
    assert not tapes
    settings = {f"inversion.{name.replace('_', '-')}": value for name, value in changes.items()}
    settings |= {"inversion.teachers-per-image": 0, "inversion.cuda-graphs": True}
    with pytest.raises(ConfigError, match="inversion.cuda-graphs = True .*early-stop"):
        parse_config(settings)


def test_weights_that_visit_the_device_are_not_recorded(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    config = inversion_config(iterations=ITERATIONS, cuda_graphs=True)
    teacher = tiny_teacher()
    visitors = replace(teacher, models=tuple(map(VisitingViT, teacher.models)))
    tapes = recording(monkeypatch)
    require_equal(
        invert(config, teacher=visitors),
        invert(replace(config, cuda_graphs=False, gradient="frugal"), teacher=teacher),
    )
    assert not tapes and "not recorded: the clients' weights visit cpu" in caplog.text


def spoilt_by(cause: str) -> RuntimeError:
    """What the end of a capture raises, when something in it went wrong."""
    try:
        try:
            raise RuntimeError(cause)
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory", 2),
        (RuntimeError("not permitted when stream is capturing\nand more"), "not permitted when", 1),
        (spoilt_by("a copy that waits"), "a copy that waits", 1),
        (RuntimeError(), "RuntimeError", 1),
    ],
)
def test_steps_that_cannot_be_recorded_are_taken_as_they_are(
    monkeypatch, caplog, error, reason, tries
):
    """Tried again with fewer patches only where memory was all that lacked."""
    config, tried = inversion_config(iterations=ITERATIONS, stops=(8.0,)), []
    plain = invert(config)

    def fail(work, device):
        tried.append(device)
        raise error

    monkeypatch.setattr(recorded, "DEVICES", ("cpu",))
    monkeypatch.setattr(recorded, "record", fail)
    require_equal(invert(replace(config, cuda_graphs=True)), plain)
    assert len(tried) == tries
    assert f"without a recording ({reason}" in caplog.text and "and more" not in caplog.text


def test_a_part_that_fails_while_it_is_recorded_is_not_halved(monkeypatch):
    sizes = []

    def work(rows):
        sizes.append(rows)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(torch.OutOfMemoryError):
        Halving("testing").over(4, work)
    assert sizes == [slice(0, 4)]


def test_nothing_that_was_recorded_outlives_its_batch(monkeypatch):
    """Its memory, on a GPU that of a whole step, is free as soon as the images are made."""
    tapes = recording(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        invert(inversion_config(iterations=ITERATIONS, cuda_graphs=True))
        (tape,) = map(weakref.ref, tapes)
        tapes.clear()
        assert tape() is None
    finally:
        gc.enable()


def test_a_recording_that_baked_in_a_number_would_be_seen(monkeypatch):
    """The tape is worth something: work that counts in Python goes wrong on it."""
    tapes, count, total = recording(monkeypatch), [0], torch.zeros(())

    def work():
        count[0] += 1
        return total.add_(count[0])

    again = Recorder(CPU, True)
    again.restart(10)
    found = [float(again(work)) for _ in range(4)]
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
        {"step_scale": "image"},
        {"zoom": 0.3, "colour": 0.3, "views": 2},
    ],
    ids=str,
)
def test_the_loop_waits_for_no_device(monkeypatch, changes, members):
    """As far as a device that isn't there can show: the way back is left out."""
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
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_gpu_records_and_replays(monkeypatch, caplog, changes, precision):
    gpu, kept, record = torch.device("cuda"), [], recorded.record
    dtype = torch.float64 if precision == "float64" else torch.float32
    teacher = tiny_teacher("prior-probed", dtype=dtype)
    if precision == "bfloat16":
        for model in teacher.models:
            model.precision = precision
        # As it is built on a GPU.
        teacher = replace(teacher, models=tuple(model.rounded() for model in teacher.models))

    def watched(work, device):
        kept.append(record(work, device))
        return kept[-1]

    monkeypatch.setattr(recorded, "record", watched)
    config = inversion_config(iterations=ITERATIONS, **changes)
    plain = invert(config, gpu, teacher=teacher, dtype=dtype)
    found = invert(replace(config, cuda_graphs=True), gpu, teacher=teacher, dtype=dtype)
    assert len(kept) == 1 and "without a recording" not in caplog.text
    torch.testing.assert_close(found.images, plain.images, rtol=1e-3, atol=1e-3)


# An automatic schedule reads at each stop how many patches stay.
WITHOUT_READING = [changes for changes in CASES if changes.get("schedule") != "automatic"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", WITHOUT_READING, ids=str)
def test_a_gpu_is_not_waited_for(changes):
    gpu, taken = torch.device("cuda"), []

    def on_step(point):
        taken.append(point)
        torch.cuda.set_sync_debug_mode("error" if len(taken) < ITERATIONS else "default")

    try:
        invert(inversion_config(iterations=ITERATIONS, **changes), gpu, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(taken) == ITERATIONS
