"""Planner tests see samunet's own methods, whatever other tests of the session have registered."""

from __future__ import annotations

import pytest

from samunet.planning import methods


@pytest.fixture(autouse=True)
def only_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: method for name, method in methods.list_methods().items() if "." not in name}
    monkeypatch.setattr(methods, "_METHODS", own)
