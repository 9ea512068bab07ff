"""Mount options: the meaning of each word, and the packing of long lists of layers."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import MountError
from shim.host.mount_options import (
    MS_BIND,
    MS_DIRSYNC,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    Options,
    compact_lowerdirs,
    parse_options,
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Options()),
        ("ro", Options(MS_RDONLY)),
        ("ro,rw", Options()),
        ("rw,ro", Options(MS_RDONLY)),
        ("nosuid,nodev,noexec", Options(MS_NOSUID | MS_NODEV | MS_NOEXEC)),
        ("nosuid,nodev,noexec,suid,dev,exec", Options()),
        ("sync,dirsync,mand", Options(MS_SYNCHRONOUS | MS_DIRSYNC | MS_MANDLOCK)),
        ("sync,mand,async,nomand", Options()),
        ("noatime,nodiratime", Options(MS_NOATIME | MS_NODIRATIME)),
        ("noatime,nodiratime,atime,diratime", Options()),
        ("relatime,strictatime", Options(MS_RELATIME | MS_STRICTATIME)),
        ("relatime,strictatime,norelatime,nostrictatime", Options()),
        ("remount,bind", Options(MS_REMOUNT | MS_BIND)),
        ("rbind,ro", Options(MS_BIND | MS_REC | MS_RDONLY)),
        ("defaults", Options()),
        ("rprivate,size=64k,index=off", Options(0, ("rprivate", "size=64k", "index=off"))),
        ("loop,ro,direct-io", Options(MS_RDONLY, ("direct-io",), is_loop=True)),
        ("looped", Options(0, ("looped",))),
    ],
)
def test_parse_options_takes_words_apart(words: str, expected: Options) -> None:
    """Known words are flags, the last one wins, and all others are data in their order."""
    found = parse_options([word for word in words.split(",") if word])

    assert expected == found


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "X-containerd.mkdir.path=/x",
            'internal mount option "X-containerd.mkdir.path=/x" was not consumed by the mount manager',
        ),
        ("uidmap=0:1000:1", 'mount option "uidmap=0:1000:1" is not supported yet'),
        ("gidmap=0:1000:1", 'mount option "gidmap=0:1000:1" is not supported yet'),
    ],
)
def test_parse_options_refuses_what_is_not_for_the_kernel(word: str, expected: str) -> None:
    """An option that would be lost or misread names itself in the error."""
    with pytest.raises(MountError) as caught:
        parse_options(["ro", word])

    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("index=off", "lowerdir=/s/12/fs:/s/1/fs", "upperdir=/s/3/fs"),
            ("/s", ("index=off", "upperdir=/s/3/fs", "lowerdir=12/fs:1/fs")),
        ),
        (("lowerdir=/a/b:/a/b/c",), ("/a", ("lowerdir=b:b/c",))),
        (("lowerdir=/a/b/1:/a/c/1",), ("/a", ("lowerdir=b/1:c/1",))),
        (("lowerdir=/a/b",), None),
        (("lowerdir=/a:/b",), None),
        (("lowerdir=/a/1:/b/1",), None),
        (("lowerdir=a/1:a/2",), None),
        (("lowerdir=/a/1::/a/2",), None),
        (("lowerdir=/a/1/:/a//2",), None),
        ((r"lowerdir=/a/x\:y:/a/2",), None),
        (("upperdir=/a/1",), None),
        ((), None),
    ],
)
def test_compact_lowerdirs_cuts_the_common_folder(
    options: tuple[str, ...], expected: tuple[str, tuple[str, ...]] | None
) -> None:
    """Lowerdirs come last and relative; where that is impossible nothing changes."""
    found = compact_lowerdirs(options)

    assert (expected or ("", options)) == found


NAMES = st.text("abc/", min_size=1, max_size=8)


@given(st.lists(NAMES.map("/".__add__), min_size=1, max_size=6))
def test_compact_lowerdirs_keeps_every_folder(folders: list[str]) -> None:
    """The folder and a relative path together are the folder that there was."""
    parent, (lowerdirs,) = compact_lowerdirs((f"lowerdir={':'.join(folders)}",))
    found = [os.path.join(parent, folder) for folder in lowerdirs.removeprefix("lowerdir=").split(":")]

    assert folders == found
