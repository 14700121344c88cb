"""One row on one federation's uploads: fuse, then measure on the held-out test set."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fedmitr_app.config import NEED_LABEL_COUNTS, Config, flatten, result_neutral_keys
from fedmitr_app.errors import FedmitrError, MethodUnavailable, RunFolderError
from fedmitr_app.experiments.attacks import attack
from fedmitr_app.experiments.federate import initial_model, load_uploads, uploads_name
from fedmitr_app.experiments.grid import Cell
from fedmitr_app.methods import METHODS, MethodResult, MethodSettings, Task
from fedmitr_app.methods.registry import MOMENTS, REAL_IMAGES
from fedmitr_app.models import InputSpec
from fedmitr_app.partitions import load_test_set
from fedmitr_app.partitions.sources import load_source
from fedmitr_app.scoring import AccuracyBench
from fedmitr_app.teacher import ClientModel
from fedmitr_app.utils.environment import describe_environment
from fedmitr_app.utils.files import load_tensors, save_tensors, write_json
from fedmitr_app.utils.randomness import generator

# What every result depends on, beside what its method reads.
SECTIONS = ("seed", "data", "partition", "model", "client")
MOST_REAL_IMAGES = 4096
_log = logging.getLogger(__name__)


def cell_name(cell: Cell) -> str:
    """Return the file name of a cell's result: another for every setting that counts."""
    read = SECTIONS + METHODS[cell.row.method].reads
    harmless = result_neutral_keys(cell.config)
    flat = {
        key: value
        for key, value in flatten(cell.config).items()
        if key.split(".")[0] in read and key not in harmless
    }
    facts = {"method": cell.row.method, **flat, **asdict(cell.federation)}
    if cell.attackers:
        facts |= {"attack": cell.attack, "attackers": cell.attackers}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{cell.row.method}-seed{cell.federation.seed}-{digest}.json"


