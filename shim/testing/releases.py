"""Finds containerd releases to test against: the installed one, and Debian's others unpacked into a cache folder.

`find("1.7")` returns a `Release`: the installed package if it is that release, else a cached one, else the package of
the Debian suite that has it, fetched by apt with a private configuration (the machine's own mirror and archive keyring)
and unpacked without being installed. `python -m shim.testing.releases` prints what there is.
A key is the start of a version: "1.6", "2.1", or "2" for the newest 2.x; or a folder with programs of one's own.
The cache is below the user's cache folder, or
in $SHIM_TEST_CACHE. Works without a network once cached.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The suites that are looked through, oldest first, and the key that each is tried first for. Which release a suite has
# is what its package says: suites move on.
SUITES: Final = {"bookworm": "1.6", "trixie": "1.7", "forky": "2"}
PACKAGE: Final = "containerd"
GO_SHIM: Final = "containerd-shim-runc-v2"

_PROGRAMS: Final = ("containerd", "ctr", GO_SHIM)
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_VERSION: Final = re.compile(r"\bv?(\d+\.\d+\.\d+)")


class ReleaseError(Exception):
    """A containerd release can be neither found nor fetched."""


@dataclass(frozen=True, slots=True)
class Release:
    """One containerd release: a folder with `containerd`, `ctr` and Go's shim of that version."""

    version: str
    folder: Path
    source: str

    @property
    def key(self) -> str:
        """Major and minor version, as in `1.6`."""
        return ".".join(self.version.split(".")[:2])

    @property
    def major(self) -> int:
        """Major version."""
        return int(self.version.partition(".")[0])

    @property
    def containerd(self) -> Path:
        """Path of the daemon."""
        return self.folder / "containerd"

    @property
    def ctr(self) -> Path:
        """Path of the client of the same version."""
        return self.folder / "ctr"

    @property
    def go_shim(self) -> Path:
        """Path of Go's shim of the same version."""
        return self.folder / GO_SHIM

    def matches(self, key: str) -> bool:
        """Say whether `key` is the start of this version."""
        return f"{self.version}.".startswith(f"{key}.")


def find(key: str) -> Release:
    """Return the newest release that matches `key`, fetching it if need be; a path means what is in that folder.

    Raises:
        ReleaseError: no suite has such a release, or it cannot be fetched; the message names suite and package.  Or
            the folder lacks a program.
    """
    if "/" in key:
        return _in_folder(Path(key))
    local = [release for release in known() if release.matches(key)]
    if local:
        return max(local, key=_order)
    offered: list[str] = []
    for suite in sorted(SUITES, key=lambda suite: not f"{key}.".startswith(f"{SUITES[suite]}.")):
        release = _fetch(suite, key)
        if isinstance(release, Release):
            return release
        offered.append(f"{suite} has {release}")
    raise ReleaseError(f"no Debian suite has containerd {key} ({', '.join(offered)})")


def find_all() -> list[Release]:
    """Return one release for each of the suites, oldest first, fetching those that are missing.

    Raises:
        ReleaseError: one of them cannot be fetched.
    """
    releases = {release.key: release for release in sorted(known(), key=_order)}
    for suite in SUITES:
        if not any(release.source == suite for release in releases.values()) and suite != _installed_suite():
            release = _fetch(suite, "")
            if isinstance(release, Release):
                releases.setdefault(release.key, release)
    return sorted(releases.values(), key=_order)


def known() -> list[Release]:
    """Return the releases that are here without any fetching: the installed one first, then the cached ones."""
    here = installed()
    return ([here] if here else []) + _cached()


def installed() -> Release | None:
    """Return the release on PATH, or None."""
    daemon = shutil.which("containerd")
    if daemon is None or shutil.which("ctr") is None:
        return None
    version = _version_of(Path(daemon))
    return Release(version, Path(daemon).parent, "installed") if version else None


