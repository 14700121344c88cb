"""One self-contained page about a run, that a person reads in a minute."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmitr_app.methods import METHODS
from fedmitr_app.report import figures, figures_images, figures_labels, html
from fedmitr_app.report.advice import next_steps
from fedmitr_app.report.chance import chance_of, interval_of, interval_words
from fedmitr_app.report.classes import classes_section, confusion_matrix
from fedmitr_app.report.data import ClientRow, ReportData
from fedmitr_app.report.diagnosis import diagnosis_section
from fedmitr_app.report.tables import (
    RESULT_NAMES,
    client_cells,
    federated_results,
    in_order,
    named_accuracies,
    percent,
)
from fedmitr_app.report.verdict import (
    headline_sentence,
    introduction,
    inversion_worth,
    reproduce_command,
    warnings,
    what_the_command_lacks,
)
from fedmitr_app.run_folder.folder import RunFolder
from fedmitr_app.run_folder.global_model import DESCRIPTION_NAME
from fedmitr_app.utils.files import write_text
from fedmitr_app.utils.progress import duration

_TIMES = {"control": "control's time, on a CPU beside those two"}
_MOST_OPEN_CLIENTS = 25
_TRUST = ("loudness", "information", "agreement")
_TRUST_NOTE = (
    "Of each model's answers to the same generic images: how large its logits are and how much "
    "they tell the images apart, both over the median client's, and how they correlate with the "
    "other clients'. They find broken and crude models, not backdoors."
)


def write_report(folder: RunFolder, data: ReportData) -> Path:
    """Draw the figures into ``figures/`` and write ``report.html``.

    What ``data`` leaves out is left out of the page. Returns the page's path.

    Raises
    ------
    RunFolderError
        When a file cannot be written.
    """
    drawn = draw_figures(folder, data)
    body = [
        _header(folder, data),
        html.section("What to try next", html.bullets(next_steps(data))),
        _accuracy(data),
        _federated(data.metrics),
        classes_section(data, drawn["confusion"]),
        _read(data),
        html.section(
            "Who held what",
            html.figure(
                drawn["labels"],
                "A square for each client and class, the stronger the more images it holds "
                "of the class, and a bar for each client's images in all",
                "Images per class and client. No image ever left its client." + _unshown(data),
            ),
        ),
        _images(data, drawn),
        html.section(
            "How it went",
            html.figure(
                drawn["inversion"],
                "Two curves over the iterations of the inversion: the loss, and the teacher's "
                "confidence; dotted lines where patches stopped",
                _inversion_note(data),
            ),
            html.figure(
                drawn["distillation"],
                "The student's loss over the steps of the distillation",
                "Distillation: how far the student's answers are from the teacher's on the "
                "synthetic images. The pale line is each batch, the strong one their running "
                "mean. A curve that still falls at its end asks for more distillation.steps.",
            ),
        ),
        _clients(data),
        diagnosis_section(data.metrics),
        _cost(data.metrics),
        _model(folder.path / DESCRIPTION_NAME),
        _configuration(data),
        _environment(data.environment),
        f"<footer>run {html.text(folder.run_id)}, started {html.text(folder.started)}, "
        f"in {html.text(folder.path)}</footer>",
    ]
    title = f"One-shot federated learning, seed {folder.seed}"
    write_text(folder.report, html.page(title, [part for part in body if part]))
    return folder.report


def draw_figures(folder: RunFolder, data: ReportData) -> dict[str, Path | None]:
    """Draw what there is data for into ``figures/``; None stands for what there isn't."""
    at = folder.figures
    at.mkdir(exist_ok=True)
    return {
        "accuracy": figures.accuracy_bars(data.accuracy, at / "accuracy.png"),
        "labels": figures_labels.label_distribution(
            data.label_matrix,
            at / "label_distribution.png",
            client_names=data.label_matrix_clients,
            class_names=data.class_names,
        ),
        "confusion": figures_labels.confusion(
            confusion_matrix(data.by_class), at / "confusion.png", data.class_names
        ),
        "images": figures_images.synthetic_images(data.pool, at / "synthetic_images.png"),
        "attention": figures_images.attention_maps(data.pool, at / "attention.png"),
        "inversion": figures.inversion_curves(data.inversion, at / "inversion.png"),
        "distillation": figures.distillation_curves(data.distillation, at / "distillation.png"),
    }


