"""Differential privacy on the clients is one line; its cost is measured on the same thing."""

import math

import pytest
import torch
from flwr.clientapp.mod import LocalDpMod

import tests.helpers.federation
from benchmarks.client_privacy import DELTA, noise_deviation, privately
from fedmitr_app.client_app import app
from fedmitr_app.uploads import read_spool


def states(folder):
    return {upload.client: upload for upload in read_spool(folder / "uploads")}


@pytest.mark.parametrize("norm", [0.5, 1e3])
def test_the_mod_works_and_the_benchmark_does_what_it_does(federation, tmp_path, monkeypatch, norm):
    federation.run()
    plain = states(federation.folder)
    mod = LocalDpMod(clipping_norm=norm, sensitivity=norm, epsilon=1e12, delta=DELTA)
    monkeypatch.setattr(tests.helpers.federation, "client_app", lambda m, c: mod(m, c, app))
    private = tests.helpers.federation.Federation(tmp_path / "private")
    metrics = private.run()
    assert metrics["uploads"]["accepted"] == 3
    initial = private.grid.sent[0].content["arrays"].to_torch_state_dict()
    for client, upload in states(private.folder).items():
        found = upload.load_state()
        made = privately(plain[client], initial, norm, 0.0, tmp_path, seed=0).load_state()
        for name, value in found.items():
            torch.testing.assert_close(value, made[name], rtol=1e-4, atol=2e-5)
        steps = [float((found[name] - initial[name]).square().sum()) for name in found]
        assert math.sqrt(sum(steps)) <= norm * 1.01


def test_the_noise_has_the_mods_deviation():
    assert noise_deviation(2.0, 10.0) == pytest.approx(2.0 * math.sqrt(2 * math.log(1.25e5)) / 10)