def _in_folder(folder: Path) -> Release:
    """Return a release of somebody's own building."""
    missing = [name for name in _PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise ReleaseError(f"{folder} has no {', '.join(missing)}")
    # One that was built without make does not know its version: then it is newer than all.
    return Release(_version_of(folder / PACKAGE) or "9999.0.0", folder.absolute(), "built")


def _version_of(daemon: Path) -> str:
    reported = subprocess.run([str(daemon), "--version"], capture_output=True, text=True, check=False).stdout
    found = _VERSION.search(reported)
    return found[1] if found else ""


def cache_folder() -> Path:
    """Return the folder for fetched releases (it need not exist)."""
    override = os.environ.get("SHIM_TEST_CACHE")
    if override:
        return Path(override).absolute()
    # A developer's dependency: this module has to work without it.
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "containerd-shim" / "releases"
    return Path(platformdirs.user_cache_dir("containerd-shim")) / "releases"


def _order(release: Release) -> tuple[int, ...]:
    return tuple(int(part) for part in release.version.split("."))


def _cached() -> list[Release]:
    releases = []
    for note in sorted(cache_folder().glob(f"*-{platform.machine()}/release.json")):
        facts = json.loads(note.read_text())
        releases.append(Release(facts["version"], note.parent, facts["suite"]))
    return releases


def _installed_suite() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith("VERSION_CODENAME="):
                return line.partition("=")[2].strip('"') if installed() else ""
    return ""


def _fetch(suite: str, key: str) -> Release | str:
    """Return the suite's release, or only its version if it does not match `key` (the empty key matches any)."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache), tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch_name:
        scratch = Path(scratch_name)
        apt = _Apt(scratch / "apt", suite)
        package_version = apt.candidate(PACKAGE)
        found = _VERSION.search(package_version)
        if found is None:
            raise ReleaseError(f"package {PACKAGE} of Debian {suite} has the odd version {package_version!r}")
        version = found[1]
        if key and not Release(version, scratch, suite).matches(key):
            return version
        for release in _cached():
            if release.version == version:
                return release
        tree = scratch / "tree"
        _run(["dpkg-deb", "-x", str(apt.download(PACKAGE)), str(tree)], f"cannot unpack {PACKAGE} of Debian {suite}")
        folder = scratch / "release"
        folder.mkdir()
        for program in _PROGRAMS:
            shutil.move(tree / "usr/bin" / program, folder / program)
        facts = {"package": package_version, "suite": suite, "version": version}
        (folder / "release.json").write_text(json.dumps(facts) + "\n")
        target = cache / f"{version}-{platform.machine()}"
        folder.rename(target)
        return Release(version, target, suite)


def packages(suite: str, names: Sequence[str]) -> Path:
    """Return a folder with packages of a Debian suite, unpacked and not installed; fetched once.

    Raises:
        ReleaseError: They cannot be fetched.
    """
    cache = cache_folder()
    target = cache / "-".join(["tree", suite, platform.machine(), *names])
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch_name:
                scratch = Path(scratch_name)
                apt = _Apt(scratch / "apt", suite)
                for name in names:
                    archive = apt.download(name)
                    _run(["dpkg-deb", "-x", str(archive), str(scratch / "tree")], f"cannot unpack {name} of {suite}")
                    archive.unlink()
                (scratch / "tree").rename(target)
    return target


class _Apt:
    """An apt of its own: private lists and cache, the machine's mirror, keyring and proxy settings."""

    def __init__(self, folder: Path, suite: str) -> None:
        self._folder = folder
        self._suite = suite
        for name in ("state/lists/partial", "cache/archives/partial", "download"):
            (folder / name).mkdir(parents=True)
        (folder / "state/status").touch()
        uri, keyring = mirror()
        source = f"deb [signed-by={keyring} target=Packages] {uri} {suite} main\n"
        (folder / "sources.list").write_text(source)
        # The hooks of the machine's own apt would work on the machine's own caches.
        (folder / "apt.conf").write_text(
            "#clear APT::Update::Pre-Invoke;\n"
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
            f'Dir::State "{folder}/state";\n'
            f'Dir::State::status "{folder}/state/status";\n'
            f'Dir::Cache "{folder}/cache";\n'
            f'Dir::Etc::sourcelist "{folder}/sources.list";\n'
            'Dir::Etc::sourceparts "-";\n'
            'Dir::Etc::preferencesparts "-";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
            # A mirror that is a snapshot will do: what comes from it is signed, and only tested with.
            'Acquire::Check-Valid-Until "false";\n'
            'Acquire::PDiffs "false";\n'
            'Acquire::Retries "3";\n'
        )
        self._call("apt-get", "update", "--error-on=any", "-qq")

    def candidate(self, package: str) -> str:
        for line in self._call("apt-cache", "show", "--no-all-versions", package).splitlines():
            if line.startswith("Version: "):
                return line.removeprefix("Version: ").strip()
        raise ReleaseError(f"Debian {self._suite} has no package {package}")

    def download(self, package: str) -> Path:
        self._call("apt-get", "download", "-qq", package)
        (archive,) = (self._folder / "download").glob("*.deb")
        return archive

    def _call(self, program: str, *args: str) -> str:
        command = [program, "-c", str(self._folder / "apt.conf"), *args]
        what = f"cannot fetch package {PACKAGE} of Debian {self._suite}"
        return _run(command, what, cwd=self._folder / "download")


def _run(command: list[str], what: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ReleaseError(f"{what}: there is no {command[0]} here (only Debian's own tools are used)") from None
    if done.returncode:
        raise ReleaseError(f"{what}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def mirror() -> tuple[str, str]:
    """Return the archive URI and keyring that the machine itself uses for Debian's main archive."""
    etc = Path("/etc/apt")
    for file in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]:
        if not file.is_file() or file.suffix not in {".list", ".sources"}:
            continue
        parse = _deb822_entries if file.suffix == ".sources" else _line_entries
        for uri, suites, components, keyring in parse(file.read_text()):
            # Security and backports entries name their suites with a dash: only the plain ones hold whole suites.
            if "main" in components and any("-" not in suite and "/" not in suite for suite in suites):
                return uri, keyring if keyring.startswith("/") else _KEYRING
    raise ReleaseError("cannot fetch any release: no Debian archive in /etc/apt/sources.list or sources.list.d")


def _deb822_entries(text: str) -> Iterator[tuple[str, list[str], list[str], str]]:
    for paragraph in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n", "", text)):
        fields = {name.lower(): value for name, value in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", paragraph)}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
            for uri in fields.get("uris", "").split():
                yield uri, suites, components, fields.get("signed-by", "")


def _line_entries(text: str) -> Iterator[tuple[str, list[str], list[str], str]]:
    for match in re.finditer(r"(?m)^\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+([^#\n]+)", text):
        signed_by = re.search(r"signed-by=(\S+)", match[1] or "")
        yield match[2], [match[3]], match[4].split(), signed_by[1] if signed_by else ""


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Print a table of all releases, fetching those that are missing."""
    try:
        releases = find_all()
    except ReleaseError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    rows = [("release", "version", "from", "folder")]
    rows += [(release.key, release.version, release.source, str(release.folder)) for release in releases]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
