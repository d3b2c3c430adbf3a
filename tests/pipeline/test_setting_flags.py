from __future__ import annotations

import pytest

from samunet.cli.common import parse_settings
from samunet.pipeline.run_commands import given_flags
from samunet.pipeline.setting_flags import setting_flags

VALUES = [True, False, None, 7, 1e-5, 0.25, "whole_box", "none", [96, 160], [], [1.5, 0.8]]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_is_read_as_the_same(value: object) -> None:
    written = setting_flags({"key": value})
    assert parse_settings(written[1::2]) == {"key": value}
    assert given_flags({"settings": {"key": value}}, None, 0) == written
