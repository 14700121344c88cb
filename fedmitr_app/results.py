"""What a run found out: measured after the last step, then written to the run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmitr_app.comparison import TestBench
from fedmitr_app.config import Config, default_run_config, flatten
from fedmitr_app.config.presets import PRESETS
from fedmitr_app.fusion import (
    Fusion,
    FusionSettings,
    build_teacher,
    fuse_by_inversion,
    load_clients,
)
from fedmitr_app.inversion import Pool, Schedule
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.models import PatchViT, architecture_of
from fedmitr_app.partitions import ImageSet
from fedmitr_app.reporting import ClientRow, Curves, PoolSample, ReportData, RunFolder
from fedmitr_app.reporting.progress import headline
from fedmitr_app.reporting.report import write_report
from fedmitr_app.reporting.table import write_clients_csv
from fedmitr_app.strategies.outcome import RoundOutcome
from fedmitr_app.teacher import ClientModel, Teacher
from fedmitr_app.uploads import average

SHOWN_IMAGES = 30


@dataclass(frozen=True)
class Results:
    """Everything measured, before it is written."""

    outcome: RoundOutcome
    global_state: Mapping[str, Tensor]
    model: PatchViT
    class_names: tuple[str, ...]
    accuracy: Mapping[str, Any]
    fusion: Fusion | None
    schedule: Schedule
    flop_ratio: float
    pool: PoolSample | None
    labels: NDArray[Any] | None
    test_images: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0


def collect_results(
    *,
    outcome: RoundOutcome,
    global_state: Mapping[str, Tensor],
    fusion: Fusion | None,
    model: PatchViT,
    names: tuple[str, ...],
    test_set: ImageSet | None,
    labels: NDArray[Any] | None,
    config: Config,
    folder: RunFolder,
    device: torch.device,
) -> Results:
    """Score the global model and everything beside it, and pick images to show.

    The comparators (each client, FedAvg, the ensemble, the control) are made from the same
    uploads, whatever ``server.method`` made the global model.
    """
    clients = load_clients(model, outcome.accepted, device)
    teacher = build_teacher(clients, config.teacher, config.seed)
    averaged = average(outcome.accepted)
    settings = FusionSettings(config.teacher, config.inversion, config.distillation, config.seed)
    schedule = Schedule.build(config.inversion)
    accuracy: dict[str, Any] = {}
    control = None
    if test_set is not None:
        if fusion is not None and config.server.control:
            headline("control: the same starting images, not inverted")
            control = fuse_by_inversion(
                model,
                clients,
                averaged,
                teacher,
                settings.without_inversion(),
                folder.path / "control-pool",
                label="control: ",
            )
        headline(f"evaluation on {len(test_set)} held-out images")
        accuracy = _accuracies(
            config, test_set, model, device, clients, teacher, averaged, global_state, control
        )
    sample = None
    if fusion is not None:
        pool = Pool(folder.pool, model.num_patches)
        sample = _sample(pool, teacher, model, names, schedule)
    return Results(
        outcome=outcome,
        global_state=global_state,
        model=model,
        class_names=names,
        accuracy=accuracy,
        fusion=fusion,
        schedule=schedule,
        flop_ratio=flop_ratio(teacher.models[0], schedule, config.inversion.iterations),
        pool=sample,
        labels=labels,
        test_images=0 if test_set is None else len(test_set),
        seconds={"control": 0.0 if control is None else control.distillation_seconds},
    )


def write_results(
    folder: RunFolder, results: Results, config: Config, environment: Mapping[str, Any]
) -> tuple[list[ClientRow], dict[str, Any]]:
    """Write tables, metrics, model, figures and the report; return the rows and metrics."""
    rows = client_rows(results)
    metrics = metrics_of(results, config.seed)
    write_clients_csv(rows, folder.clients)
    _write_curves(folder, results)
    folder.write_json("metrics.json", metrics)
    if config.server.method != "ensemble":
        spec = results.model.spec.to_dict()
        architecture = architecture_of(results.model)
        folder.save_model(results.global_state, architecture, spec, results.class_names)
    write_report(folder, _report_data(results, rows, metrics, config, environment))
    return rows, metrics


def client_rows(results: Results) -> list[ClientRow]:
    """One row for each client that was heard of, in the order of their keys."""
    outcome = results.outcome
    scored = results.accuracy.get("clients", {})
    rows = [
        ClientRow(
            client=upload.client,
            num_examples=upload.num_examples,
            train_loss=upload.metrics.get("train-loss"),
            train_accuracy=upload.metrics.get("train-accuracy"),
            accuracy=scored.get(upload.client),
        )
        for upload in outcome.accepted
    ]
    rows += [
        ClientRow(client=refused.client, status="rejected", reason=refused.reason)
        for refused in outcome.rejected
    ]
    rows += [
        ClientRow(client=key, num_examples=0, status="no data", reason="its shard is empty")
        for key in outcome.no_data
    ]
    return rows


def metrics_of(results: Results, seed: int) -> dict[str, Any]:
    """Return ``metrics.json``; what varies by itself is under seconds and throughput."""
    outcome, fusion = results.outcome, results.fusion
    metrics: dict[str, Any] = {
        "seed": seed,
        "accuracy": dict(results.accuracy),
        "uploads": {
            "asked": outcome.asked,
            "accepted": len(outcome.accepted),
            "rejected": len(outcome.rejected),
            "no_data": len(outcome.no_data),
            "missing": outcome.missing,
        },
        "test_images": results.test_images,
        "seconds": {"training": outcome.collect_seconds},
        "throughput": {},
    }
    if fusion is not None:
        confidence = fusion.inversion_curves.get("confidence") or [None]
        metrics["inversion"] = {
            "flop_ratio": results.flop_ratio,
            "images": fusion.images,
            "diversity": fusion.diversity,
            "confidence": confidence[-1],
        }
        metrics["distillation"] = {
            "steps": len(fusion.distillation_loss),
            "loss": fusion.distillation_loss[-1],
        }
        metrics["seconds"] |= {
            "inversion": fusion.inversion_seconds,
            "distillation": fusion.distillation_seconds,
        }
        metrics["throughput"] = {
            "inverted_images_per_second": fusion.images / max(fusion.inversion_seconds, 1e-9),
            "distillation_steps_per_second": len(fusion.distillation_loss)
            / max(fusion.distillation_seconds, 1e-9),
        }
    metrics["seconds"] |= {**results.seconds, "total": results.total_seconds}
    return metrics


def _accuracies(
    config: Config,
    test_set: ImageSet,
    model: PatchViT,
    device: torch.device,
    clients: Sequence[ClientModel],
    teacher: Teacher,
    averaged: Mapping[str, Tensor],
    global_state: Mapping[str, Tensor],
    control: Fusion | None,
) -> dict[str, Any]:
    batch_size = config.server.eval_batch_size
    bench = TestBench(test_set.images, test_set.labels, model, device, batch_size)
    accuracy = bench.compare(
        clients, teacher, averaged, {"control": None if control is None else control.student}
    )
    ensemble = config.server.method == "ensemble"
    accuracy["student"] = None if ensemble else bench.state_accuracy(global_state)
    return accuracy


@torch.no_grad()
def _sample(
    pool: Pool, teacher: Teacher, model: PatchViT, names: Sequence[str], schedule: Schedule
) -> PoolSample:
    data = pool.load(teacher.class_weights.device)
    images, targets, mask = (part[:SHOWN_IMAGES] for part in (data.images, data.targets, data.mask))
    maps = torch.stack([member(images, attention=True).cls_attn for member in teacher.models])
    attention = teacher.density(maps, targets).unflatten(1, (model.grid, model.grid))
    return PoolSample(
        images=model.spec.denormalise(images).cpu(),
        patch_size=model.patch_size,
        titles=[names[label] for label in targets.argmax(-1).tolist()],
        kept=[row.nonzero().flatten().cpu() for row in mask] if schedule.stops else None,
        attention=attention.cpu(),
    )


def _write_curves(folder: RunFolder, results: Results) -> None:
    for upload in results.outcome.accepted:
        folder.append_metrics("training", client=upload.client, **_words(upload.metrics))
    if results.fusion is None:
        return
    curves = results.fusion.inversion_curves
    for step, values in enumerate(zip(*curves.values())):
        folder.append_metrics("inversion", iteration=step, **dict(zip(curves, values)))
    for step, loss in enumerate(results.fusion.distillation_loss):
        folder.append_metrics("distillation", step=step, loss=loss)
    folder.append_metrics("evaluation", **results.accuracy)


def _words(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("-", "_"): value for name, value in metrics.items()}


def _report_data(
    results: Results,
    rows: Sequence[ClientRow],
    metrics: Mapping[str, Any],
    config: Config,
    environment: Mapping[str, Any],
) -> ReportData:
    fusion, labels = results.fusion, results.labels
    inversion = distillation = None
    if fusion is not None:
        curves = {k: v for k, v in fusion.inversion_curves.items() if k != "alive"}
        steps = range(len(curves["loss"]))
        inversion = Curves(steps, curves, sorted(results.schedule.stops)) if steps else None
        loss = fusion.distillation_loss
        distillation = Curves(range(len(loss)), {"loss": loss})
    clients = 0 if labels is None else len(labels)
    return ReportData(
        config=flatten(config),
        defaults={**default_run_config(), **PRESETS[config.preset], "preset": "default"},
        metrics=metrics,
        environment=environment,
        clients=rows,
        class_names=results.class_names,
        label_matrix=labels,
        label_matrix_clients=[f"client-{number:03d}" for number in range(clients)],
        pool=results.pool,
        inversion=inversion,
        distillation=distillation,
        test_images=results.test_images,
        federation=f"num-supernodes={clients} client-resources-num-cpus=1" if clients else "",
    )