def _header(folder: RunFolder, data: ReportData) -> str:
    known = named_accuracies(data.accuracy)
    earned = inversion_worth(data)
    method = data.config.get("server.method", "one-shot")
    paper = METHODS[method].paper if method in METHODS else ""
    kind = f"{method}{f' ({paper})' if paper else ''}, seed {folder.seed}"
    # A deployment's server without a test set read no data, whatever is set.
    if data.config.get("data.source") and (data.simulated or data.test_images):
        kind += f", {data.config['data.source']}"
    if data.test_images:
        kind += f", accuracy on {data.test_images} held-out test images after the last step"
    tiles = [
        (percent(share), RESULT_NAMES[key] + _spread(share, data), key)
        for key, share in known.items()
    ]
    for what, value, basis in federated_results(data.metrics):
        tiles.append((percent(value), f"{what}, as they say ({basis})", "student"))
    parts = [
        html.paragraph(kind, "kind"),
        f"<h1>{html.sentence(headline_sentence(data))}</h1>",
        html.tiles(tiles),
        html.paragraph(introduction(data), "intro"),
        html.paragraph(earned.sentence, "earned" if earned.worth else "warning") if earned else "",
        *(html.paragraph(words, "warning") for words in warnings(data)),
    ]
    return "<header>" + "\n".join(parts) + "</header>"


def _accuracy(data: ReportData) -> str:
    note = "Every model on the same held-out test set."
    if data.accuracy.get("teacher") is not None:
        note += " The teacher is what a student can hardly pass."
    chance = chance_of(data)
    if chance is not None:
        note += (
            f" The dotted line is chance, {percent(chance)}: always naming the class that the "
            "test set has most images of."
        )
    if data.test_images:
        note += (
            f" The thin bars are 95 % intervals (Wilson) for {data.test_images} test images; "
            "another seed may differ by more."
        )
    items = figures.accuracy_items(data.accuracy)
    results = [item for item in items if item[2] != "client"]
    clients = [item for item in items if item[2] == "client"]
    return html.section(
        "Accuracy",
        html.bars(
            [*reversed(results), *clients],
            chance,
            lambda share: interval_of(share, data.test_images),
        ),
        html.paragraph(note, "note") if items else "",
    )


def _spread(share: float, data: ReportData) -> str:
    words = interval_words(share, data.test_images)
    return f", 95 % interval {words}" if words else ""


def _federated(metrics: Mapping[str, Any]) -> str:
    rows = [[what, percent(value), basis] for what, value, basis in federated_results(metrics)]
    table = html.table(
        ["measured", "accuracy", "rests on"],
        rows,
        numbers=(1,),
        caption="The global model, as the clients scored it; the server can't check this.",
    )
    return html.section("What the clients measured", table if rows else "")


def _read(data: ReportData) -> str:
    read = data.metrics.get("data_read")
    note = "By the server, for its test set, with what was skipped. Clients log their own."
    return html.section(
        "What was read",
        html.paragraph(str(read)) + html.paragraph(note, "note") if read else "",
    )


def _inversion_note(data: ReportData) -> str:
    note = (
        "Inversion: the teacher's loss on the synthetic images, which falls as they come to look "
        "to it like their targets, and its confidence in these targets."
    )
    if data.inversion is not None and len(data.inversion.stops):
        note += (
            " At a dotted line patches stop: from there on the teacher sees fewer of them, so "
            "that the loss can rise; a short inversion need not bring it down again."
        )
    return note


def _unshown(data: ReportData) -> str:
    used = {row.client for row in data.clients if row.taught or row.status == "left out"}
    lacking = len(used - set(data.label_matrix_clients))
    return f" {lacking} of {len(used)} clients did not share theirs." if lacking else ""


def _images(data: ReportData, drawn: Mapping[str, Path | None]) -> str:
    note = "Made on the server from the uploaded weights alone."
    if data.pool is not None and data.pool.kept is not None:
        note += (
            " Beside each image: the patches that inversion kept working on to the end "
            "(outlined); the pale ones were stopped on the way and stayed as they were."
        )
    heat = "Where the teacher's class token looks, each image on its own scale (bright: most)."
    attention = html.figure(
        drawn["attention"],
        "Synthetic images, each beside a map of how much the teacher looks at each patch",
        heat,
        drawn=False,
    )
    return html.section(
        "Synthetic images",
        html.figure(
            drawn["images"],
            "Synthetic images, each with the class it was made for, and its surviving patches",
            note,
            drawn=False,
        ),
        html.details("Where the teacher looks", attention) if attention else "",
    )


