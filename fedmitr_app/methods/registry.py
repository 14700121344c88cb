"""What there is to know of each method: one entry, which everything else reads.

The strategy, the comparison grid, the report and the command line look here. A method is a file
with one decorated function; installed packages add theirs as entry points of the group
``fedmitr_app.methods``, whose objects are such functions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from fedmitr_app.config import Config
from fedmitr_app.errors import ConfigError
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import SECTIONS
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT

MOMENTS, REAL_IMAGES = "moments", "real-images"
"""What a method can need beside weights: class moments of every client's features; training
images, which no server has."""
NEEDS = (MOMENTS, REAL_IMAGES)
DISTILS = ("merge", "teacher", "inversion", "distillation")
"""The sections of settings that a method reads which makes images and distils on them."""
ENTRY_POINTS = "fedmitr_app.methods"

Run = Callable[[Task], MethodResult]


@dataclass(frozen=True)
class Method:
    """A one-shot method: from a round's uploads to a global model.

    Parameters
    ----------
    name : str
        As ``server.method`` and an experiment's rows call it.
    run : Callable[[Task], MethodResult]
        Raises ``MethodUnavailable`` where the uploads lack what it needs.
    reads : tuple[str, ...]
        The sections of a :class:`MethodSettings` that its result depends on.
    needs : tuple[str, ...]
        What it needs beside weights: ``moments``, ``real-images``.
    makes_images : bool
        Whether it makes images: what these earn can be compared with the control, initial images
        neither chosen nor inverted.
    averages : bool
        Whether an upload that can't be averaged with the others is of no use to it.
    screens : bool
        Whether clients are left out first whose answers to generic images are of no use: not
        worth asking them all for a method that looks at weights alone, unless
        ``teacher.defence`` wants it.
    paper : str
        Where it is from; empty for what has no paper.
    """

    name: str
    run: Run
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes_images: bool = False
    averages: bool = False
    screens: bool = True
    paper: str = ""

    def __call__(self, task: Task) -> MethodResult:
        """Run it.

        Raises
        ------
        TypeError
            If it gives back something else than it must: a mistake of who wrote it.
        """
        found = self.run(task)
        if not isinstance(found, MethodResult) or not isinstance(found.model, PatchViT | None):
            raise TypeError(
                f"method {self.name!r} must return a MethodResult of a PatchViT "
                f"(Task.model_of makes one of a state dict), not {found!r:.200}"
            )
        return found


METHODS: dict[str, Method] = {}
"""Every method that is known, by its name."""


def register(
    name: str,
    *,
    reads: Iterable[str] = DISTILS,
    needs: Iterable[str] = (),
    makes_images: bool = False,
    averages: bool = False,
    screens: bool = True,
    paper: str = "",
) -> Callable[[Run], Run]:
    """Return a decorator that makes a function a method, see :class:`Method`.

    Raises
    ------
    ValueError
        If another function has the name already, or ``reads`` or ``needs`` names what there is
        not.
    """
    reads, needs = tuple(reads), tuple(needs)
    for kind, given, allowed in (("reads", reads, SECTIONS), ("needs", needs, NEEDS)):
        if unknown := sorted(set(given) - set(allowed)):
            raise ValueError(f"{kind} of method {name!r} must be of {allowed}, not {unknown}")

    def decorate(run: Run) -> Run:
        known = METHODS.get(name)
        if known is not None and (known.run.__module__, known.run.__qualname__) != (
            run.__module__,
            run.__qualname__,
        ):
            raise ValueError(f"a method {name!r} is registered already, by {known.run.__module__}")
        METHODS[name] = Method(name, run, reads, needs, makes_images, averages, screens, paper)
        return run

    return decorate


def known_methods() -> Mapping[str, Method]:
    """Return every method, those of other installed packages too."""
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()  # its decorator registers it
    return METHODS


def find_method(name: str, setting: str = "server.method") -> Method:
    """Return the method of a name that a server can run.

    Raises
    ------
    ConfigError
        If there is none, naming those that there are.
    """
    found = METHODS.get(name) or known_methods().get(name)
    if found is None or REAL_IMAGES in found.needs:
        allowed = sorted(each.name for each in METHODS.values() if REAL_IMAGES not in each.needs)
        raise ConfigError.bad_value(setting, name, f"one of {', '.join(map(repr, allowed))}")
    return found


def check_method(config: Config) -> Method:
    """Return the method that ``server.method`` names, if the other settings give what it needs.

    Raises
    ------
    ConfigError
        If there is no such method, or the clients don't send what it needs.
    """
    found = find_method(config.server.method)
    if MOMENTS in found.needs and not config.client.share_moments:
        raise ConfigError.bad_value(
            "server.method", found.name, "another method while client.share-moments = false"
        )
    return found
