#!/usr/bin/env bash
# ./test.sh --soak                 every test, those that take long and the whole campaign against faults too
# ./test.sh [pytest arguments]     formatting, lint, types and the whole test suite
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}" || echo "${BASH_SOURCE[0]}")")/setup.sh"
set_up requirements-test.txt
cd "$ROOT" || exit 2
"$PYTHON" -m ruff format --check . || exit 1
"$PYTHON" -m ruff check . || exit 1
"$PYTHON" -m mypy || exit 1
if [ "$1" = --soak ]; then
    shift
    SOAK=1 exec "$PYTHON" -m pytest -n 0 -s tests "$@"
fi
exec "$PYTHON" -m pytest "$@"
