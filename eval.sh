#!/usr/bin/env bash
# ./eval.sh <attack> <working directory> [--flag value ...]     ./eval.sh alone lists the attacks
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}" || echo "${BASH_SOURCE[0]}")")/setup.sh"
set_up requirements.txt
exec "$PYTHON" "$ROOT/launch.py" eval "$@"
