"""A stand-in for runc: a shell script with runc's command line, whose containers are plain processes.

A container runs `init.sh` of its bundle, an exec `EXEC.sh`; both get the stdio that runc would pass on.
"""

import os
from pathlib import Path
from typing import Final

SCRIPT: Final = r"""#!/bin/sh
here=${0%/*}
words=$(printf '%s\037' "$@")
printf '%s\n' "$words" >> "$here/calls"
exec 3<&0
while :; do
    case $1 in
    --root) root=$2; shift 2 ;;
    --log) log=$2; shift 2 ;;
    --log-format) shift 2 ;;
    --systemd-cgroup) shift ;;
    *) break ;;
    esac
done
command=$1
shift
while [ $# -gt 1 ]; do
    case $1 in
    --bundle) bundle=$2; shift ;;
    --pid-file) pid_file=$2; shift ;;
    --process) process=$2; shift ;;
    --format | --work-path | --parent-path | --empty-ns) shift ;;
    --image-path) image=$2; shift ;;
    --console-socket) exec 3< /dev/null > /dev/null 2>&1; shift ;;
    --all) all=1 ;;
    --force) force=1 ;;
    -*) ;;
    *) break ;;
    esac
    shift
done
id=$1
state=$root/$id

error() {
    printf '{"level":"error","msg":"%s","time":"now"}\n' "$1" >> "$log"
    echo "$1" >&2
    exit 1
}

is_alive() {
    kill -0 "$1" 2> /dev/null
}

if [ -e "$here/$command.before" ]; then . "$here/$command.before"; fi
pid=
if [ -e "$state/pid" ]; then read -r pid < "$state/pid"; fi
case $command in
create)
    if [ -e "$state" ]; then error "container with given ID already exists"; fi
    mkdir -p "$state"
    (while [ ! -e "$state/started" ]; do sleep 0.005; done; exec sh "$bundle/init.sh") <&3 3<&- &
    echo $! > "$state/pid"
    echo "$bundle" > "$state/bundle"
    printf %s $! > "$pid_file"
    ;;
checkpoint)
    if ! is_alive "$pid"; then error "cannot checkpoint a stopped container"; fi
    mkdir -p "$image"
    cp "$state/bundle" "$image/bundle"
    case $words in *--leave-running*) ;; *) kill -9 "$pid"; rm -r "$state" ;; esac
    ;;
restore)
    if [ ! -e "$image/bundle" ]; then error "no checkpoint in $image"; fi
    mkdir -p "$state"
    : > "$state/started"
    # Not before this shell is gone: it would reap a child that ends at once, and runc does not.
    (while kill -0 $$ 2> /dev/null; do sleep 0.002; done; exec sh "$bundle/init.sh") <&3 3<&- &
    echo $! > "$state/pid"
    echo "$bundle" > "$state/bundle"
    printf %s $! > "$pid_file"
    ;;
start)
    if ! is_alive "$pid"; then error "cannot start a container that has stopped"; fi
    : > "$state/started"
    ;;
exec)
    if ! is_alive "$pid"; then error "cannot exec in a stopped container"; fi
    read -r bundle < "$state/bundle"
    name=${pid_file##*/}
    name=${name%.pid}
    cat "$process" > "$bundle/$name.process"
    # Not before this shell is gone: it would reap a child that ends at once, and runc does not.
    (while kill -0 $$ 2> /dev/null; do sleep 0.002; done; exec sh "$bundle/$name.sh") <&3 3<&- &
    echo $! >> "$state/execs"
    printf %s $! > "$pid_file"
    ;;
kill)
    if [ -n "$all" ]; then
        for each in $pid $(cat "$state/execs" 2> /dev/null); do kill -"$2" "$each" 2> /dev/null; done
        exit 0
    fi
    if [ ! -e "$state" ]; then echo "container does not exist" >&2; exit 1; fi
    if ! is_alive "$pid"; then echo "container not running" >&2; exit 1; fi
    kill -"$2" "$pid"
    ;;
delete)
    if [ ! -e "$state" ]; then
        if [ -n "$force" ]; then exit 0; fi
        error "container does not exist"
    fi
    if is_alive "$pid"; then
        if [ -z "$force" ] && [ -e "$state/started" ]; then error "container is not stopped"; fi
        kill -9 "$pid"
    fi
    rm -r "$state"
    ;;
pause) kill -STOP "$pid" ;;
resume) kill -CONT "$pid" ;;
ps) if is_alive "$pid"; then echo "[$pid]"; else echo null; fi ;;
update) cat > "$state/resources" ;;
features) echo '{"mountOptions":["rro"]}' ;;
*) error "no such command: $command" ;;
esac
if [ -e "$here/$command.after" ]; then . "$here/$command.after"; fi
exit 0
"""


class FakeRunc:
    """The script in a folder of its own, which is to be put on PATH."""

    def __init__(self, folder: Path, name: str = "runc") -> None:
        self.folder = folder
        self.path = str(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / name
        script.write_text(SCRIPT)
        script.chmod(0o755)

    @property
    def search_path(self) -> str:
        """Return a PATH that finds the script first."""
        return f"{self.folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def calls(self) -> list[list[str]]:
        """Return the arguments of every call so far."""
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.split("\037")[:-1] for line in lines]

    def forget(self) -> None:
        """Forget the calls so far."""
        (self.folder / "calls").unlink(missing_ok=True)

    def before(self, command: str, text: str) -> None:
        """Have shell text run before a subcommand acts: it may `error "why"`, print, exit, or wait."""
        (self.folder / f"{command}.before").write_text(f"{text}\n")

    def after(self, command: str, text: str) -> None:
        """Have shell text run after a subcommand has acted."""
        (self.folder / f"{command}.after").write_text(f"{text}\n")

    def behave(self) -> None:
        """Forget all such text."""
        for path in [*self.folder.glob("*.before"), *self.folder.glob("*.after")]:
            path.unlink()
