"""What leaves a node tells nothing of its files: no path, no name, no column; its own log does."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.exception import AggregationError
from PIL import Image

from fedmitr_app.client_app import app
from fedmitr_app.config import default_run_config, parse_config
from fedmitr_app.errors import ConfigError, DataError, FedmitrError
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.strategies.records import to_array_record
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, context

SECRET = "Mueller"
RUN = {
    **default_run_config(),
    "preset": "quick",
    "client.epochs": 1,
    "model.depth": 1,
    "client.device": "cpu",
}


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)
    return path


def broken(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
    return path


def table(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (broken if name.endswith("broken.png") else picture)(root / name)
    return root


def link(path: Path, target: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


IMAGE = b"no image"
MISHAPS = {
    "nothing there": lambda root: root,
    "nobody's home": lambda root: Path(f"~nobody-{SECRET}"),
    "no images": lambda root: folder_of(root, "x.png") / "..",
    "a stray image": lambda root: folder_of(root, "1/a.png", f"{SECRET}.png"),
    "a broken image": lambda root: folder_of(root, "1/a.png", f"2/{SECRET} broken.png"),
    "an unknown class": lambda root: folder_of(root, "1/a.png", f"{SECRET}/a.png"),
    "a link to nothing": lambda root: link(root / "1" / f"{SECRET}.png", "gone").parents[1],
    "a link round": lambda root: link(root / "1" / SECRET, ".").parents[1],
    "a name of two splits": lambda root: folder_of(root, f"{SECRET}-train-test/1/a.png"),
    "a split as domain": lambda root: folder_of(root, "test/1/a.png", f"{SECRET}/1/a.png"),
    "a file for a folder": lambda root: picture(root / f"{SECRET}.png"),
    "classes beyond number": lambda root: folder_of(root, *(f"{n}/a.png" for n in range(101))),
    "no parquet": lambda root: broken(root / f"{SECRET}.parquet"),
    "no label": lambda root: table(root / "a.parquet", **{SECRET: ["1"], "img": [IMAGE]}),
    "no image column": lambda root: table(root / "a.parquet", **{SECRET: ["1"], "label": [1]}),
    "unlabelled": lambda root: table(root / "a.parquet", img=[IMAGE] * 2, label=["1", None]),
    "minus one": lambda root: table(root / "a.parquet", img=[IMAGE] * 2, label=[1, -1]),
    "a long name": lambda root: table(root / "a.parquet", img=[IMAGE], label=[SECRET * 40]),
    "a path elsewhere": lambda root: table(root / "a.parquet", img=[f"/{SECRET}"], label=["1"]),
    "a path to nothing": lambda root: table(root / "a.parquet", img=[f"{SECRET}.png"], label=["1"]),
    "a broken cell": lambda root: table(
        root / "a.parquet", img=[{"bytes": IMAGE, "path": f"{SECRET}.png"}], label=["1"]
    ),
    "label types": lambda root: (
        table(
            table(root / f"{SECRET}.parquet", img=[IMAGE], label=["1"]).with_name("b.parquet"),
            img=[IMAGE],
            label=[1],
        ).parent
    ),
}


def asked(node: dict, **changes) -> tuple[str, list[str]]:
    """Return the reason that the server hears, and every text in the replies."""
    run = {**RUN, **changes}
    config = parse_config(RUN)
    data = config.data
    spec = InputSpec(data.image_size, data.channels, data.mean, data.std)
    arrays = to_array_record(build_vit(config.model, spec, 10, 0).vit.state_dict())
    texts = []

    def answer(message):
        reply = app(message, context(run, node))
        assert not reply.has_error()
        for record in reply.content.values():
            texts.extend(map(str, [*record.keys(), *record.values()]))
        return reply

    names = ConfigRecord({"class-names": [str(digit) for digit in range(10)]})
    strategy = AveragingRound(settle_seconds=0.0, poll_seconds=0.0, federated_evaluation=True)
    with pytest.raises(AggregationError):
        strategy.start(FakeGrid([11], answer), arrays, timeout=60.0, train_config=names)
    (rejection,) = strategy.outcome.rejected
    return rejection.reason, texts


@pytest.mark.parametrize("mishap", MISHAPS)
def test_no_mishap_with_a_nodes_own_data_names_what_it_holds(tmp_path, caplog, mishap):
    path = MISHAPS[mishap](tmp_path / SECRET)
    source = "parquet" if any(tmp_path.rglob("*.parquet")) else "image-folder"
    node = {"client-key": "hospital", "data-path": str(path), "data-source": source}
    reason, texts = asked(node)
    told = "\n".join([reason, *texts])
    assert SECRET not in told and str(tmp_path) not in told and str(os.getcwd()) not in told
    assert reason.endswith(".") and 10 < len(reason) < 300
    # The node's own log says what it is.
    assert SECRET in caplog.text


OWN = {"client-key": "me", "data-path": "/srv/x", "data-source": "image-folder"}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"client-key": "me", "data-path": f"/srv/{SECRET}"}, "its node-config data-path needs"),
        ({**OWN, "max-seconds": SECRET}, "node config (data.path, data.source, client.m"),
        ({**OWN, "data-source": f"/srv/{SECRET}"}, "node config (data.path, data.source) don't"),
        ({**OWN, "model-dir": f"~{SECRET}/x"}, "its node-config model-dir names a user's home"),
        ({"partition-id": SECRET, "num-partitions": 2}, "its node-config partition-id must be"),
        ({"partition-id": 0, "num-partitions": SECRET}, "its node-config num-partitions must be"),
    ],
)
def test_what_a_node_config_says_stays_there(caplog, node, words):
    reason, texts = asked(node)
    told = "\n".join([reason, *texts])
    assert words in reason and SECRET not in told and "/srv" not in told
    assert SECRET in caplog.text


def test_natural_domains_are_not_named(tmp_path, caplog):
    path = table(
        tmp_path / f"{SECRET}.parquet",
        img=[IMAGE] * 8,
        label=["1", "2"] * 4,
        domain=[SECRET, "b"] * 4,
    )
    changes = {"data.source": "parquet", "data.path": str(path), "partition.kind": "natural"}
    reason, texts = asked({"partition-id": 0, "num-partitions": 5}, **changes)
    assert reason.startswith("num-supernodes = 5 is not allowed: it must be 2, one for each domain")
    assert not any(SECRET in text for text in texts) and SECRET in caplog.text


def test_an_image_is_told_by_its_number(tmp_path):
    root = folder_of(tmp_path, *(f"{n}/{m}.png" for n in range(4) for m in range(5)))
    broken(root / "3" / "9.png")
    reason, _ = asked({"client-key": "me", "data-path": str(root), "data-source": "image-folder"})
    assert reason.startswith("image 21 of 21 is not a readable 8-bit image (")


def test_an_exception_that_nobody_foresaw_is_told_by_its_kind(monkeypatch, caplog):
    def fail(*_):
        raise OSError(5, "Input/output error", f"/home/{SECRET}/scan.png")

    monkeypatch.setattr("fedmitr_app.client_app.load_shard", fail)
    reason, texts = asked({"partition-id": 0, "num-partitions": 2})
    assert reason == "its ClientApp failed (OSError): its own log says why."
    assert not any(SECRET in text for text in texts)
    assert SECRET in caplog.text and "Traceback" in caplog.text


def test_a_data_error_tells_nothing_unless_it_is_meant_to():
    assert DataError("/home/x is bad.").public == ("its data can't be used: its own log says why.")
    assert DataError("/home/x is bad.", public="it is bad.").public == "it is bad."
    assert FedmitrError("a sentence.").public == "a sentence."
    strange = FedmitrError("a \x1b[31m\ud800.\n\u202eb", public="c\x07.")
    assert (str(strange), strange.public) == ("a ?[31m?. ?b", "c?.")
    error = ConfigError.bad_value("a.b", 3, "a column of /home/x", public="a column of its data")
    assert str(error) == "a.b = 3 is not allowed: it must be a column of /home/x."
    assert error.public == "a.b = 3 is not allowed: it must be a column of its data."
