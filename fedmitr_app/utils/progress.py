"""Progress of long loops: a headline, a line every few seconds, a closing line."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from torch import Tensor

Log = Callable[[str], object]
SECONDS_BETWEEN_LINES = 4.0
"""Of what tells how far it is: less than :func:`sign_of_life` waits, so that it speaks first."""

Loss = float | Tensor | Callable[[], float | Tensor]


def headline(text: str, log: Log | None = None) -> None:
    """Log the start of a stage so that it stands out."""
    (log or _log_info)(f"== {text} ==")


class Progress:
    """Tell how far a loop has come, without flooding the log or stalling the device.

    Parameters
    ----------
    stage : str
        What is going on, such as "inversion".
    total : int
        How many units there are; 0 when unknown.
    unit : str
        What is counted, in the plural.
    parts : int
        How often :meth:`advance` must count a unit until it is done.
    images_per_unit : float | None
        How many images a unit takes, on average, where units aren't images themselves: the
        speed is then told in images per second.
    every_seconds : float
        Shortest time between two lines.
    opening, closing : bool
        Begin with a headline, which a stage that is short as a rule does not need; end with a
        line, which somebody else may say. That it was stopped is always told.
    log : Callable[[str], object] | None
        Takes each line; by default the ``fedmitr_app`` logger at level INFO.
    clock : Callable[[], float]
        Monotonic seconds.

    Examples
    --------
    >>> with Progress("inversion", 2, log=print, clock=lambda: 0.0) as progress:
    ...     progress.advance(2, loss=0.5)
    == inversion: 2 images ==
    inversion: 2 images in 0.0 s, loss 0.5
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str = "images",
        parts: int = 1,
        images_per_unit: float | None = None,
        every_seconds: float = SECONDS_BETWEEN_LINES,
        opening: bool = True,
        closing: bool = True,
        log: Log | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self.total = total
        self.unit = unit
        self._parts = parts
        self._parts_done = 0
        self._images_per_unit = images_per_unit
        self._every_seconds = every_seconds
        self._opening, self._closing = opening, closing
        self._log = log or _log_info
        self._clock = clock
        self._loss: Loss | None = None
        self._note = ""
        self._started = self._last_line = clock()
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start, or of the whole loop once it is over."""
        return (self._clock() if self._ended is None else self._ended) - self._started

    @property
    def done(self) -> float:
        """Units so far, parts of a unit included."""
        return self._parts_done / self._parts

    @property
    def rate(self) -> float:
        """Units per second so far; 0.0 before any time has passed."""
        seconds = self.seconds
        return self.done / seconds if seconds > 0 else 0.0

    def __enter__(self) -> "Progress":
        self._started = self._last_line = self._clock()
        amount = f": {self.total} {self.unit}" if self.total else ""
        if self._opening:
            headline(f"{self.stage}{amount}", self._log)
        return self

    def advance(self, count: int = 1, loss: Loss | None = None, note: str = "") -> None:
        """Count ``count`` units, or one part of each, as done.

        Parameters
        ----------
        count : int
            How many more are done.
        loss : float | Tensor | Callable[[], float | Tensor] | None
            The current loss. A tensor or callable is read only when a line is due,
            so that an accelerator need not be waited for at every step.
        note : str
            What is going on just now, if the stage's name doesn't say it.
        """
        self._parts_done += count
        self._note = note
        if loss is not None:
            # Without detach the last step's whole graph would live until the next one.
            self._loss = loss.detach() if isinstance(loss, Tensor) else loss
        now = self._clock()
        # The last step has the closing line.
        if now - self._last_line >= self._every_seconds and self.done != self.total:
            self._last_line = now
            self._log(self._line())

    def skip(self, count: int) -> None:
        """Take units out of the count that an earlier run did."""
        self.total -= count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended = self._clock()
        if kind is not None:
            # No loss here: reading it might raise the same device error again.
            self._log(f"{self.stage}: stopped at {self._count()} by {kind.__name__}")
        elif self._closing:
            done = f"{int(self.done)} {self.unit} in {duration(self.seconds)}"
            self._log(f"{self.stage}: {done}" + self._rate_words() + self._loss_words())
        self._loss = None

    def _line(self) -> str:
        whole = self.total * self._parts
        share = f" ({100 * self._parts_done // whole} %)" if whole else ""
        left = ""
        if self.rate > 0 and self.total > self.done:
            left = f", about {duration((self.total - self.done) / self.rate)} left"
        note = f", {self._note}" if self._note else ""
        head = f"{self.stage}: {self._count()}{share}{note}"
        return head + self._rate_words() + self._loss_words() + left

    def _count(self) -> str:
        of = f" of {self.total}" if self.total else ""
        return f"{int(self.done)}{of} {self.unit}"

    def _rate_words(self) -> str:
        rate, unit = self.rate, self.unit
        if rate <= 0:
            return ""
        if self._images_per_unit is not None:
            rate, unit = rate * self._images_per_unit, "images"
        return f", {rate:.0f} {unit}/s" if rate >= 100 else f", {rate:.3g} {unit}/s"

    def _loss_words(self) -> str:
        value = self._loss() if callable(self._loss) else self._loss
        return "" if value is None else f", loss {float(value):.4g}"


class _Silence(logging.Filter):
    """Knows when a handler was last given a line, and which."""

    def __init__(self) -> None:
        super().__init__()
        self.since, self.line = time.monotonic(), "start"

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(record, "sign_of_life", False):
            self.line = record.getMessage().strip("= ") or self.line
        self.since = time.monotonic()
        return True


@contextlib.contextmanager
def sign_of_life(every_seconds: float = 5.0) -> Iterator[None]:
    """Log a line whenever the ``with`` block has logged none for so long.

    It says after which line the work went on in silence: compiling or merging has no steps.
    """
    logger, over, silence = logging.getLogger("fedmitr_app"), threading.Event(), _Silence()
    started, pause = time.monotonic(), every_seconds / 20

    def watch() -> None:
        while not over.wait(pause):
            if time.monotonic() - silence.since >= every_seconds - pause:
                so_far = duration(time.monotonic() - started)
                words = "still working, %s since the start; the last step was: %s"
                logger.info(words, so_far, silence.line, extra={"sign_of_life": True})

    handlers = list(logger.handlers)  # a logger's own filter sees no line of its children
    for handler in handlers:
        handler.addFilter(silence)
    watcher = threading.Thread(target=watch, name="sign of life", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for handler in handlers:
            handler.removeFilter(silence)


def duration(seconds: float) -> str:
    """Return a length of time in words that fit a log line.

    >>> duration(7.25), duration(80), duration(7500)
    ('7.2 s', '1 min 20 s', '2 h 05 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _log_info(line: str) -> None:
    logging.getLogger("fedmitr_app").info(line)
