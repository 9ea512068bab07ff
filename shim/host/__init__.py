"""The floor: libc, mounts, cgroups, processes of this host. The only room with ctypes, sys.platform, /proc and /sys."""
