"""The methods' names: one list for the harness, one for the app, and no third."""

from fedmitr_app.config.schema import METHODS as SERVER_METHODS
from fedmitr_app.methods import METHODS


def test_a_server_can_do_all_that_needs_no_real_images():
    assert set(SERVER_METHODS) == set(METHODS) - {"real-images"}


def test_every_method_says_what_it_is():
    for name, method in METHODS.items():
        assert method.__doc__ and "->" not in method.__doc__.splitlines()[0], name
