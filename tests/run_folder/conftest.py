"""A run folder for the tests that are here."""

from tests.helpers.made_up_run import folder

__all__ = ["folder"]
