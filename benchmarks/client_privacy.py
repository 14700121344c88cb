"""What local differential privacy on the clients costs the teacher, the average and the student.

    python -m benchmarks.client_privacy results/digits/uploads

Each client clips its training's step to a norm and adds Gaussian noise to every weight, as
Flower's ``LocalDpMod`` does on the node: ``s * sqrt(2 ln(1.25 / delta)) / epsilon`` with
sensitivity ``s`` equal to the norm. The uploads are those of ``experiments/digits.toml``, made
private afterwards: the same thing, without training again.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import print_hardware
from fedmitr_app.config import parse_config
from fedmitr_app.experiments.federate import initial_model, load_uploads, uploads_name
from fedmitr_app.experiments.grid import Federation
from fedmitr_app.methods import METHODS, MethodSettings, Task
from fedmitr_app.partitions import load_test_set
from fedmitr_app.scoring import AccuracyBench
from fedmitr_app.uploads import Upload
from fedmitr_app.utils.randomness import generator

DELTA = 1e-5
EPSILONS = [math.inf, 1e5, 1e4, 1e3, 100.0]


def noise_deviation(norm: float, epsilon: float) -> float:
    """Return the standard deviation of the noise on each weight."""
    return norm * math.sqrt(2 * math.log(1.25 / DELTA)) / epsilon


def privately(
    upload: Upload,
    initial: dict[str, Tensor],
    norm: float,
    deviation: float,
    folder: Path,
    seed: int,
) -> Upload:
    """Return an upload as its client would send it with ``LocalDpMod``."""
    state, rng = upload.load_state(), generator(seed, upload.client, "privacy")
    steps = {name: value - initial[name] for name, value in state.items()}
    length = math.sqrt(sum(float(step.double().square().sum()) for step in steps.values()))
    factor = min(1.0, norm / length)
    sent = {
        name: initial[name] + factor * step + deviation * torch.randn(step.shape, generator=rng)
        for name, step in steps.items()
    }
    file = folder / f"{upload.client}.safetensors"
    save_file(sent, file)
    return replace(upload, weights=file, digest=f"private-{norm}-{deviation}-{upload.client}")


def main() -> None:
    """Print a line for each norm and ε, averaged over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("uploads", type=Path, help="an experiment's folder of uploads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--norms", type=float, nargs="+", default=[5.0, 20.0, 50.0])
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--students", action="store_true", help="distil students too: minutes each")
    arguments = parser.parse_args()
    print_hardware()
    rows = []
    for seed in arguments.seeds:
        config = parse_config({"seed": seed})
        folder = arguments.uploads / uploads_name(Federation("dirichlet", 0.1, 5, seed), config)
        uploads, model = load_uploads(folder, config), initial_model(config)
        initial, test = model.vit.state_dict(), load_test_set(config.data)
        bench = AccuracyBench(test.images, test.labels, model, torch.device("cpu"), 256)
        for norm in [math.inf, *arguments.norms]:
            for epsilon in arguments.epsilons if norm < math.inf else [math.inf]:
                deviation = noise_deviation(norm, epsilon) if epsilon < math.inf else 0.0
                with tempfile.TemporaryDirectory() as scratch:
                    sent = [
                        privately(upload, initial, norm, deviation, Path(scratch), seed)
                        for upload in uploads
                    ]
                    settings, work = MethodSettings.of(config), Path(scratch) / "work"
                    task = Task.load(model, sent, settings, work, torch.device("cpu"))
                    row = {"norm": norm, "epsilon": epsilon, "noise": deviation, "seed": seed}
                    row["teacher"] = 100 * bench.teacher_accuracy(task.teacher)
                    row["FedAvg"] = 100 * bench.state_accuracy(task.average)
                    if arguments.students:
                        student = METHODS["fedmitr"](task).model
                        row["student"] = 100 * bench.model_accuracy(student)
                rows.append(row)
    frame = pd.DataFrame(rows).groupby(["norm", "epsilon", "noise"]).mean().drop(columns="seed")
    print(frame.round(1).to_string())


if __name__ == "__main__":
    main()
