"""Measure the global model, and beside it everything that it is compared with."""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmitr_app.config import Config
from fedmitr_app.errors import UploadError
from fedmitr_app.evaluation import FederatedScore
from fedmitr_app.inversion import Pool, PoolData, Schedule, diversity
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.methods import MethodResult, Task
from fedmitr_app.models import PatchViT
from fedmitr_app.partitions import ImageSet
from fedmitr_app.report.data import PoolSample
from fedmitr_app.report.tables import RESULT_NAMES
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.scoring import AccuracyBench
from fedmitr_app.teacher import Teacher, Trust
from fedmitr_app.uploads import RoundOutcome, WeightCheck
from fedmitr_app.utils.progress import Progress

_log = logging.getLogger(__name__)

SHOWN_IMAGES = 30
EVALUATION = "evaluation.json"
"""For a run that is stopped after it; of no use once the run is over."""


@dataclass(frozen=True)
class Results:
    """Everything measured, before it is written."""

    outcome: RoundOutcome
    global_state: Mapping[str, Tensor]
    """Of the global model, or of all models side by side for ``server.method = "ensemble"``."""
    model: PatchViT
    """The architecture and input spec; its weights are θ₀."""
    class_names: tuple[str, ...]
    accuracy: Mapping[str, Any]
    """As in ``metrics.json``; empty without a test set."""
    test_images: int
    labels: Mapping[str, Sequence[int]]
    """Client key to its images of each class, of those clients where the server knows it."""
    on_shards: Mapping[str, FederatedScore]
    """By name, the clients' own evaluation, if ``server.federated-evaluation`` asked for it."""
    left_out: Set[str]
    """Keys of the accepted clients that the method did without."""
    fused: MethodResult
    """The global model and how it came about."""
    trust: Sequence[Trust] = ()
    """Of each accepted upload's answers."""
    weight_checks: Sequence[WeightCheck] = ()
    """Of its weights."""
    control: MethodResult | None = None
    schedule: Schedule | None = None
    flop_ratio: float | None = None
    diversity: float = 0.0
    """Of the pool, within a class."""
    pool: PoolSample | None = None
    simulated: bool = False
    """Whether Flower simulated the clients' nodes."""
    total_seconds: float = 0.0
    by_class: Mapping[str, Any] = field(default_factory=dict)
    """As :meth:`AccuracyBench.by_class` has it; empty without a test set."""
    data_read: str = ""
    """What the server read of the dataset, in one line."""


def measure(
    *,
    outcome: RoundOutcome,
    global_state: Mapping[str, Tensor],
    fused: MethodResult,
    control: MethodResult | None,
    task: Task,
    model: PatchViT,
    names: tuple[str, ...],
    test_set: ImageSet | None,
    labels: NDArray[Any] | None,
    on_shards: Mapping[str, FederatedScore],
    left_out: Set[str],
    config: Config,
    folder: RunFolder,
    device: torch.device,
) -> Results:
    """Score the global model and everything beside it, and pick images to show.

    The comparators (each client, FedAvg, the ensemble) are made from the same uploads,
    whatever ``server.method`` made the global model. ``task`` holds what the method loaded.
    ``labels``, int ``[clients, classes]``, is what the server knows to have been dealt.
    """
    teacher = fused.teacher or _compared_teacher(task)
    results = Results(
        outcome=outcome,
        global_state=global_state,
        model=model,
        class_names=names,
        accuracy={},
        test_images=0 if test_set is None else len(test_set),
        data_read="" if test_set is None else test_set.read,
        labels=_known_labels(labels, outcome),
        on_shards=on_shards,
        trust=task.trust,
        weight_checks=task.weight_checks,
        left_out=left_out,
        fused=fused,
        control=control,
    )
    if fused.inversion is not None:
        curves = fused.inversion_curves
        alive = [round(count) for count in curves.get("alive", ())]
        ratio = None if teacher is None else flop_ratio(teacher.models[0], alive)
        results = replace(results, schedule=Schedule.build(fused.inversion), flop_ratio=ratio)
    if fused.images and teacher is not None:
        pool = Pool(folder.pool, model.num_patches).load(device)
        sample = _sample(pool, teacher, model, names, results.schedule)
        results = replace(results, diversity=_diversity(teacher, pool), pool=sample)
    if test_set is None:
        return results
    # The bare ensemble has no single model: its accuracy is the teacher's.
    single = fused.model is not None
    other = None if control is None else control.model
    # Whose answers the teacher's are made of: the clients, as a rule. Beside them FedAvg, and
    # perhaps the others.
    asked = {client.model for client in task.clients} | set(teacher.models if teacher else ())
    scored = len(asked) + 1 + (other is not None) + single
    key = {"of": task.origin, "images": len(test_set)}
    known = folder.read_json(EVALUATION)
    by_class = known.pop("by_class", None)
    if known.pop("key", None) == key and _are_scores(known) and _are_counts(by_class):
        return replace(results, accuracy=known, by_class=by_class)
    stage = f"evaluation of {scored} models on the test set"
    with Progress(stage, scored * len(test_set), opening=False) as progress:
        batch_size, heard = config.server.eval_batch_size, progress.advance
        bench = AccuracyBench(test_set.images, test_set.labels, model, device, batch_size, heard)
        accuracy = bench.compare(task.clients, teacher, task.average, other)
        accuracy["student"] = bench.state_accuracy(global_state, "student") if single else None
    by_class = bench.by_class()
    folder.write_json(EVALUATION, {"key": key, "by_class": by_class, **accuracy})
    return replace(results, accuracy=accuracy, by_class=by_class)


