"""What the numbers say, in sentences."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from fedmitr_app.config import as_run_config
from fedmitr_app.report.data import ReportData
from fedmitr_app.report.tables import federated_results, named_accuracies, percent
from fedmitr_app.utils.shell import quoted
from fedmitr_app.utils.text import harmless

_INITIAL_IMAGES = {
    "white": "white noise",
    "multi-scale": "multi-scale noise",
    "dead-leaves": "dead leaves",
    "photo-crops": "crops of two photographs",
}
"""Other kinds of ``inversion.initial-images`` are images of their name."""


def headline_sentence(data: ReportData) -> str:
    """Return what a reader takes away: what the server measured, then what the clients say."""
    known = named_accuracies(data.accuracy)
    used = sum(row.taught for row in data.clients)
    source = f" with one upload from each of {used} clients" if used > 1 else ""
    told = [
        f"{percent(value)} {what} ({basis})"
        for what, value, basis in federated_results(data.metrics)
    ]
    measured = " and ".join(told)
    if not known and told:
        return f"By the clients' own measure the global model reaches {measured}{source}."
    if not known:
        scored = data.config.get("server.federated-evaluation")
        nor = ", and no client's evaluation came" if scored else ""
        return f"The global model was made{source}, and nothing was evaluated: no test set{nor}."
    tail = f" By the clients' own measure it reaches {measured}." if told else ""
    if "student" not in known:
        shown = ", ".join(f"{name} {percent(value)}" for name, value in known.items())
        return f"Test accuracy{source}: {shown}.{tail}"
    return f"The student reaches {percent(known['student'])}{source}{_compared(known)}.{tail}"


def introduction(data: ReportData) -> str:
    """Say for a newcomer what was done, and what the models are that are compared."""
    known = named_accuracies(data.accuracy)
    used = sum(row.taught for row in data.clients)
    words = (
        f"{used or 'Several'} client{'s' * (used != 1)} trained the same model on images of "
        f"{'its' if used == 1 else 'their'} own and uploaded the weights once. The server, which "
        "saw none of these images, made one model of the uploads: the global model"
    )
    taught = data.distillation is not None
    words += ", here called the student." if "student" in known else "."
    if taught:
        words += (
            " It learned to answer as the teacher does (all uploads together, as an ensemble) "
            "on images that the server made of the uploads alone."
        )
    elif "teacher" in known:
        words += " The teacher is all uploads together, as an ensemble."
    if "fedavg" in known:
        words += " FedAvg is the plain average of the uploaded weights."
    if "control" in known:
        words += (
            f" The control is a student that learned in the same way from {_initial(data)} "
            "as they come: what the student has over it is what the made images earned."
        )
    return words


def _compared(known: Mapping[str, float]) -> str:
    """Say how the student stands beside its teacher and FedAvg, of those that are known."""
    student, compared = known["student"], []
    if known.get("teacher"):
        share = percent(student / known["teacher"])
        compared.append(f"{share} of its teacher's {percent(known['teacher'])}")
    if known.get("fedavg"):
        times = f"{student / known['fedavg']:.1f} times"
        compared.append(f"{times} one-round FedAvg's {percent(known['fedavg'])}")
    return ": " + " and ".join(compared) if compared else ""


class Worth(NamedTuple):
    """What the synthetic images earned, and whether that is more than noise."""

    sentence: str
    worth: bool


def inversion_worth(data: ReportData) -> Worth | None:
    """Return what making images earned over the control, None if unknown.

    Whether a gap is more than noise is judged by two standard errors of a difference
    of two accuracies, each a share of the same number of test images.
    """
    known = named_accuracies(data.accuracy)
    if "student" not in known or "control" not in known:
        return None
    student, control = known["student"], known["control"]
    points = 100 * (student - control)
    what = f"{_what_made_the_images(data)} earned"
    if points <= 0:
        more = "just as much" if points == 0 else f"{-points:.1f} points more"
        return Worth(
            f"{what} nothing here: a student taught with {_initial(data)} as they come reaches "
            f"{percent(control)}, {more}.",
            False,
        )
    gain = f"{what} {points:.1f} points over {_initial(data)} as they come ({percent(control)})"
    noise = 200 * standard_error(student, control, data.test_images)
    if points < noise:
        return Worth(
            f"{gain}, which is within the noise of {data.test_images} test images "
            f"(±{noise:.1f} points).",
            False,
        )
    return Worth(f"{gain}.", True)


def _what_made_the_images(data: ReportData) -> str:
    """Name what the run did and the control didn't."""
    config = data.config
    if data.generated:
        return "Generating images"
    done = []
    if config.get("inversion.candidates", 1) > 1:
        done.append("choosing")
    if config.get("inversion.iterations", 0) > 0:
        done.append("inverting")
    if done:
        return f"{' and '.join(done).capitalize()} images"
    return f"{_initial(data).capitalize()}, neither chosen nor inverted,"


