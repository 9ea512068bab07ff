"""The command line, as Go's package flag reads it."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given

from shim.runtime.flags import FlagError, Flags, HelpRequested, parse, usage
from tests import strategies

START = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1".split()
STARTED: dict[str, Any] = {
    "namespace": "default",
    "id": "c1",
    "address": "/run/c.sock",
    "publish_binary": "/usr/bin/containerd",
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Flags()),
        ([*START, "start"], Flags(**STARTED, action="start")),
        ([*START, "-bundle", "/b", "-debug", "delete"], Flags(**STARTED, bundle="/b", debug=True, action="delete")),
        (["-info"], Flags(info=True)),
        (["-v"], Flags(version=True)),
        (["--version"], Flags(version=True)),
        (["-socket", "/s", "-debug-socket", "/d"], Flags(socket="/s", debug_socket="/d")),
        (["--id", "x"], Flags(id="x")),
        (["-id=x"], Flags(id="x")),
        (["--id=x=y"], Flags(id="x=y")),
        (["-id", "-x"], Flags(id="-x")),
        (["-id", ""], Flags(id="")),
        (["-id", "--", "start"], Flags(id="--", action="start")),
        (["-id="], Flags()),
        (["-id", "1", "-id", "2"], Flags(id="2")),
        (["-debug", "-debug=false"], Flags()),
        (["-debug", "true"], Flags(debug=True, action="true")),
        (["-debug", "start", "-id", "x"], Flags(debug=True, action="start", rest=("-id", "x"))),
        (["-", "-id", "x"], Flags(action="-", rest=("-id", "x"))),
        (["--", "-id", "x"], Flags(action="-id", rest=("x",))),
        (["--"], Flags()),
        (["", "start"], Flags(action="", rest=("start",))),
        (["start", "--"], Flags(action="start", rest=("--",))),
        *((["-debug=" + word], Flags(debug=True)) for word in "1 t T true TRUE True".split()),
        *((["-debug", "-debug=" + word], Flags()) for word in "0 f F false FALSE False".split()),
    ],
)
def test_parse_reads_what_go_reads(words: list[str], expected: Flags) -> None:
    """One row for each rule."""
    assert expected == parse(words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-x"], "flag provided but not defined: -x"),
        (["--x=1"], "flag provided but not defined: -x"),
        (["-ID", "x"], "flag provided but not defined: -ID"),
        (["-names", "x"], "flag provided but not defined: -names"),
        (["---id", "x"], "bad flag syntax: ---id"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-id"], "flag needs an argument: -id"),
        (["-debug", "--bundle"], "flag needs an argument: -bundle"),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
        (["-v="], 'invalid boolean value "" for -v: parse error'),
        (["-debug=TrUe"], 'invalid boolean value "TrUe" for -debug: parse error'),
    ],
)
def test_parse_refuses_in_gos_words(words: list[str], expected: str) -> None:
    """They go to stderr."""
    with pytest.raises(FlagError) as caught:
        parse(words)

    assert expected == str(caught.value)


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help", "-h=1"])
def test_parse_hears_a_call_for_help(word: str) -> None:
    """Where a flag may stand; not behind the action."""
    with pytest.raises(HelpRequested):
        parse(["-debug", word, "-nope"])
    assert Flags(action="start", rest=(word,)) == parse(["start", word])


def test_usage_names_every_flag_as_go_prints_it() -> None:
    """In the order of their names."""
    lines = usage("/bin/shim").splitlines()

    assert "Usage of /bin/shim:" == lines[0]
    assert [
        "  -address string",
        "  -bundle string",
        "  -debug",
        "  -debug-socket string",
        "  -id string",
        "  -info",
        "  -namespace string",
        "  -publish-binary string",
        "  -socket string",
        "  -v\tshow the shim version and exit",
        "  -version",
    ] == [line for line in lines if line.startswith("  -")]
    assert 10 == sum(line.startswith("    \t") for line in lines)


def test_daemon_arguments_start_a_daemon_of_the_same_kind() -> None:
    """They name no action and carry debug on."""
    flags = parse([*START, "-debug", "start"])

    assert "-namespace default -id c1 -address /run/c.sock -debug".split() == flags.daemon_arguments()
    assert Flags(namespace="default", id="c1", address="/run/c.sock", debug=True) == parse(flags.daemon_arguments())
    assert "-debug" not in parse(START).daemon_arguments()


def test_with_debug_changes_nothing_else() -> None:
    """containerd 2.3 says by its log level what older ones say by a flag."""
    flags = parse([*START, "start", "rest"])

    assert parse(["-debug", *START, "start", "rest"]) == flags.with_debug()
    assert not flags.debug


def test_flags_are_values() -> None:
    """Equal ones are one in a set, and they show what was said."""
    assert 1 == len({parse(START), parse(START)})
    assert parse(START) != parse(["-v"])
    assert "Flags(id='c1', version=True)" == repr(parse(["-id", "c1", "-v"]))


TRUTH = dict.fromkeys("1 t T true TRUE True".split(), True) | dict.fromkeys("0 f F false FALSE False".split(), False)
BOOLS = {"debug": "debug", "info": "info", "v": "version", "version": "version"}


def read_as_go_does(words: Sequence[str]) -> dict[str, object] | str:
    """Return what Go's FlagSet.Parse would find, or its error; written from its documentation, rule by rule."""
    found: dict[str, object] = {}
    at = 0
    while at < len(words):
        word = words[at]
        if not word.startswith("-") or word == "-":
            break
        at += 1
        if word == "--":
            break
        body = word[1:].removeprefix("-")
        if body == "" or body[0] in "-=":
            return f"bad flag syntax: {word}"
        name, equals, value = body.partition("=")
        if name in ("h", "help"):
            return "help"
        if name in BOOLS:
            if equals and value not in TRUTH:
                return f'invalid boolean value "{value}" for -{name}: parse error'
            found[BOOLS[name]] = TRUTH[value] if equals else True
            continue
        if name not in "namespace id address publish-binary bundle socket debug-socket".split():
            return f"flag provided but not defined: -{name}"
        if not equals:
            if at == len(words):
                return f"flag needs an argument: -{name}"
            value = words[at]
            at += 1
        found[name.replace("-", "_")] = value
    rest = tuple(words[at:])
    return {**found, "action": rest[0] if rest else "", "rest": rest[1:]}


@given(strategies.COMMAND_LINES)
def test_parse_agrees_with_a_reading_of_gos_documentation(words: list[str]) -> None:
    """On any command line, in result and in error."""
    expected = read_as_go_does(words)
    try:
        found: object = parse(words)
    except FlagError as error:
        found = str(error)
    except HelpRequested:
        found = "help"

    assert (Flags(**expected) if isinstance(expected, dict) else expected) == found  # type: ignore[arg-type]
