"""The methods' names: one list for the harness, one for the app, and no third."""

from fedmitr_app.config.schema import METHODS as SERVER_METHODS
from fedmitr_app.methods import METHODS


def test_a_server_can_do_all_that_needs_no_real_images():
    assert set(SERVER_METHODS) == set(METHODS) - {"real-images"}


def test_a_method_is_called_as_it_is_named():
    for name, method in METHODS.items():
        assert callable(method) and method.__name__ == name.replace("-", "_")
