"""A frozen program, run in surroundings that a test chooses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

FORMS: Final = ("image", "static")
_LIMIT_S: Final = 60


class Program(NamedTuple):
    """One that has been frozen."""

    path: Path

    def run(
        self,
        *words: str,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end; `wrapper` are words before it, `environment` is all that it has."""
        settings.setdefault("stdin", subprocess.DEVNULL)
        if "stdout" not in settings:
            settings["capture_output"] = True
        return subprocess.run(
            [*wrapper, str(self.path), *words],
            env=dict(os.environ if environment is None else environment),
            timeout=_LIMIT_S,
            check=False,
            **settings,
        )

    def ask(self, *words: str, **settings: Any) -> Any:
        """Run it, which has to succeed without a complaint, and return the JSON that it prints."""
        done = self.run(*words, **settings)

        assert (0, b"") == (done.returncode, done.stderr)
        return json.loads(done.stdout)


def in_mounts(*commands: str) -> list[str]:
    """Return a wrapper that runs shell commands in a mount namespace of its own first."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh"]
