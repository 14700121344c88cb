"""Progress: enough lines to follow, too few to flood, no needless reading of losses."""

import logging
import time

import pytest
import torch

from fedmitr_app.utils.progress import Progress, duration, headline, sign_of_life
from tests.helpers.clock import Clock


def run(steps: int, seconds_each: float, total: int | None = None, **options: object) -> list[str]:
    lines: list[str] = []
    clock = Clock()
    total = steps if total is None else total
    with Progress("inversion", total, log=lines.append, clock=clock, **options) as progress:
        for step in range(steps):
            clock.now += seconds_each
            progress.advance(loss=1.0 / (step + 1))
    return lines


def test_a_line_every_few_seconds_and_no_more() -> None:
    lines = run(steps=10_000, seconds_each=0.01)  # 100 seconds
    assert lines[0] == "== inversion: 10000 images =="
    assert 23 <= len(lines[1:-1]) <= 25
    assert lines[-1].startswith("inversion: 10000 images in 1 min 40 s, 100 images/s, loss ")


def test_a_line_says_how_far_how_fast_and_how_long_still() -> None:
    lines = run(steps=4, seconds_each=5.0)
    assert lines[1:] == [
        "inversion: 1 of 4 images (25 %), 0.2 images/s, loss 1, about 15 s left",
        "inversion: 2 of 4 images (50 %), 0.2 images/s, loss 0.5, about 10 s left",
        "inversion: 3 of 4 images (75 %), 0.2 images/s, loss 0.3333, about 5.0 s left",
        "inversion: 4 images in 20 s, 0.2 images/s, loss 0.25",
    ]


def test_a_unit_in_parts_counts_by_its_share() -> None:
    # Three images that take four steps each, all three at once.
    lines: list[str] = []
    clock = Clock()
    with Progress("inversion", 3, parts=4, log=lines.append, clock=clock) as progress:
        for note in ("choosing starts", "", "", ""):
            clock.now += 5.0
            progress.advance(3, loss=None if note else 2.0, note=note)
    assert lines == [
        "== inversion: 3 images ==",
        "inversion: 0 of 3 images (25 %), choosing starts, 0.15 images/s, about 15 s left",
        "inversion: 1 of 3 images (50 %), 0.15 images/s, loss 2, about 10 s left",
        "inversion: 2 of 3 images (75 %), 0.15 images/s, loss 2, about 5.0 s left",
        "inversion: 3 images in 20 s, 0.15 images/s, loss 2",
    ]


def test_steps_over_batches_tell_their_speed_in_images() -> None:
    lines = run(steps=2, seconds_each=5.0, unit="steps", images_per_unit=12.5)
    assert lines == [
        "== inversion: 2 steps ==",
        "inversion: 1 of 2 steps (50 %), 2.5 images/s, loss 1, about 5.0 s left",
        "inversion: 2 steps in 10 s, 2.5 images/s, loss 0.5",
    ]


def test_a_quick_loop_has_a_headline_and_a_closing_line() -> None:
    assert len(run(steps=50, seconds_each=0.0)) == 2
    assert len(run(steps=0, seconds_each=0.0)) == 2


def test_an_unknown_total_promises_nothing() -> None:
    lines = run(steps=3, seconds_each=5.0, total=0, unit="steps")
    assert lines[0] == "== inversion =="
    assert lines[1] == "inversion: 1 steps, 0.2 steps/s, loss 1"


def test_losses_are_read_only_for_a_line() -> None:
    reads = []
    lines: list[str] = []
    clock = Clock()

    def loss() -> torch.Tensor:
        reads.append(clock.now)
        return torch.tensor(0.5)

    with Progress("distillation", 100, log=lines.append, clock=clock) as progress:
        for _ in range(100):
            clock.now += 0.1
            progress.advance(loss=loss)
    assert len(reads) == len(lines) - 1  # the headline has none
    assert len(reads) <= 3


def test_a_loss_tensor_is_kept_without_its_graph() -> None:
    weight = torch.ones(1, requires_grad=True)
    lines: list[str] = []
    with Progress("distillation", 1, log=lines.append, clock=Clock()) as progress:
        progress.advance(loss=(weight * 2).sum())
        assert progress._loss.grad_fn is None
    assert lines[-1].endswith("loss 2")


def test_a_failure_is_told_and_passed_on_without_reading_the_loss() -> None:
    lines: list[str] = []

    def broken() -> float:
        raise AssertionError("must not be read")

    with (
        pytest.raises(KeyboardInterrupt),
        Progress("inversion", 8, log=lines.append, clock=Clock()) as progress,
    ):
        progress.advance(3, loss=broken)
        raise KeyboardInterrupt
    assert lines[-1] == "inversion: stopped at 3 of 8 images by KeyboardInterrupt"


def test_rate_and_seconds_stay_after_the_end() -> None:
    clock = Clock()
    with Progress("inversion", 8, log=lambda _: None, clock=clock) as progress:
        clock.now += 4.0
        progress.advance(8)
    clock.now += 1000.0
    assert progress.seconds == 4.0
    assert progress.rate == 2.0


def test_without_a_log_lines_go_to_the_packages_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fedmitr_app"):
        headline("training")
    assert caplog.messages == ["== training =="]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.99, "10.0 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_stage_may_leave_its_ends_to_others_but_not_that_it_was_stopped() -> None:
    assert run(steps=3, seconds_each=0.0, opening=False, closing=False) == []
    assert len(run(steps=3, seconds_each=0.0, opening=False)) == 1
    lines: list[str] = []
    stage = Progress("merging", 2, log=lines.append, opening=False, closing=False)
    with pytest.raises(ValueError, match="no"), stage:
        raise ValueError("no")
    assert lines == ["merging: stopped at 0 of 2 images by ValueError"]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_only_silence_gets_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, kept = logging.getLogger("fedmitr_app"), _Kept()
    monkeypatch.setattr(logger, "handlers", [kept])
    monkeypatch.setattr(logger, "level", logging.INFO)
    child = logging.getLogger("fedmitr_app.anything")
    logger.manager._clear_cache()
    with sign_of_life(every_seconds=1.0):
        for _ in range(8):  # busy for longer than the limit
            child.info("== merging ==")
            time.sleep(0.2)
        assert kept.lines == ["== merging =="] * 8
        time.sleep(1.2)
    silent = kept.lines[8:]
    assert len(silent) in (1, 2)
    assert all(line.endswith("since the start; the last step was: merging") for line in silent)
    assert not kept.filters
