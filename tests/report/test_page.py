"""The page: self-contained, escaped, and without the parts that there is nothing for."""

import base64
import re
from html.parser import HTMLParser

import pytest

from fedmitr_app.report.data import ClientRow, PoolSample, ReportData
from fedmitr_app.report.page import write_report
from fedmitr_app.run_folder import RunFolder
from tests.helpers.made_up_run import make_data, make_pool

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")


def page_of(folder: RunFolder, data: ReportData) -> Page:
    path = write_report(folder, data)
    assert path == folder.report
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def without_figures(**changes: object) -> ReportData:
    parts = ("pool", "label_matrix", "inversion", "distillation")
    return make_data(**{**dict.fromkeys(parts), "metrics": {}, **changes})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Page]:
    """A report with every part, drawn once."""
    folder = RunFolder.create(str(tmp_path_factory.mktemp("full")), seed=3)
    folder.write_json("global_model.json", {"load": ["model = <one>", "load(model)"]})
    return folder, page_of(folder, make_data())


def test_the_page_asks_for_nothing_from_anywhere(full: tuple[RunFolder, Page]) -> None:
    folder, page = full
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:")
        assert not name.startswith("on")
    raw = folder.report.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", raw))
    assert "script" not in page.tags
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in (
        page.attributes
    )


def test_every_figure_is_in_the_page_and_in_the_folder(full: tuple[RunFolder, Page]) -> None:
    folder, page = full
    shown = [value for name, value in page.attributes if name == "src"]
    drawn = sorted(folder.figures.iterdir())
    assert [path.name for path in drawn] == [
        "accuracy.png",
        "attention.png",
        "distillation.png",
        "inversion.png",
        "label_distribution.png",
        "synthetic_images.png",
    ]
    decoded = {base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in shown}
    # Accuracies are bars of the page's own, which fit any window.
    assert decoded == {path.read_bytes() for path in drawn if path.name != "accuracy.png"}
    bars = [value for name, value in page.attributes if name == "style" and "width" in value]
    assert [value.partition(";")[0] for value in bars] == [
        *("width:85.0%", "width:88.4%", "width:79.6%", "width:29.5%"),
        *("width:21.0%", "width:28.0%"),
    ]


def test_a_reader_finds_what_matters(full: tuple[RunFolder, Page]) -> None:
    folder, page = full
    for words in (
        "The student reaches 85.0 %",
        "Choosing and inverting images earned 5.4 points",
        "1 of 3 clients took no part",
        "rejected: its weights hold NaN",
        'flwr run . --stream --run-config "seed=3 partition.alpha=0.5" '
        '--federation-config "num-supernodes=3"',
        "Flower simulated 3 clients; what each of them could use is unknown here",
        "41.0 % of never stopping a patch",
        "model = <one>\nload(model)",
        folder.run_id,
    ):
        assert words in page.text, words


def test_changed_settings_come_before_the_folded_rest(full: tuple[RunFolder, Page]) -> None:
    settings = re.search(r"changedvaluedefault(.*)all \d+ settings(.*)", full[1].text, re.S)
    table, folded = settings.groups()
    assert "partition.alpha" in table
    assert "partition.kind" not in table
    assert "partition.kind" in folded


def test_hostile_text_stays_text(folder: RunFolder) -> None:
    pool = make_pool()
    data = make_data(
        config={EVIL: EVIL, "server.method": EVIL, "data.source": EVIL},
        defaults={EVIL: ""},
        environment={EVIL: EVIL, "packages": {EVIL: EVIL}},
        clients=[ClientRow(EVIL + "\ud800", 1, status=EVIL, reason=EVIL)],
        class_names=[EVIL, "$x$"],
        label_matrix_clients=[EVIL, "\0"],
        metrics={"seconds": {EVIL: 1.0}, "throughput": {EVIL: 2.0}},
        pool=PoolSample(pool.images, pool.patch_size, [EVIL] * 3, pool.kept, pool.attention),
    )
    page = page_of(folder, data)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(value.startswith("data:") for name, value in page.attributes if name == "src")
    assert page.text.count("alert(1)") >= 10


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        ({}, "Load the model"),
        ({}, "Synthetic images"),
        ({}, "Who held what"),
        ({}, "How it went"),
        ({}, "Accuracy"),
        ({"clients": ()}, "Clients"),
        ({"environment": {}}, "Environment"),
        ({"config": {}}, "Run it again"),
    ],
)
def test_what_is_missing_is_left_out(folder: RunFolder, missing: dict, heading: str) -> None:
    text = page_of(folder, without_figures(**missing)).text
    assert f"\n{heading}\n" not in text
    assert "\nClients\n" in text or heading == "Clients"


def test_a_report_of_nothing_is_a_page(folder: RunFolder) -> None:
    text = page_of(folder, ReportData()).text
    assert "no test set" in text
    assert not list(folder.figures.iterdir())


def test_clients_that_are_not_in_the_label_figure_are_counted(folder: RunFolder) -> None:
    text = page_of(folder, make_data(pool=None, inversion=None, distillation=None)).text
    assert "did not share" not in text  # the rejected third one doesn't count
    shared = {"label_matrix": [[800, 0]], "label_matrix_clients": ["client-0"]}
    assert "1 of 2 clients did not share theirs." in page_of(folder, make_data(**shared)).text


def test_a_report_after_the_end_of_the_run(folder: RunFolder) -> None:
    folder.finish("completed")  # drops the empty figures folder
    data = without_figures(metrics={"accuracy": {"student": 0.5}})
    page = page_of(folder, data)
    assert page.tags.count("dd") == 1 and (folder.figures / "accuracy.png").exists()


def test_a_hundred_clients_are_folded(folder: RunFolder) -> None:
    rows = [ClientRow(f"client-{index}", 10) for index in range(100)]
    text = page_of(folder, without_figures(clients=rows)).text
    assert "all 100 clients" in text
