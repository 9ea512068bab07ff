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
    IdMaps,
    Options,
    compact_lowerdirs,
    parse_options,
    split_lowerdirs,
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
        ("uidmap=0:1000:1", 'mount option "uidmap=0:1000:1" needs gidmap= too'),
        ("gidmap=0:1000:1", 'mount option "gidmap=0:1000:1" needs uidmap= too'),
    ],
)
def test_parse_options_refuses_what_is_not_for_the_kernel(word: str, expected: str) -> None:
    """An option that would be lost or misread names itself in the error."""
    with pytest.raises(MountError) as caught:
        parse_options(["ro", word])

    assert expected == str(caught.value)


@pytest.mark.parametrize("bad", ["", "0:1000", "0:1000:1:1", "a:1000:1", "0:-1:1", "0:1000:1,", "0: 1:1", "0:1000:²"])
@pytest.mark.parametrize("kind", ["uidmap", "gidmap"])
def test_parse_options_names_the_piece_of_a_map_that_is_none(kind: str, bad: str) -> None:
    """A root file system whose owners are wrong is worse than none."""
    maps = {"uidmap": "0:1000:1", "gidmap": "0:1000:1", kind: bad}
    with pytest.raises(MountError) as caught:
        parse_options([f"{name}={text}" for name, text in maps.items()])

    assert str(caught.value).startswith(f'mount option "{kind}={bad}": "')
    assert str(caught.value).endswith('" is not CONTAINER-ID:HOST-ID:SIZE')


def test_parse_options_reads_the_maps_of_ids() -> None:
    """As containerd's snapshotters write them: any number of ranges, in their order."""
    found = parse_options(["ro", "gidmap=0:5:10", "uidmap=0:666:1000,1000:6666:64536", "index=off"])
    maps = IdMaps(uids=((0, 666, 1000), (1000, 6666, 64536)), gids=((0, 5, 10),))

    assert Options(MS_RDONLY, ("index=off",), id_maps=maps) == found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("a", "lowerdir=/s/12/fs:/s/1/fs", "b"), ("/s", ("12/fs", "1/fs"), ("a", "b"))),
        (("lowerdir=/s/12/fs",), ("/s/12", ("fs",), ())),
        (("lowerdir=/s",), ("", (), ("lowerdir=/s",))),
        (("lowerdir=/s/1:t/1",), ("", (), ("lowerdir=/s/1:t/1",))),
        (("lowerdir=/s/\\:/x", "b"), ("", (), ("lowerdir=/s/\\:/x", "b"))),
        (("upperdir=/s/1",), ("", (), ("upperdir=/s/1",))),
    ],
)
def test_split_lowerdirs_finds_the_folder_of_all(
    options: tuple[str, ...], expected: tuple[str, tuple[str, ...], tuple[str, ...]]
) -> None:
    """Or says that there is none to speak of."""
    assert expected == split_lowerdirs(options)


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
