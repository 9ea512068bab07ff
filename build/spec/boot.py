"""What a frozen shim runs first, in place of PyInstaller's own start: finds modules in the binary's archive.

Lean, as it is part of every launch: one finder that looks names up, where PyInstaller's walks paths and loads ctypes.
It reads /proc/self/exe, which stays the file that was started: a module imported late, after an upgrade has put
another binary in its place, is still the right one.  Extension modules are files, as PyInstaller has it.
"""


def _boot():  # type: ignore[no-untyped-def]  # annotations would be work for every launch
    import sys
    from _frozen_importlib import ModuleSpec
    from marshal import loads
    from os import O_CLOEXEC, O_RDONLY, close, open, pread
    from os.path import exists
    from zlib import decompress

    file, _, offset = sys._pyinstaller_pyz.rpartition("?")  # where the bootloader found the archive
    file, base = "/proc/self/exe" if exists("/proc/self/exe") else file, int(offset)
    unpacked = sys._MEIPASS + "/"

    def read(offset, size):  # type: ignore[no-untyped-def]
        fd = open(file, O_RDONLY | O_CLOEXEC)
        try:
            return pread(fd, size, base + offset)
        finally:
            close(fd)

    # "PYZ\0", Python's magic number, then where the table of contents begins: name, (kind, offset, size).
    contents = dict(loads(read(int.from_bytes(read(8, 4), "big"), 1 << 20)))
    package, namespace = 1, 3

    class Finder:
        """Finds and loads the modules of the archive; see importlib.abc for what its methods mean."""

        @staticmethod
        def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name not in contents:
                return None
            kind = contents[name][0]
            place = unpacked + name.replace(".", "/")
            spec = ModuleSpec(name, None if kind == namespace else Finder)
            if kind in (package, namespace):
                spec.submodule_search_locations = [place]
            if kind != namespace:
                spec.origin = place + ("/__init__.py" if kind == package else ".py")
                spec.has_location = True
            return spec

        @staticmethod
        def create_module(spec):  # type: ignore[no-untyped-def]
            return None

        @staticmethod
        def exec_module(module):  # type: ignore[no-untyped-def]
            exec(Finder.get_code(module.__name__), module.__dict__)

        @staticmethod
        def get_code(name):  # type: ignore[no-untyped-def]
            _, offset, size = contents[name]
            return loads(decompress(read(offset, size)))

    sys.meta_path.insert(-1, Finder)  # after what is compiled into the interpreter, before the search of folders
    sys.frozen = True


_boot()
del _boot
