"""What a frozen shim runs first, in place of PyInstaller's own bootstrap: modules come from the binary's archive.

Lean, as every launch waits for it: one finder that looks names up, where PyInstaller's walks paths and loads ctypes.
It reads /proc/self/exe, which stays the file that was started: a module that is imported late, after an upgrade has
put another binary in its place, is still the right one.  Extension modules are in it too (build/onefile/embed.c), or
else they are unpacked files, found as ever.
"""

_PLACES: dict[str, str] = {}  # of the extension modules that are not unpacked: freezer.py fills this in


def _boot() -> None:
    import sys
    from _frozen_importlib import ModuleSpec
    from _frozen_importlib_external import ExtensionFileLoader
    from marshal import loads
    from os import O_RDONLY, close, open, pread

    _, _, start = sys._pyinstaller_pyz.rpartition("?")  # the bootloader's: the binary, and where in it
    base = int(start)
    unpacked = sys._MEIPASS + "/"
    # Then there is no such folder, and no other may be taken for it.
    if _PLACES or "_shim_image" in sys.builtin_module_names:
        unpacked = "/dev/null/"
        sys.path[:] = []
        del sys._MEIPASS

    def read(offset: int, size: int) -> bytes:
        try:
            fd = open("/proc/self/exe", O_RDONLY)
        except FileNotFoundError:  # no /proc here
            fd = open(sys.executable, O_RDONLY)
        try:
            return pread(fd, size, base + offset)
        finally:
            close(fd)

    def inflate(data: bytes) -> bytes:
        blocks, at, is_last = [], 2, 0
        while not is_last:
            is_last, start = data[at], at + 5
            if is_last > 1:  # not all of it is stored as it was, which is what build.py asks for
                from zlib import decompress

                return decompress(data)
            at = start + int.from_bytes(data[at + 1 : at + 3], "little")
            blocks.append(data[start:at])
        return b"".join(blocks)  # RFC 1950 and 1951

    # b"PYZ\0", Python's magic number, the offset of the contents: [(name, (kind, offset, size))], some 50 bytes each.
    contents = dict(loads(read(int.from_bytes(read(8, 4), "big"), 256 << 10)))  # noqa: S302  (our own archive)
    package, namespace = 1, 3

    class Finder:
        """Finds and loads the archive's modules; importlib.abc says what the methods mean."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name not in contents:
                library = _PLACES.get(name)
                return library and ModuleSpec(name, ExtensionFileLoader(name, library), origin=library)
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
        def create_module(spec: object) -> None:
            return None

        @staticmethod
        def settle() -> bytes:
            """Forget the modules that are loaded, and expect the others one behind the other, as image.py puts them.

            Return their old places: offset and size, eight bytes each.
            """
            places, at = b"", 0
            for name in sorted(contents):
                kind, offset, size = contents.pop(name)
                if name not in sys.modules:
                    contents[name] = kind, at, size
                    places += offset.to_bytes(8, "little") + size.to_bytes(8, "little")
                    at += size
            return places

        @staticmethod
        def exec_module(module: object) -> None:
            if module.__name__ not in contents:
                raise ImportError(f"{module.__name__} is in the image, and cannot be loaded again")
            _, offset, size = contents[module.__name__]
            code = loads(inflate(read(offset, size)))  # noqa: S302  (as above)
            exec(_share(code), module.__dict__)  # noqa: S102

    sys.meta_path.insert(-1, Finder)  # after what is compiled into the interpreter, before the search of folders
    sys.frozen = True


def _share(code: object) -> object:
    return code


if "_shim_image" in __import__("sys").builtin_module_names:
    from _shim_image import share as _share

_boot()
del _boot
