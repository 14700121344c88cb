"""Uploads and θ₀ for the tests that are here."""

from tests.helpers.three_uploads import theta0, uploads

__all__ = ["theta0", "uploads"]
