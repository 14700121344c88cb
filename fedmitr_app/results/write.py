"""Write a run's results: tables, metrics, the model, figures and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedmitr_app.config import Config, flatten, preset_run_config
from fedmitr_app.models import architecture_of
from fedmitr_app.report.data import ClientRow, Curves, ReportData
from fedmitr_app.report.page import write_report
from fedmitr_app.report.tables import write_clients_csv
from fedmitr_app.results.measure import Results
from fedmitr_app.results.tables import client_rows, metrics_of
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.teacher import save_ensemble
from fedmitr_app.utils.metrics_log import MetricsLog


def write_results(
    folder: RunFolder, results: Results, config: Config, environment: Mapping[str, Any]
) -> tuple[list[ClientRow], dict[str, Any]]:
    """Fill the run folder; return the clients' rows and ``metrics.json``.

    Raises
    ------
    RunFolderError
        If a file can't be written.
    """
    rows = client_rows(results)
    metrics = metrics_of(results, config.seed)
    write_clients_csv(rows, folder.clients)
    if results.accuracy:
        with MetricsLog(folder.path) as log:
            log.add("evaluation", **results.accuracy)
    folder.write_json("metrics.json", metrics)
    if results.fused.model is not None:
        spec = results.model.spec.to_dict()
        architecture = architecture_of(results.model)
        folder.save_model(results.global_state, architecture, spec, results.class_names)
    if (teacher := results.fused.teacher) is not None:
        save_ensemble(folder.path, teacher, results.outcome.accepted, results.class_names)
    write_report(folder, report_data(results, rows, metrics, config, environment))
    return rows, metrics


def report_data(
    results: Results,
    rows: Sequence[ClientRow],
    metrics: Mapping[str, Any],
    config: Config,
    environment: Mapping[str, Any],
) -> ReportData:
    """Return what the report shows."""
    inversion, distillation = _curves(results)
    return ReportData(
        config=flatten(config),
        # A preset's own values are no change: naming the preset brings them back.
        defaults=preset_run_config(config.preset) | {"preset": "default"},
        metrics=metrics,
        environment=environment,
        clients=rows,
        class_names=results.class_names,
        label_matrix=list(results.labels.values()),
        label_matrix_clients=list(results.labels),
        pool=results.pool,
        inversion=inversion,
        distillation=distillation,
        test_images=results.test_images,
        asked=results.outcome.asked,
        simulated=results.simulated,
        generated=results.fused.images > 0 and results.fused.inversion is None,
    )


def _curves(results: Results) -> tuple[Curves | None, Curves | None]:
    fused, schedule = results.fused, results.schedule
    if not fused.images:
        return None, None
    curves = {name: curve for name, curve in fused.inversion_curves.items() if name != "alive"}
    steps = range(len(next(iter(curves.values()))))
    loss = fused.distillation_loss
    return (
        Curves(steps, curves, sorted(schedule.stops) if schedule else []) if steps else None,
        Curves(range(len(loss)), {"loss": loss}),
    )
