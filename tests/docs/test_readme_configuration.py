"""What README.md says of pyrunc's configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

from shim.engine.config import DEFAULT_CONFIG, Config, read_config
from shim.engine.limits import Limits
from tests.docs.blocks import texts


def test_the_file_shown_has_every_key_with_its_default(tmp_path: Path) -> None:
    """Read as it stands it changes nothing."""
    (text,) = texts("README.md", "Configure it", "toml")
    file = tmp_path / "containerd-shim-pyrunc.toml"
    file.write_text(text)
    table = tomllib.loads(text)

    assert DEFAULT_CONFIG == read_config(str(file))
    assert set(Config._fields) == set(table)
    assert list(Limits._fields) == list(table["limits"])
