"""Hypothesis on a busy machine: slow draws and slow calls say nothing about the code."""

from hypothesis import HealthCheck, settings

settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")
