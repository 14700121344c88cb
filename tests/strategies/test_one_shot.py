"""Any registered method as a Flower strategy, and the one result that it gives."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.errors import ConfigError
from fedmitr_app.methods import METHODS, MethodSettings
from fedmitr_app.strategies import FedMITR, OneShotResult, OneShotStrategy, split_ensemble
from tests.helpers.fake_grid import FakeGrid, reply
from tests.helpers.rounds import QUICK
from tests.helpers.three_uploads import settings

NODES = (11, 12, 13)


def vit(seed=0):
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 3}
    return VisionTransformer(**sizes, embed_dim=16, depth=2, num_heads=2)


def state_of(node):
    return vit(node).state_dict()


def answer(message):
    """Each node sends a model of its own, of which there are other numbers of examples."""
    node = message.metadata.dst_node_id
    arrays = ArrayRecord(state_of(node))
    metrics = MetricRecord({"num-examples": 10 * (node - 10)})
    upload = ConfigRecord({"client-key": f"client-{node}", "status": "ok"})
    return reply(message, RecordDict({"arrays": arrays, "metrics": metrics, "upload": upload}))


def run(method, chosen=None, **more):
    strategy = OneShotStrategy(vit(), method, chosen, device="cpu", **{**QUICK, **more})
    initial = ArrayRecord(vit().state_dict())
    return strategy.start(FakeGrid(NODES, answer), initial, timeout=1.0), strategy


@pytest.mark.parametrize("name", ["fedavg", "fedmitr", "best-client", "merged"])
def test_start_gives_one_result_with_all_that_is_known(name):
    result, strategy = run(name, settings())
    assert isinstance(result, OneShotResult) and result.fused.model is not None
    state = result.arrays.to_torch_state_dict()
    assert list(state) == list(vit().state_dict())
    fused = result.fused.model.vit.state_dict()
    assert all(torch.equal(state[key], fused[key]) for key in state)
    assert [upload.client for upload in result.outcome.accepted] == [
        f"client-{node}" for node in NODES
    ]
    assert len(result.task.clients) == 3 and result.control is None
    assert result.train_metrics_clientapp[1]["uploads"] == 3
    assert result.left_out == strategy.left_out and not result.scores


def test_federated_averaging_is_the_weighted_mean():
    result, _ = run("fedavg")
    found = result.arrays.to_torch_state_dict()["blocks.0.mlp.fc1.weight"].double()
    parts = [(node - 10) * state_of(node)["blocks.0.mlp.fc1.weight"].double() for node in NODES]
    torch.testing.assert_close(found, sum(parts) / 6, rtol=1e-6, atol=1e-7)


def test_what_the_weights_tell_of_an_upload_is_said_where_nobody_is_asked(monkeypatch, caplog):
    honest = state_of

    def drowning(node):
        state = honest(node)
        if node == 12:
            state["blocks.0.mlp.fc1.weight"][0, 0] = 1e18
        return state

    monkeypatch.setattr("tests.strategies.test_one_shot.state_of", drowning)
    result, _ = run("fedavg")
    assert "client-12 is suspicious: the root mean square of its blocks.0.mlp.fc1" in caplog.text
    found = result.arrays.to_torch_state_dict()["blocks.0.mlp.fc1.weight"]
    assert found.abs().max() < 1 and not result.left_out


def test_a_bare_average_asks_no_model_anything(monkeypatch):
    monkeypatch.setattr(
        "fedmitr_app.methods.task.probe", lambda *_, **__: pytest.fail("nobody need be asked")
    )
    assert run("fedavg")[0].fused.model is not None


def test_the_ensemble_is_every_model_side_by_side(caplog):
    result, _ = run("ensemble", MethodSettings(settings().teacher), federated_evaluation=True)
    models = split_ensemble(result.arrays.to_torch_state_dict())
    assert sorted(models) == [f"client-{node}" for node in NODES]
    for node in NODES:
        expected = state_of(node)
        own = models[f"client-{node}"]
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in expected)
    assert result.fused.model is None and not result.evaluate_metrics_clientapp
    assert "An ensemble is no single model: it is neither sent nor evaluated." in caplog.text


def test_the_summary_has_the_method_its_paper_and_what_it_reads():
    for name, method in METHODS.items():
        if method.needs:
            continue
        lines = OneShotStrategy(vit(), name, device="cpu", **QUICK).summary_lines()
        assert any(line.startswith(f"Method: {name}") and method.paper in line for line in lines)
        shown = {line.partition("Config:")[0].lower() for line in lines if "Config:" in line}
        assert shown == set(method.reads)


def test_the_plain_strategy_is_fedmitr():
    assert FedMITR(vit(), device="cpu").method is OneShotStrategy(vit(), device="cpu").method


def test_a_method_that_there_is_not_is_refused_when_the_strategy_is_made():
    with pytest.raises(ConfigError, match="method = 'magic' is not allowed: it must be one of"):
        OneShotStrategy(vit(), "magic", device="cpu")
