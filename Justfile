# Run through ./just, which brings the environment.  Recipes only name commands; what those do is their own business.

set positional-arguments

[private]
default:
    @just --list --unsorted

# show the shim under a private containerd, from build to clean-up
demo *ARGS:
    @python -m shim.testing.demo "$@"

# build, then all tests: unit, then integration (arguments are pytest's; --containerd=1.6|1.7|2.1|all)
test *ARGS:
    @packaging/system-packages test
    python build/spec/build.py
    python build/spec/build.py pyrunc --form static
    python build/spec/build.py pyrunc --form onefile
    python -m pytest "$@"

# everything that needs no containerd: format, lint, types, layers, unit tests, generated code
check: check-format lint types layers unit check-gen

# unit tests alone
unit *ARGS:
    python -m pytest --ignore=tests/integration "$@"

# is the code formatted
check-format:
    ruff format --check .

# ruff's rules
lint:
    ruff check .

# mypy, strict, and pyright for generated code
types:
    mypy
    pyright

# who imports whom, and what the daemon may load
layers:
    python -m pytest -q tests/test_layers.py tests/test_import_budget.py

# does generated code still match its .proto files
check-gen:
    python protos/generate.py --check

# format, and fix what ruff can fix
fmt:
    ruff check --fix-only .
    ruff format .

# regenerate shim/api and tests/protos from .proto files
gen:
    python protos/generate.py

# the API reference, into .work/docs
docs:
    @python -c 'import pdoc' 2>&- || python -m pip install -q --group docs
    python docs/reference.py

# freeze a shim into dist/: pyrunc, skeleton or skeleton-async (--form image|static|onefile, --arch amd64|arm64, --force)
build NAME="pyrunc" *ARGS:
    @[ $# -gt 0 ] || set -- pyrunc; python build/spec/build.py "$@"

# freeze a shim of your own, a Python script, into dist/containerd-shim-NAME-v1 (arguments as of build)
freeze NAME SCRIPT *ARGS:
    @name=$1 script=$2; shift 2; python build/spec/build.py "$name" --script "$script" "$@"

# the shim for arm64: build it, and run it by an emulator (arguments are pytest's)
arm64 *ARGS:
    @packaging/system-packages arm64
    python build/spec/build.py pyrunc --arch arm64
    python build/spec/build.py emulated --script tests/launch/emulated_shim.py --arch arm64
    python build/spec/build.py checks --script tests/launch/frozen/checks.py --arch arm64
    python -m pytest -m arm64 tests/launch "$@"

# renew the list of functions that lie side by side in a shim, after CPython's version has changed
order:
    @packaging/system-packages test
    python build/spec/order.py

# feed hostile bytes to the ttrpc core (--inputs N --seed S --target NAME --engine random|atheris)
fuzz *ARGS:
    @case " $* " in *atheris*) python -c 'import atheris' 2>&- || python -m pip install -q --group fuzz ;; esac
    @nice -n 19 python -m tests.fuzz "$@"

# our ttrpc against the published Go module and Rust crate, every pairing (--require go,rust; --client, --server, --case)
interop *ARGS:
    python -m tests.interop "$@"

# kill the shim, runc, the logger and containerd at every step (--rounds N --containerd 2.1; --go for Go's shim)
faults *ARGS:
    @packaging/system-packages demo
    python build/spec/build.py pyrunc
    python -m tests.faults "$@"

# run thousands of containers and execs, ours and Go's (--containers N --execs N --containerd 2.1)
soak *ARGS:
    @packaging/system-packages demo
    python build/spec/build.py pyrunc
    python -m tests.soak "$@"

# compare with Go's shim, side by side
bench *ARGS:
    @packaging/system-packages demo
    python build/spec/build.py pyrunc
    python -m tests.bench "$@"

# launch in big numbers, at once, with little of everything, while the binary is replaced (--starts 10000 --at-once 200)
reliability *ARGS:
    @packaging/system-packages test
    python build/spec/build.py pyrunc
    python -m tests.reliability "$@"

# compare ttrpc here with gRPC in Python and with ttrpc in Go
bench-ttrpc *ARGS:
    @python -c 'import grpclib' 2>&- || python -m pip install -q --group bench
    python -m tests.bench_ttrpc "$@"
