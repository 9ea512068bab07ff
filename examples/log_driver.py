"""A log driver that writes both outputs of a container to one file, each line with the name of its stream.

    ctr run --log-uri 'binary:///path/to/log_driver?file=/var/log/hello.log' ...

runs the executable `/path/to/log_driver` with the words `file` and `/var/log/hello.log`.  It gets no PATH.
"""

import sys

from shim import log_driver


class ToFile:
    """Appends to the file that the URI names."""

    def __init__(self, config: log_driver.Config) -> None:
        _, _, path = sys.argv
        self.config = config
        self.file = open(path, "ab", buffering=0)

    def wait(self) -> None:
        """Write until there is no more."""
        with self.file:
            for name, line in self.config.lines():
                self.file.write(f"{self.config.id} {name}: ".encode() + line)


if __name__ == "__main__":
    log_driver.run(ToFile)
