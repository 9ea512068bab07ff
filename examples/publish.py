"""Publishes one event, as a shim does: `python publish.py ADDRESS`, the path of containerd's ttrpc socket."""

import sys

import shim
from shim.api import TaskOOM


def main(address: str) -> None:
    """Send it, and wait until containerd has taken it."""
    print(f"Connecting: {address}")
    with shim.StandalonePublisher(address, "default") as publisher:
        print("Sending event")
        publisher.publish(shim.topics.TASK_OOM, TaskOOM(container_id="123"))
    print("Done")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS")
    try:
        main(sys.argv[1])
    except shim.ShimError as error:
        sys.exit(f"{sys.argv[0]}: {error}")