def _initial(data: ReportData) -> str:
    """Name what the control learns from."""
    start = str(data.config.get("inversion.initial-images", "synthetic"))
    return _INITIAL_IMAGES.get(start, f"{start} images")


def warnings(data: ReportData) -> list[str]:
    """Return what a reader should know before believing the numbers."""
    known = named_accuracies(data.accuracy)
    student = known.get("student")
    found = []
    lost = [row for row in data.clients if not row.taught]
    strange = [row.client for row in data.clients if row.status == "suspicious"]
    if lost:
        reasons = "; ".join(f"{row.client} ({row.reason or row.status})" for row in lost[:3])
        found.append(
            f"{len(lost)} of {len(data.clients)} clients took no part: the table says why. "
            + harmless(reasons, 400)
            + ("; ..." if len(lost) > 3 else "")
        )
    if strange:
        look = "look" if len(strange) > 1 else "looks"
        told = f"{len(strange)} of {len(data.clients)} clients {look} suspicious"
        found.append(
            f"{told}, used all the same: the table says what is odd. One with far more images "
            "than the others can look so too; teacher.defence leaves out who does."
        )
    if student is None:
        return found
    if student < known.get("fedavg", 0.0):
        found.append("The student is worse than one-round FedAvg of the same uploads.")
    if student < known.get("best client", 0.0):
        found.append("The student is worse than the best single client.")
    return found


def standard_error(one: float, other: float, count: int) -> float:
    """Return the standard error of a difference of two accuracies; 0.0 for no images."""
    if count <= 0:
        return 0.0
    return math.sqrt((one * (1 - one) + other * (1 - other)) / count)


def reproduce_command(data: ReportData) -> str:
    """Return the command that runs the same again, with what differs from the defaults."""
    changed = {
        key: value
        for key, value in data.config.items()
        if not key.startswith("output.")
        and (key == "seed" or data.defaults.get(key, value) != value)
    }
    pairs = as_run_config(changed)
    # As README has it: without the variable Flower runs what it installs itself.
    command = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 flwr run . --stream"
    if pairs:
        command += f" --run-config {quoted(pairs)}"
    if data.simulated:
        command += f" --federation-config {quoted(f'num-supernodes={data.asked}')}"
    return command


def what_the_command_lacks(data: ReportData) -> str:
    """Return what else made the run what it was, which the server can't know."""
    if data.simulated:
        return (
            f"In the app's folder. Flower simulated {data.asked} client{'s' * (data.asked != 1)}; "
            "what each of them could use is unknown here: add client-resources-num-cpus and "
            "client-resources-num-gpus to --federation-config if you set them. The number of "
            "threads that a client gets can change last digits."
        )
    if data.asked == 1:
        nodes = "1 node of a deployment was asked to train: connect the same one again."
    else:
        count = f"{data.asked} nodes" if data.asked else "The nodes"
        nodes = f"{count} of a deployment were asked to train: connect the same ones again."
    return f"In the app's folder. {nodes} What was set or held there is unknown here."
