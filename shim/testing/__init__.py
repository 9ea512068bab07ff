"""Real and fake counterparts of a shim, for tests, the demo and the benchmarks.

`containerd.Containerd` is a private real containerd, `image` makes an image without a network, `releases` finds
containerd releases, `leftovers` says what was left behind. Nothing here is on a daemon's path.
"""
