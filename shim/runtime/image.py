"""The image of a static binary: what a process is that has imported and warmed up all that a shim needs.

Rule: made once, when the binary is built; each launch goes on from there.  `make` is called in the place of a launch,
`_resume` is the first that runs in one.  What Python reads of its surroundings when it starts is read again here, or by
build/launch/image.c: nothing of the machine that builds may be seen.
Spec: docs/launch.md.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


# Set by the build alone, when two images differ: what modules hold goes to stderr, to see which.
DESCRIBE_VARIABLE = "SHIM_BUILD_DESCRIBE"


def is_being_made() -> bool:
    """Say whether this process is the one of the build that becomes the image."""
    if "_shim_image" not in sys.builtin_module_names:
        return False
    import _shim_image  # type: ignore[import-not-found]  # build/launch/image.c

    return bool(_shim_image.is_being_made())


def make(launch: Callable[[], NoReturn], warm_up: Callable[[], bool]) -> NoReturn:
    """Become the image: warm up, drop what belongs to the build, and let each start call `launch`.

    `warm_up` returns whether whole lives have been run: then code stays as it is.  The interpreter writes the image
    when the last frame has ended.
    """
    import _shim_image

    _refuse_what_is_lost()
    is_warm = warm_up()
    del warm_up
    is_told = DESCRIBE_VARIABLE in os.environ
    places = _forget_the_build()
    if is_told:
        _describe()

    def resume(words: list[str]) -> NoReturn:
        _look_around(words)
        launch()

    _shim_image.set_resume(resume, os.environ._data, is_warm, places)  # type: ignore[attr-defined]
    del resume
    for _ in range(3):  # the finalizers of one collection leave garbage for the next
        gc.collect()
    _shim_image.immortalize()
    gc.freeze()
    raise SystemExit(0)


def _refuse_what_is_lost() -> None:
    """End the build if the script has done what an image cannot hold, in one line that names it."""
    import _shim_image

    found = []
    if "threading" in sys.modules:
        threading = sys.modules["threading"]
        others = [each for each in threading.enumerate() if each is not threading.main_thread()]
        found += [f"the thread {each.name!r}" for each in others]
    if not found and _shim_image.has_more_threads():
        found.append("a thread")
    try:
        child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pass
    else:
        found.append(f"the child {_name_child(child)}")
    for fd in _shim_image.opened():
        try:
            found.append(f"descriptor {fd} ({os.readlink(f'/proc/self/fd/{fd}')})")
        except OSError:
            found.append(f"descriptor {fd}")
    if found:
        text = (
            f"before shim.run it has made what an image cannot hold: {', '.join(found)}; make it in the shim's methods"
        )
        os.write(2, f"{text}\n".encode())
        os._exit(1)


def _name_child(ended: os.waitid_result | None) -> str:
    pid = ended.si_pid if ended is not None else 0
    try:
        if not pid:
            with open("/proc/thread-self/children") as file:
                pid = int(file.read().split()[0])
        with open(f"/proc/{pid}/comm") as file:
            return f"{file.read().strip()!r}"
    except (OSError, IndexError):
        return "process"


def _describe() -> None:
    for name, module in sorted(sys.modules.items()):
        for attribute, value in vars(module).items():
            if type(value) in (int, float, str, bytes, tuple, list, dict, set) and not attribute.startswith("__"):
                sys.stderr.write(f"{name}.{attribute} = {value!r:.200}\n")


def _forget_the_build() -> bytes:
    """Drop all that tells of it; return where in the archive the modules are that have not been loaded."""
    for name in [name for name in sys.modules if name.endswith(".warm_up")]:  # no launch needs them
        del sys.modules[name]
        parent, _, own = name.rpartition(".")
        delattr(sys.modules[parent], own)
    os.environ._data.clear()  # type: ignore[attr-defined]
    sys.argv[:] = sys.orig_argv[:] = []
    sys.path[:] = []
    sys.path_importer_cache.clear()
    sys.executable = sys._base_executable = ""  # type: ignore[attr-defined]
    for name in ("_MEIPASS", "_pyinstaller_pyz", "_original_argv"):
        sys.__dict__.pop(name, None)
    main = sys.modules["__main__"]
    main.__dict__.pop("_pyi_main_co", None)
    main.__file__ = "/" + os.path.basename(main.__file__ or "")
    if "threading" in sys.modules:
        sys.modules["threading"].main_thread()._native_id = None
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].__dict__.update({"_name_sequence": None, "tempdir": None})
    # What these take from the clock and the kernel when they are imported.
    if "random" in sys.modules:
        sys.modules["random"].seed(0)  # a start seeds it anew, as the child of a fork does
    if "logging" in sys.modules:
        sys.modules["logging"].__dict__["_startTime"] = 0
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = b""
    (finder,) = (each for each in sys.meta_path if hasattr(each, "settle"))  # build/spec/boot.py
    return bytes(finder.settle())


def _look_around(words: list[str]) -> None:
    """Read what Python reads of its surroundings when it starts: the command line, the program, stdio, time zone."""
    sys.argv[:] = words
    sys.orig_argv[:] = words
    try:
        program = os.readlink("/proc/self/exe")
    except OSError:  # no /proc here
        program = words[0] if words else ""
    sys.executable = sys._base_executable = program  # type: ignore[attr-defined]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        try:
            if stream is not None and os.isatty(number) and number:
                stream.reconfigure(line_buffering=True)
            elif not _is_open(number):
                setattr(sys, name, None)
        except ValueError:  # a program that has closed it
            continue
    if "threading" in sys.modules:
        sys.modules["threading"].main_thread()._set_native_id()
    if "time" in sys.modules:
        sys.modules["time"].tzset()
    signals = sys.modules["_signal"]
    if signals.getsignal(signals.SIGINT) == signals.SIG_DFL:
        signals.signal(signals.SIGINT, signals.default_int_handler)
    if "logging" in sys.modules:
        sys.modules["logging"].__dict__["_startTime"] = sys.modules["time"].time_ns()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
