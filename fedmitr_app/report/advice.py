"""What to try next, by what the numbers say: each sentence names the settings to change."""

from collections.abc import Iterator

from fedmitr_app.report.chance import chance_of, interval_of
from fedmitr_app.report.data import ReportData
from fedmitr_app.report.tables import named_accuracies, percent

_FAR = 0.92
"""Below this share of the teacher's accuracy the student has missed much of what it knows."""


def next_steps(data: ReportData) -> list[str]:
    """Return sentences, the most urgent first; none where the numbers give no reason."""
    known = named_accuracies(data.accuracy)
    if not data.config or not known:
        return []
    return [*_of_uploads(data, known), *_of_student(data, known), *_of_clients(data)]


def at_chance(data: ReportData, share: float) -> bool:
    """Say whether an accuracy can't be told from chance."""
    chance, ends = chance_of(data), interval_of(share, data.test_images)
    return chance is not None and (share if ends is None else ends[0]) <= chance


def _of_uploads(data: ReportData, known: dict[str, float]) -> Iterator[str]:
    """Look at what the clients sent: no server makes more of it than is in it."""
    config = data.config
    teacher, best = known.get("teacher"), known.get("best client")
    if best is not None and at_chance(data, best):
        yield (
            f"Even the best client is at chance ({percent(best)}): let clients train longer "
            f"(client.epochs, now {config.get('client.epochs')}) or start from a pre-trained "
            "model (model.name and model.weights, or a preset for photographs), and check that "
            "their labels mean what the test set's do."
        )
    elif teacher is not None and best is not None and teacher <= best:
        yield (
            f"The teacher ({percent(teacher)}) is no better than its best client "
            f"({percent(best)}): try another teacher.combine (now "
            f"{config.get('teacher.combine')}), teacher.defence = 'leave-one-out' in case an "
            "upload misleads it, or clients that train longer (client.epochs)."
        )


def _of_student(data: ReportData, known: dict[str, float]) -> Iterator[str]:
    student = known.get("student")
    if student is None:
        return
    teacher, fedavg, best = (known.get(key) for key in ("teacher", "fedavg", "best client"))
    config, learned = data.config, data.distillation is not None
    if at_chance(data, student) and not (best is not None and at_chance(data, best)):
        yield (
            f"The student is at chance ({percent(student)}) while its clients are not: "
            "start it as the uploads' average (distillation.student = 'merged'), with a lower "
            f"distillation.learning-rate (now {config.get('distillation.learning-rate')})."
            if learned
            else f"The global model is at chance ({percent(student)}) while its clients are not: "
            "averages lose what clients with different labels learned. Try server.method = "
            "'fedmitr', or uploads that can be averaged: client.loss = 'logit-adjusted' and "
            "client.head = 'class-means'."
        )
    elif teacher is not None and student < _FAR * teacher and learned:
        yield (
            f"The student is {100 * (teacher - student):.1f} points below its teacher: give it "
            f"more images (inversion.images, now {config.get('inversion.images')}) and more steps "
            f"(distillation.steps, now {config.get('distillation.steps')}), and choose each "
            f"image among more (inversion.candidates, now {config.get('inversion.candidates')}). "
            "For photographs take initial images that look like some (inversion.initial-images "
            "= 'photo-crops')."
        )
    if fedavg is not None and student < fedavg:
        yield (
            f"One-round FedAvg is better by {100 * (fedavg - student):.1f} points: begin with it "
            "(distillation.student = 'merged'), keep the check that returns the better of the two "
            "(distillation.holdout = 0.1), or take the uploads as one model and train no student: "
            "server.method = 'merged'."
        )
    if best is not None and student < best:
        yield (
            f"The best client alone is better by {100 * (best - student):.1f} points: begin "
            "with it (distillation.student = 'best-client'), or leave out uploads that spoil the "
            "others (teacher.defence = 'leave-one-out', server.exclude-clients)."
        )


def _of_clients(data: ReportData) -> Iterator[str]:
    if any(not row.taught and row.status != "excluded" for row in data.clients):
        yield (
            "Mend what the table of clients says of those that took no part, and run again with "
            f"them; who needs longer than server.timeout ({data.config.get('server.timeout')} "
            "seconds) is given more by it. server.uploads-from fuses the uploads that are here "
            "again, without training."
        )
