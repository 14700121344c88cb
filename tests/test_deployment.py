"""Real processes on loopback: a proxy, TLS, keys, a node that dies in training, strangers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import strangers
from tests.helpers.deployment import CLASSES, Deployment, draw_shard

RUN_SECONDS = 400
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
SIGNED = "@fedmitr/fedmitr-app==0.1.0"  # with a version, it is fetched anew each time
LARGEST_PIECE = 5 * 2**20  # Flower's, of an array
BUDGET = (
    "preset='quick' model.name='deit_tiny_patch16_224' data.image-size=32 data.channels=3 "
    f"server.test-set=false server.classes='{','.join(CLASSES)}' server.min-clients=2 "
    "server.wait-for-nodes=60.0 client.epochs=20 "
    "server.absence=5.0 inversion.images=16 inversion.iterations=4 distillation.steps=10 "
    "server.federated-evaluation=true client.holdout=0.25"
)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    try:
        made.start_server()
        yield made
    finally:
        made.stop()


def refuses_strangers(deployment: Deployment, key: Path, node_id: str) -> None:
    """Check that what guards the server lets nothing by but nodes' calls."""
    ca, port = deployment.certificates / "ca.crt", deployment.port
    before = deployment.nodes()
    for path in strangers.paths(deployment.own_port):
        for method in ("POST", "GET"):
            status = strangers.ask(port, ca, path, strangers.registration(), method)
            assert status in strangers.REFUSED, (method, path, status)
    for words in (
        ("supernode", "register", f"{key}.pub", "public"),
        ("supernode", "unregister", node_id, "public"),
        ("supernode", "list", "public"),
        ("run", ".", "public"),
    ):
        done = deployment.flwr(*words, check=False)
        assert done.returncode != 0, (words, done.stdout)
    assert deployment.nodes() == before
    assert json.loads(deployment.flwr("ls", "ours", "--format", "json").stdout)["runs"] == []
    # The very same request does it on loopback: it was the proxy that refused.
    inside = strangers.ask(
        deployment.own_port,
        deployment.loopback / "loopback.crt",
        "/v1/control/register-node",
        strangers.registration(),
    )
    assert inside == 200 and len(deployment.nodes()) == len(before) + 1
    # A piece of an array comes as far as Flower, which wants a signature; more does not.
    push = "/v1/fleet/push-object"
    assert strangers.ask(port, ca, push, strangers.piece(LARGEST_PIECE)) == 401
    assert strangers.ask(port, ca, push, strangers.piece(2 * LARGEST_PIECE)) == 413


def only_the_proxy_listens(deployment: Deployment) -> None:
    """Check who listens where: addresses in /proc are hexadecimal."""
    loopback, everywhere = "0100007F", "00000000"
    found = deployment.listening()
    assert (loopback, deployment.own_port) in found
    # A node has a port for its own processes, the SuperLink one where it fetches the signed app.
    assert len([entry for entry in found if entry[0] == loopback]) >= 2 + len(HOSPITALS)
    beyond = {entry for entry in found if entry[0] != loopback}
    assert beyond == {(everywhere, deployment.port)}


def ends(deployment: Deployment, run_id: str, how: str) -> None:
    """Wait for the end of a run, and check which it is."""
    deployment.wait_for(
        lambda: deployment.status(run_id).startswith("finished"), RUN_SECONDS, "the end of the run"
    )
    log = deployment.run_log(run_id) + deployment.log("server")
    assert deployment.status(run_id) == f"finished:{how}", log


def is_private(path: Path) -> bool:
    """Whether nobody but its owner may do anything with a file, or with all in a folder."""
    return all(
        found.stat().st_mode & 0o077 == 0
        for found in (path, *path.rglob("*"))
        if not found.is_symlink()
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_of_three_nodes_make_a_model_and_the_report_says_who_is_missing(
    deployment: Deployment, tmp_path: Path
) -> None:
    for number, name in enumerate(HOSPITALS):
        # The last one has so much to do that it is still at it when it is killed.
        draw_shard(tmp_path / name, 4000 if name == "hospital-c" else 8, number)
        key = deployment.make_key(name)
        deployment.flwr("supernode", "register", f"{key}.pub", "ours", "--name", name)
        deployment.start_node(name, key, tmp_path / name)
    draw_shard(tmp_path / "stranger", 8, 9)
    strange = deployment.make_key("stranger")
    deployment.start_node("stranger", strange, tmp_path / "stranger")
    deployment.wait_for(lambda: deployment.nodes_online() == 3, 120, "three nodes to be online")
    refused = "Failed to activate"
    deployment.wait_for(lambda: refused in deployment.log("stranger"), 120, "the refusal")
    refuses_strangers(deployment, strange, next(iter(deployment.nodes())))

    folder = tmp_path / "result"
    # Whoever may start runs decides not what nodes run: they trust a reviewer's signature.
    unsigned = deployment.run(".", f"{BUDGET} output.run-dir='{tmp_path / 'unsigned'}'")
    ends(deployment, unsigned, "failed")
    assert "The FAB could not be verified" in deployment.run_log(unsigned)
    assert not any("training" in deployment.log(name) for name in HOSPITALS)

    run_id = deployment.run(SIGNED, f"{BUDGET} output.run-dir='{folder}'")
    begun = "hospital-c: training"
    deployment.wait_for(lambda: begun in deployment.log("hospital-c"), 180, "its training")
    only_the_proxy_listens(deployment)
    deployment.kill("hospital-c")
    ends(deployment, run_id, "completed")

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["uploads"]["asked"] == 3 and metrics["uploads"]["accepted"] == 2
    assert metrics["federated_evaluation"]["accuracy-on-hold-out"] >= 0
    # DeiT-Tiny's weights, each way through the proxy.
    assert (folder / "global_model.safetensors").stat().st_size > 20e6
    table = (folder / "clients.csv").read_text()
    assert "hospital-a" in table and "hospital-b" in table
    lost = [line for line in table.splitlines() if "rejected" in line or "no reply" in line]
    assert len(lost) == 1 and lost[0].startswith("hospital-c (node ")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert lost[0].split(",")[0] in report
    # The preset says 15 epochs: a value that is given wins, also one that is the default.
    manifests = [json.loads(path.read_text()) for path in (folder / "uploads").glob("*.json")]
    assert [each["metrics"]["epochs"] for each in manifests] == [20, 20]
    # Who trained has the model in the end, to the last bit.
    for name in ("hospital-a", "hospital-b"):
        (kept,) = (tmp_path / f"{name}-models").glob("run-*/global_model.safetensors")
        assert kept.read_bytes() == (folder / "global_model.safetensors").read_bytes()
    # Its images stay where they are: nothing but weights and numbers came.
    assert {path.suffix for path in (folder / "uploads").iterdir()} == {".json", ".safetensors"}
    told = json.loads((folder / "status.json").read_text())
    assert told["state"] == "completed"
    # Uploads can be inverted into images, and the database holds them on their way.
    for path in (folder, *tmp_path.glob("superlink.db*")):
        assert is_private(path), path

    # A reboot of the server forgets nobody.
    deployment.kill("server")
    deployment.start_server()
    deployment.wait_for(lambda: deployment.nodes_online() == 2, 120, "the nodes to come back")
