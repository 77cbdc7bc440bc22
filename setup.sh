# Sourced by run.sh, eval.sh and test.sh with the name of a requirements file.
# Leaves in $PYTHON an interpreter that has exactly what that file pins: the
# active environment when it satisfies the pins, else .venv, which is made or
# brought up to date first (a stamp file tells for which pins it was made).

unset CDPATH # with it, cd prints where it goes
SOURCE=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}")
ROOT=$(cd "$(dirname "$SOURCE")" && pwd)
unset PYTHONSAFEPATH # the scripts import what lies next to them
export PYTHONUTF8=1  # paths are UTF-8, whatever the locale

satisfies() { # <python> <requirements file>
    "$1" - "$2" <<'PY' 2>/dev/null
import pathlib
import sys
from importlib.metadata import version


def check(file):
    for line in file.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            check(file.parent / line[3:].strip())
        elif line:
            name, pin = line.split("==")
            if version(name.split("[")[0]) != pin:
                sys.exit(1)


check(pathlib.Path(sys.argv[1]))
PY
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "set-up: no Python 3.11, 3.12 or 3.13 on the PATH (TensorFlow 2.21 needs one of them): install it and try again" >&2
    return 2
}

pins_of() { # <requirements file name>: itself and what it names with -r
    local file
    cat "$ROOT/$1"
    for file in $(sed -n 's/^-r //p' "$ROOT/$1"); do
        pins_of "$file"
    done
}

set_up() { # <requirements file name>
    local requirements=$ROOT/$1 stamp=$ROOT/.venv/stamp-$1 pins base
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [ -n "$active" ] && [ "$active" != "$ROOT/.venv" ] && satisfies "$active/bin/python" "$requirements"; then
        PYTHON=$active/bin/python
        return
    fi
    PYTHON=$ROOT/.venv/bin/python
    pins=$(pins_of "$1")
    [ "$(cat "$stamp" 2>/dev/null)" = "$pins" ] && [ -x "$PYTHON" ] && return
    base=$(find_python) || exit 2
    (
        # Serialize concurrent set-ups.
        if command -v flock >/dev/null; then
            exec 9>"$ROOT/.setup.lock"
            flock 9
            [ "$(cat "$stamp" 2>/dev/null)" = "$pins" ] && [ -x "$PYTHON" ] && exit 0
        fi
        echo "set-up: installing $1 into .venv (once; a few minutes)" >&2
        if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then # none, or interrupted while it was made
            rm -rf "$ROOT/.venv"
            "$base" -m venv "$ROOT/.venv" || exit 2
        fi
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || exit 2
        # Every file includes requirements.txt, so what needs only that finds it there.
        pins_of requirements.txt >"$ROOT/.venv/stamp-requirements.txt"
        printf '%s\n' "$pins" >"$stamp"
        echo "set-up: done" >&2
    ) || {
        echo "set-up: could not install $1 into .venv (see above); fix that, or activate an environment that has these pins, and try again" >&2
        exit 2
    }
}
