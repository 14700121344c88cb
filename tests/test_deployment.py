"""Real processes on loopback: TLS, keys, a node that dies in training, one without a key."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import CLASSES, Deployment, draw_shard

RUN_SECONDS = 400
BUDGET = (
    "preset='quick' server.test-set=false server.min-clients=2 server.wait-for-nodes=60.0 "
    f"server.classes='{','.join(CLASSES)}' inversion.images=16 inversion.iterations=4 "
    "distillation.steps=10 server.federated-evaluation=true client.holdout=0.25 server.absence=5.0"
)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    try:
        made.start_superlink()
        yield made
    finally:
        made.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_of_three_nodes_make_a_model_and_the_report_says_who_is_missing(
    deployment: Deployment, tmp_path: Path
) -> None:
    for number, name in enumerate(("hospital-a", "hospital-b", "hospital-c")):
        # The last one has so much to do that it is still at it when it is killed.
        draw_shard(tmp_path / name, 4000 if name == "hospital-c" else 8, number)
        key = deployment.make_key(name)
        deployment.flwr("supernode", "register", f"{key}.pub", "ours", "--name", name)
        deployment.start_node(name, key, tmp_path / name)
    draw_shard(tmp_path / "stranger", 8, 9)
    deployment.start_node("stranger", deployment.make_key("stranger"), tmp_path / "stranger")
    deployment.wait_for(lambda: deployment.nodes_online() == 3, 120, "three nodes to be online")
    refused = "Failed to activate"
    deployment.wait_for(lambda: refused in deployment.log("stranger"), 120, "the refusal")

    folder = tmp_path / "result"
    run_id = deployment.run(f"{BUDGET} client.epochs=40 output.run-dir='{folder}'")
    begun = "hospital-c: training"
    deployment.wait_for(lambda: begun in deployment.log("hospital-c"), 180, "its training")
    deployment.kill("hospital-c")
    ended = "finished"
    deployment.wait_for(
        lambda: deployment.status(run_id).startswith(ended), RUN_SECONDS, "the end of the run"
    )
    log = deployment.flwr("log", run_id, "ours", "--show").stdout
    assert deployment.status(run_id) == "finished:completed", log + deployment.log("superlink")

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["uploads"]["asked"] == 3 and metrics["uploads"]["accepted"] == 2
    assert metrics["federated_evaluation"]["accuracy-on-hold-out"] >= 0
    assert (folder / "global_model.safetensors").stat().st_size > 10_000
    table = (folder / "clients.csv").read_text()
    assert "hospital-a" in table and "hospital-b" in table
    lost = [line for line in table.splitlines() if "rejected" in line or "no reply" in line]
    assert len(lost) == 1 and lost[0].startswith("hospital-c (node ")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert lost[0].split(",")[0] in report
    # Its images stay where they are: nothing but weights and numbers came.
    assert {path.suffix for path in (folder / "uploads").iterdir()} == {".json", ".safetensors"}
    told = json.loads((folder / "status.json").read_text())
    assert told["state"] == "completed"

    # A reboot of the server forgets nobody.
    deployment.kill("superlink")
    deployment.start_superlink()
    deployment.wait_for(lambda: deployment.nodes_online() == 2, 120, "the nodes to come back")
