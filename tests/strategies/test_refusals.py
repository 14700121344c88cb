"""What hides the individual models from the server is refused, with the reason."""

import pytest
from flwr.server import LegacyContext
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

from fedmitr_app.errors import ConfigError
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, context, failure, record, theta0
from tests.helpers.rounds import QUICK, keyed, run


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 3),
        lambda inner: DifferentialPrivacyClientSideFixedClipping(inner, 1.0, 1.0, 3),
        lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(
            inner, 0.1, 3, clipped_count_stddev=1.0
        ),
    ],
)
def test_a_differential_privacy_wrapper_is_refused_before_anyone_trains(wrap):
    grid = FakeGrid([11, 12, 13], keyed)
    with pytest.raises(ConfigError, match="Round fuses each client's model as it was sent"):
        wrap(AveragingRound(**QUICK)).start(grid, record(theta0()), num_rounds=1)
    assert not grid.pushed


def test_secure_aggregation_is_refused_before_anyone_trains():
    grid, strategy = FakeGrid([11, 12, 13], keyed), AveragingRound(**QUICK)
    legacy = LegacyContext(context({}), strategy=strategy)
    workflow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2))
    with pytest.raises(ConfigError, match="a workflow, as for secure aggregation, does not hand"):
        workflow(grid, legacy)
    assert not grid.pushed


def test_a_client_that_applies_secure_aggregation_is_told_to_leave_it_out():
    def answer(message):
        if message.metadata.dst_node_id == 11:
            return failure(message, "Traceback ...\nKeyError: 'secaggplus_configs'")
        return keyed(message)

    strategy = AveragingRound(**QUICK)
    run(strategy, answer)
    (rejection,) = strategy.outcome.rejected
    assert "secure aggregation (secaggplus_mod)" in rejection.reason
