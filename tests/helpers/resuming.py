"""Runs that stop somewhere, and go on."""

import importlib

fedmitr_module = importlib.import_module("fedmitr_app.methods.fedmitr")  # not the function

RESUME = {"output.resume": True}


class Stopped(Exception):
    """Whatever ends a process in the middle of its work."""


def stop_at(monkeypatch, module, name, after=0):
    """Let a function raise once it was called ``after`` times."""
    original, calls = getattr(module, name), []

    def stopped(*arguments, **keywords):
        calls.append(name)
        if len(calls) > after:
            raise Stopped
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, stopped)