def _compared_teacher(task: Task) -> Teacher | None:
    """Return the ensemble beside a global model that has none; None if nobody is of use to it."""
    try:
        return task.defended(warn=False).teacher
    except UploadError as error:
        _log.warning("The global model is compared with no ensemble: %s", error)
        return None


def _are_scores(known: Mapping[str, Any]) -> bool:
    """Say whether a file that somebody may have changed holds accuracies, and nothing else."""
    clients = known.get("clients")
    if not isinstance(clients, dict):
        return False
    scores = [*clients.values(), *(value for name, value in known.items() if name != "clients")]
    return known.keys() <= {*RESULT_NAMES, "clients"} and all(
        score is None or (isinstance(score, (int, float)) and 0 <= score <= 1) for score in scores
    )


def _are_counts(known: object) -> bool:
    """Say likewise of what :meth:`AccuracyBench.by_class` returns."""
    if not isinstance(known, dict) or known.keys() - {*RESULT_NAMES, "images", "confusions"}:
        return False
    pairs = known.get("confusions", [])
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 3 for p in pairs):
        return False
    rows = [row for key, row in known.items() if key != "confusions"]
    if not all(isinstance(row, list) and all(map(_is_count, row)) for row in [*rows, *pairs]):
        return False
    classes = {len(row) for row in rows}
    return len(classes) == 1 and all(max(pair[:2]) < min(classes) for pair in pairs)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _known_labels(dealt: NDArray[Any] | None, outcome: RoundOutcome) -> Mapping[str, Sequence[int]]:
    """Return what was dealt, unless an upload says otherwise; else what clients chose to share.

    Who changes the client app to bring data of its own was dealt nothing: the figure would lie.
    """
    rows = [] if dealt is None else dealt.tolist()
    known = {f"client-{number:03d}": tuple(row) for number, row in enumerate(rows)}
    shared = {upload.client: upload.label_counts for upload in outcome.accepted}
    agree = all(
        sum(known.get(upload.client, ())) == upload.num_examples
        and upload.label_counts in (None, known[upload.client])
        for upload in outcome.accepted
    )
    return known if agree else {key: counts for key, counts in shared.items() if counts}


def _title(target: Tensor, names: Sequence[str]) -> str:
    """Name an image's likeliest class, and the next one if it has a quarter or more."""
    shares, labels = target.topk(min(2, len(target)))
    likely = [
        names[label] for share, label in zip(shares, labels.tolist(), strict=True) if share >= 0.25
    ]
    return " + ".join(likely) or names[int(labels[0])]


def _diversity(teacher: Teacher, pool: PoolData) -> float:
    with Progress(
        "diversity of the images", len(pool) * len(teacher.models), opening=False
    ) as progress:
        return diversity(teacher, pool.images, pool.targets.argmax(-1), on_batch=progress.advance)


@torch.no_grad()
def _sample(
    pool: PoolData,
    teacher: Teacher,
    model: PatchViT,
    names: Sequence[str],
    schedule: Schedule | None,
) -> PoolSample:
    images, targets, mask = (part[:SHOWN_IMAGES] for part in (pool.images, pool.targets, pool.mask))
    stopped = schedule is not None and bool(schedule.stops)
    # [K, n, N] -> [n, grid, grid]
    seen = (member(images, attention=True).cls_attn for member in teacher.models)
    maps = torch.stack([each for each in seen if each is not None])
    attention = teacher.density(maps, targets).unflatten(1, (model.grid, model.grid))
    return PoolSample(
        images=model.spec.denormalise(images).cpu(),
        patch_size=model.patch_size,
        titles=[_title(target, names) for target in targets.cpu()],
        kept=[row.nonzero().flatten().cpu() for row in mask] if stopped else None,
        attention=attention.cpu(),
    )