def _clients(data: ReportData) -> str:
    rows = in_order(data.clients)
    if not rows:
        return ""
    marked = {(index, 7): "bad" for index, row in enumerate(rows) if row.status != "ok"}
    header = ["client", "examples", "its train loss", "test accuracy", *_TRUST, "status", "node"]
    cells = []
    for row in rows:
        client, node, *figures, status = client_cells(row)
        # Last: a node's long number may be what a window has no room for.
        cells.append([client, *figures, *_trust_cells(row), status, node])
    table = html.table(
        header,
        cells,
        numbers=range(1, 7),
        marked=marked,
        caption="Every client that was asked. Examples and train loss are what it says itself; "
        "the test accuracy is its upload's, by itself. Under status: why one took no part.",
    )
    table += html.paragraph(_TRUST_NOTE, "note")
    if len(rows) > _MOST_OPEN_CLIENTS:
        table = html.details(f"all {len(rows)} clients", table)
    return html.section("Clients", table)


def _trust_cells(row: ClientRow) -> list[str]:
    figures = (row.size, row.information, row.agreement)
    # The sum turns a rounded -0.0 into 0.0.
    return ["-" if figure is None else f"{round(figure, 2) + 0.0:.2f}" for figure in figures]


def _cost(metrics: Mapping[str, Any]) -> str:
    rows = [
        (_TIMES.get(stage, f"{stage} time"), duration(seconds))
        for stage, seconds in (metrics.get("seconds") or {}).items()
        if isinstance(seconds, (int, float))
    ]
    inversion = metrics.get("inversion") or {}
    if inversion.get("flop_ratio") is not None:
        share = percent(inversion["flop_ratio"])
        rows.append(("inversion's work", f"{share} of never stopping a patch (FLOPs)"))
    if inversion.get("images") is not None:
        rows.append(("synthetic images", str(inversion["images"])))
    if isinstance(inversion.get("diversity"), (int, float)):
        rows.append(("diversity within a class", f"{inversion['diversity']:.3g}"))
    for name, value in (metrics.get("throughput") or {}).items():
        if isinstance(value, (int, float)):
            rows.append((name.replace("_", " "), f"{value:.3g}"))
    return html.section("What it took", _facts(rows, "Time, work and speed.") if rows else "")


def _model(description: Path) -> str:
    if not description.is_file():
        return ""
    lines = json.loads(description.read_text(encoding="utf-8")).get("load")
    if not lines:
        return ""
    note = f"Run in the run folder. {DESCRIPTION_NAME} says how images become inputs."
    return html.section("Load the model", html.code("\n".join(lines)), html.paragraph(note, "note"))


def _configuration(data: ReportData) -> str:
    if not data.config:
        return ""
    defaults = data.defaults
    changed = [
        (key, str(value), str(defaults[key]))
        for key, value in data.config.items()
        if key in defaults and defaults[key] != value and not key.startswith("output.")
    ]
    rest = [(key, str(value)) for key, value in data.config.items()]
    marked = {(index, 1): "changed" for index in range(len(changed))}
    first = (
        html.table(
            ["changed", "value", "default"],
            changed,
            marked=marked,
            caption="Settings that differ from the preset's.",
        )
        if changed
        else html.paragraph("Everything at its default.")
    )
    return html.section(
        "Run it again",
        html.code(reproduce_command(data)),
        html.paragraph(what_the_command_lacks(data), "note"),
        first if defaults else "",
        html.details(
            f"all {len(rest)} settings",
            html.table(["setting", "value"], rest, caption="As resolved."),
        ),
    )


def _environment(environment: Mapping[str, Any]) -> str:
    rows = [(key, _shown(value)) for key, value in environment.items() if key != "packages"]
    packages = environment.get("packages") or {}
    rows += [(name, str(version)) for name, version in packages.items()]
    if not rows:
        return ""
    table = _facts(rows, "The server's hardware and software.")
    return html.section("Environment", html.details("hardware and versions", table))


def _facts(rows: Sequence[tuple[str, str]], caption: str) -> str:
    return html.table(["what", "value"], rows, caption=caption)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
