"""Deal training rows to clients, with flwr-datasets' partitioners by name."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmitr_app.config import PartitionConfig
from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.labels import Indices
from fedmitr_app.partitions.names import some_names
from fedmitr_app.partitions.rows import Rows
from fedmitr_app.partitions.splits import require_no_splits
from fedmitr_app.utils.randomness import derive_seed, generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def deal(rows: Rows, partition: PartitionConfig, num_partitions: int, seed: int) -> list[Indices]:
    """Return each client's positions in ``rows``, ascending; no row goes to two clients.

    Every row is dealt, except by ``pathological``, which leaves out the classes that no
    client drew. A client may get no row at all if ``partition.min_samples`` is 0.

    Parameters
    ----------
    rows : Rows
        The training rows, labels as indices.
    partition : PartitionConfig
        ``dirichlet`` splits each class over the clients by Dir(alpha), sizes as they come;
        ``dirichlet-balanced`` stops dealing to a client that has its average share;
        ``inner-dirichlet`` draws each client's class prior from Dir(alpha), equal sizes;
        ``natural`` makes each domain a client, in the order of their names.
    num_partitions : int
        Number of clients, Flower's ``num-supernodes``.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If these rows can't be dealt that way.
    """
    from datasets import Dataset  # 0.8 s that the control, which deals nothing, does without

    _check(rows, partition, num_partitions)
    # All but two of the partitioners deal rows in the order they stand in.
    draws = generator(seed, "partition", "order")
    order = torch.randperm(len(rows), generator=draws).numpy()
    # Dense class numbers: InnerDirichletPartitioner counts on 0..C-1, all present.
    labels = np.unique(rows.labels, return_inverse=True)[1]
    # Only these columns: partitioners copy what they deal, and images are heavy.
    columns = {"row": order, "label": labels[order]}
    if rows.domains is not None:
        columns["domain"] = rows.domains[order]
    partitioner = _partitioner(partition, len(rows), num_partitions, seed)
    try:
        with _quiet():
            partitioner.dataset = Dataset.from_dict(columns)
            parts = [partitioner.load_partition(client) for client in range(num_partitions)]
    except ValueError as error:
        raise ConfigError(_why(rows, partition, num_partitions)) from error
    return [np.sort(np.asarray(part["row"][:], dtype=np.int64)) for part in parts]


def _partitioner(partition: PartitionConfig, rows: int, clients: int, seed: int) -> "Partitioner":
    # 1.3 s (cold 4), for it brings drawing along: the server and the control deal nothing.
    from flwr_datasets import partitioner as flower

    seed = derive_seed(seed, "partition")
    match partition.kind:
        case "dirichlet" | "dirichlet-balanced":
            return flower.DirichletPartitioner(
                num_partitions=clients,
                partition_by="label",
                alpha=partition.alpha,
                min_partition_size=partition.min_samples,
                self_balancing=partition.kind == "dirichlet-balanced",
                seed=seed,
            )
        case "inner-dirichlet":
            sizes = [rows // clients + (client < rows % clients) for client in range(clients)]
            return flower.InnerDirichletPartitioner(
                sizes, "label", alpha=partition.alpha, seed=seed
            )
        case "pathological":
            # Of its modes the one that leaves no class out when there are enough clients.
            return flower.PathologicalPartitioner(
                num_partitions=clients,
                partition_by="label",
                num_classes_per_partition=partition.classes_per_client,
                class_assignment_mode="first-deterministic",
                seed=seed,
            )
        case "natural":
            return flower.NaturalIdPartitioner("domain")
        case _:
            return flower.IidPartitioner(clients)


def _check(rows: Rows, partition: PartitionConfig, clients: int) -> None:
    if not 1 <= clients <= len(rows):
        raise ConfigError.bad_value(
            "num-supernodes", clients, f"from 1 to {len(rows)}, the number of training images"
        )
    if partition.kind == "natural":
        _check_domains(rows, clients)
    if partition.kind == "pathological":
        classes = len(np.unique(rows.labels))
        if partition.classes_per_client > classes:
            raise ConfigError.bad_value(
                "partition.classes-per-client",
                partition.classes_per_client,
                f"at most {classes}, the number of classes among the training images",
            )


def _check_domains(rows: Rows, clients: int) -> None:
    if rows.domains is None:
        raise ConfigError.bad_value(
            "partition.kind",
            "natural",
            f"another partitioner, because {rows.where} has no domains: set data.domain-column to "
            "a column that has them, or lay folders out as domain/class/image",
            public="another partitioner, because its data have no domains",
        )
    domains = [rows.domain_names[domain] for domain in np.unique(rows.domains)]
    require_no_splits(domains, "domains", rows.where)
    if len(domains) != clients:
        why = "because partition.kind = 'natural'"
        raise ConfigError.bad_value(
            "num-supernodes",
            clients,
            f"{len(domains)}, one for each domain of data.domain-column ({some_names(domains)}), "
            f"{why}",
            public=f"{len(domains)}, one for each domain, {why}",
        )


def _why(rows: Rows, partition: PartitionConfig, clients: int) -> str:
    dealt = f"{len(rows)} training images and {clients} clients"
    match partition.kind:
        case "pathological":
            return (
                f"partition.classes-per-client = {partition.classes_per_client} can't be met with "
                f"{dealt}: some class has fewer images than clients that want it; lower it, use "
                "fewer clients or more images."
            )
        case "inner-dirichlet":
            return (
                f"partition.alpha = {partition.alpha:g} is too small for 'inner-dirichlet' with "
                f"{dealt}: the only classes that some client wants ran out; raise it, or set "
                "partition.kind = 'dirichlet'."
            )
        case _:
            return (
                f"partition.min-samples = {partition.min_samples} could not be met with "
                f"partition.alpha = {partition.alpha:g}, {dealt}: lower it (0 allows clients "
                "without data), raise partition.alpha, or use fewer clients."
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Each of the Dirichlet's retries warns and NaturalId draws a progress bar; the only news
    # that a user can use is that the last retry failed, and that is an error of ours.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
