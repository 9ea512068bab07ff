"""The generated modules and the distribution's metadata agree on protobuf."""

import re
import tomllib
from pathlib import Path

import shim.api

API = Path(shim.api.__path__[0])


def test_oldest_allowed_protobuf_is_the_one_that_generated_code_needs() -> None:
    """Generated code refuses a protobuf older than its generator's, so no older one may be installed with it."""
    project = tomllib.loads((API.parent.parent / "pyproject.toml").read_text())["project"]
    bounds = {bound for line in project["dependencies"] for bound in re.findall(r"^protobuf>=([\d.]+)", line)}
    versions = re.compile(r"^# Protobuf Python Version: ([\d.]+)$", re.MULTILINE)
    needed = {version for path in API.glob("*_pb2.py") for version in versions.findall(path.read_text())}

    assert needed == bounds
