"""A run's results as a row for each client and as ``metrics.json``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fedmitr_app.methods import MethodResult
from fedmitr_app.report.data import ClientRow
from fedmitr_app.results.measure import Results
from fedmitr_app.teacher import Trust
from fedmitr_app.uploads import Upload


def client_rows(results: Results) -> list[ClientRow]:
    """One row for each client or node that was asked: the accepted first, each group by key."""
    outcome = results.outcome
    scored = results.accuracy.get("clients") or {}
    rows = [
        ClientRow(
            client=upload.client,
            node=upload.node,
            num_examples=upload.num_examples,
            train_loss=upload.metrics.get("train-loss"),
            train_accuracy=upload.metrics.get("train-accuracy"),
            accuracy=scored.get(upload.client),
            size=trust.size,
            information=trust.information,
            agreement=None if math.isnan(trust.agreement) else trust.agreement,
            status=_status(reason, upload.client in results.left_out),
            reason=reason,
        )
        for upload, trust, reason in _judged(results)
    ]
    for status, replies in (
        ("rejected", outcome.rejected),
        ("no reply", outcome.missing),
        ("no data", outcome.no_data),
        ("excluded", outcome.excluded),
    ):
        rows += [
            ClientRow(
                client=each.client,
                node=each.node,
                num_examples=0 if status == "no data" else None,
                status=status,
                reason=each.reason,
            )
            for each in replies
        ]
    return rows


def _judged(results: Results) -> Iterator[tuple[Upload, Trust, str]]:
    """Go through the accepted uploads, with all that speaks against each."""
    judged = zip(results.outcome.accepted, results.trust, results.weight_checks, strict=True)
    for upload, trust, weighed in judged:
        yield upload, trust, "; ".join(filter(None, [trust.reason, *weighed.reasons]))


def _status(reason: str, left_out: bool) -> str:
    if left_out:
        return "left out"
    return "suspicious" if reason else "ok"


def metrics_of(results: Results, seed: int) -> dict[str, Any]:
    """Return ``metrics.json``; what varies by itself is under seconds and throughput."""
    outcome, fused = results.outcome, results.fused
    metrics: dict[str, Any] = {
        "seed": seed,
        "accuracy": dict(results.accuracy),
        "test_images": results.test_images,
        "data_read": results.data_read,
        "uploads": {
            "asked": outcome.asked,
            "accepted": len(outcome.accepted),
            "rejected": len(outcome.rejected),
            "no_data": len(outcome.no_data),
            "missing": len(outcome.missing),
            "excluded": len(outcome.excluded),
        },
    }
    if results.by_class:
        metrics["by_class"] = dict(results.by_class)
    if results.on_shards:
        scores = results.on_shards
        metrics["federated_evaluation"] = {name: score.value for name, score in scores.items()}
        metrics["federated_evaluation_basis"] = {
            name: {"nodes": score.nodes, "images": score.images} for name, score in scores.items()
        }
    seconds: dict[str, float] = {"training": outcome.collect_seconds}
    throughput: dict[str, float] = {}
    seconds |= fused.seconds
    if fused.images:
        metrics |= _of_fused(fused, results.flop_ratio, results.diversity)
        making, *_ = fused.seconds.values()
        throughput["inverted_images_per_second"] = _rate(fused.images, making)
        throughput["distillation_steps_per_second"] = _rate(
            len(fused.distillation_loss), fused.seconds["distillation"]
        )
    if results.control is not None:
        # Beside the global model, on half of the CPU's threads each.
        seconds["control"] = sum(results.control.seconds.values())
    seconds["total"] = results.total_seconds
    return {**metrics, "seconds": seconds, "throughput": throughput}


def _of_fused(fused: MethodResult, flop_ratio: float | None, diversity: float) -> dict[str, Any]:
    confidence: Sequence[float | None] = fused.inversion_curves.get("confidence") or [None]
    return {
        "inversion": {
            "flop_ratio": flop_ratio,
            "images": fused.images,
            "dropped": fused.dropped,
            "diversity": diversity,
            "confidence": confidence[-1],
        },
        "distillation": {
            "steps": len(fused.distillation_loss),
            "loss": fused.distillation_loss[-1],
            "held_out": None if fused.held_out is None else asdict(fused.held_out),
        },
    }


def _rate(count: int, seconds: float) -> float:
    return count / max(seconds, 1e-9)
