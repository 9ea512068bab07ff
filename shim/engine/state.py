"""Whether an OCI runtime still knows a container, without running it: mostly all that `delete` has to ask."""

from __future__ import annotations

import os
from typing import Final

DEFAULT_ROOT: Final = "/run/containerd/runc"


def has_state(root: str, namespace: str, container_id: str) -> bool:
    """Say whether the runtime has a container: its state is a folder of that name below the namespace's."""
    return os.path.isdir(os.path.join(root, namespace, container_id))
