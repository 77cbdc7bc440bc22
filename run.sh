#!/usr/bin/env bash
# ./run.sh <experiment> [--flag value ...]     ./run.sh alone lists the experiments
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}" || echo "${BASH_SOURCE[0]}")")/setup.sh"
set_up requirements.txt
exec "$PYTHON" "$ROOT/launch.py" run "$@"