def read_cell(cell: Cell, results: Path, device: torch.device) -> dict[str, Any] | None:
    """Return a result that is there, or None.

    One from another kind of device, whose seconds compare with nothing here, or from other
    uploads than are there now, is none; one whose uploads are gone still is.
    """
    try:
        found = json.loads((results / "cells" / cell_name(cell)).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: made again
        return None
    if not isinstance(found, dict) or not {"status", "kind_of_device", "uploads"} <= found.keys():
        return None
    uploads = _uploads(cell, results)
    same = uploads in (found["uploads"], "") and found["kind_of_device"] == device.type
    return found if same else None


def failed(cell: Cell, error: BaseException) -> dict[str, Any]:
    """Return the result of a cell that came to nothing; it is not written: it is tried again."""
    known = isinstance(error, FedmitrError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return {**_facts(cell), "status": f"failed: {reason}"}


def run_cell(
    cell: Cell, results: Path, device: torch.device, code: str | None = None
) -> dict[str, Any]:
    """Run one cell, write its result below ``results`` and return it.

    A method that lacks what it needs, or fails, gives a result with the reason instead of
    figures. ``code`` is what :func:`code_name` said when the process began.
    """
    started = time.monotonic()
    result = _facts(cell)
    try:
        result |= {"status": "ok", **_measure(cell, results, device)}
    except MethodUnavailable as reason:
        result |= {"status": f"not run: {reason}"}
    except torch.OutOfMemoryError:
        result |= {"status": "failed: out of memory: lower inversion.batch-size"}
    except Exception as error:  # the other cells are not lost over it
        if not isinstance(error, FedmitrError):
            _log.exception("%s", cell.row.name)
        result = failed(cell, error)
    result["total_seconds"] = time.monotonic() - started
    result |= {"device": device_name(device), "code": code or code_name()}
    result |= {"kind_of_device": device.type, "uploads": _uploads(cell, results)}
    if not result["status"].startswith("failed"):  # what failed is tried again
        write_json(results / "cells" / cell_name(cell), result)
    return result


def _facts(cell: Cell) -> dict[str, Any]:
    facts = {"row": cell.row.name, "method": cell.row.method, **asdict(cell.federation)}
    return facts | {"attack": cell.attack, "attackers": cell.attackers}


def _uploads(cell: Cell, results: Path) -> str:
    """Name a cell's uploads by their digests, which their files' names hold; empty: none."""
    folder = results / "uploads" / uploads_name(cell.federation, cell.config)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] if names else ""


def device_name(device: torch.device) -> str:
    """Return what a reader knows the device by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def _measure(cell: Cell, results: Path, device: torch.device) -> dict[str, Any]:
    config = cell.config
    test = load_test_set(config.data)
    uploads = load_uploads(results / "uploads" / uploads_name(cell.federation, config), config)
    unknown = any(upload.label_counts is None for upload in uploads)
    if _reads_label_counts(config) and unknown:
        # Teacher or merge would fall back to another way, under this one's name.
        raise MethodUnavailable("its clients share no label counts (client.share-label-counts)")
    model = initial_model(config)
    with tempfile.TemporaryDirectory(prefix="fedmitr-cell-") as folder:
        if cell.attackers:
            start, seed = model.vit.state_dict(), cell.federation.seed
            uploads = attack(uploads, cell.attack, cell.attackers, start, Path(folder), seed)
        settings = MethodSettings.of(config)
        task = Task.load(model, uploads, settings, Path(folder), device)
        if REAL_IMAGES in METHODS[cell.row.method].needs:
            task = replace(task, real_images=_training_images(config, model.spec))
        # On a CPU the time that its cores worked: other processes don't change it.
        clock = time.monotonic if device.type == "cuda" else time.process_time
        started = clock()
        # Else methods that look at no image need not: honest uploads are all of use.
        if cell.attackers or config.teacher.defence != "none":
            task = task.defended()
        fused = METHODS[cell.row.method](task)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - started
    bench = AccuracyBench(test.images, test.labels, model, device, config.server.eval_batch_size)
    answers = None if cell.attackers else _answers_file(cell, results)
    known = _read_answers(answers, task.clients, len(test))
    for client in task.clients:
        if client.key in known:
            bench.know(client.model, known[client.key])
    teacher = None if fused.teacher is None else bench.teacher_accuracy(fused.teacher)
    found: dict[str, Any] = {
        "accuracy": teacher if fused.model is None else bench.model_accuracy(fused.model),
        "teacher": teacher,
        "seconds": seconds,
        "images": fused.images,
        "steps": len(fused.distillation_loss),
        "start_returned": bool(fused.held_out and fused.held_out.start_returned),
        "test_images": len(test),
        "split": config.data.test_split,
        "beside_weights": _beside_weights(cell),
        "precision": config.model.precision,
        "matmul": config.model.matmul,
        **_last(fused),
    }
    if cell.row.method == "best-client":
        found["clients_accuracy"] = {
            client.key: bench.model_accuracy(client.model) for client in task.clients
        }
    scored = {client.key: client.model for client in task.clients if bench.knows(client.model)}
    if answers and scored.keys() > known.keys():
        save_tensors(answers, {key: bench.logits_of(scored[key]) for key in scored}, {})
    return found


def _answers_file(cell: Cell, results: Path) -> Path:
    """Name the file of the clients' answers to the test images: all rows have the same."""
    flat = flatten(cell.config)
    facts = {key: value for key, value in flat.items() if key.split(".")[0] in ("data", "model")}
    text = json.dumps({**facts, "uploads": _uploads(cell, results)}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return results / "answers" / f"seed{cell.federation.seed}-{digest}.safetensors"


def _read_answers(
    path: Path | None, clients: Sequence[ClientModel], images: int
) -> Mapping[str, torch.Tensor]:
    """Return what is kept of the clients' answers; nothing if that is none of them."""
    if path is None or not path.exists():
        return {}
    try:
        found = load_tensors(path).tensors
    except RunFolderError as error:
        _log.warning("%s The clients are asked again.", error)
        return {}
    shapes = {client.key: (images, client.model.num_classes) for client in clients}
    return {key: value for key, value in found.items() if shapes.get(key) == value.shape}


def _reads_label_counts(config: Config) -> bool:
    merge = config.merge
    class_wise = merge.head == "class-wise" and merge.knowledge == "label-counts"
    return class_wise or config.teacher.combine in NEED_LABEL_COUNTS


def _beside_weights(cell: Cell) -> str:
    """Say what the row's clients upload beside their weights, for the table."""
    client = cell.config.client
    if MOMENTS in METHODS[cell.row.method].needs:
        # From scratch there is nothing in the features that the moments are of.
        return "class moments" if cell.config.model.weights else "class moments of a random θ₀"
    counts = client.share_label_counts and _reads_label_counts(cell.config)
    return "label counts" if counts else ""


def code_name() -> str:
    """Return what makes a result: this package's commit, torch, the processor."""
    facts = describe_environment()
    commit = facts["commit"] or {"id": "unknown commit", "dirty": False}
    changed = " with uncommitted changes" if commit["dirty"] else ""
    return f"{commit['id'][:12]}{changed}, torch {facts['packages'].get('torch')}, {facts['cpu']}"


def _last(fused: MethodResult) -> dict[str, float | None]:
    loss = fused.distillation_loss[-1] if fused.distillation_loss else None
    return {"loss": loss, **{f"{name}_seconds": took for name, took in fused.seconds.items()}}


def _training_images(config: Config, spec: InputSpec) -> torch.Tensor:
    """Return some of all clients' training images, as model input: no true server has them."""
    rows = load_source(config.data).train
    rng = generator(config.seed, "real-images", "which")
    chosen = torch.randperm(len(rows), generator=rng)[:MOST_REAL_IMAGES].sort().values.numpy()
    data = config.data
    pixels = rows.take(chosen).pixels(data.stored_size or data.image_size, data.channels)
    return spec.normalise(torch.from_numpy(pixels))
