"""For PyInstaller under the static Python: it imports ctypes.util to look libraries up, and there is no ctypes here.

Only the process that freezes sees this, not what it freezes: modules are looked up by files, and Python's own is found.
"""

import sys
import types

for name in ("ctypes", "ctypes.util"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["ctypes"].util = sys.modules["ctypes.util"]  # type: ignore[attr-defined]
sys.modules["ctypes.util"].find_library = lambda _name: None  # type: ignore[attr-defined]
