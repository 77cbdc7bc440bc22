"""What ./run.sh and ./eval.sh call: find the script that a name means, or list them, and run it."""

import ast
import runpy
import sys
from pathlib import Path

from results import nearest

ROOT = Path(__file__).resolve().parent
PATTERNS = {"run": ("exper-*.py", "make_*.py", "train_*.py", "measure_*.py"), "eval": ("eval-*.py",)}
KINDS = {"run": "experiment", "eval": "attack"}


def scripts(command: str) -> dict[str, Path]:
    """{name: path} of the scripts that a command runs."""
    paths = (path for pattern in PATTERNS[command] for path in ROOT.glob(pattern))
    return {path.stem: path for path in sorted(paths)}


def listing(command: str) -> str:
    """A line for each script, with its docstring's first line."""
    kind, known = KINDS[command], scripts(command)
    usage = f"usage: ./{command}.sh <{kind}> " + (
        "[--flag value ...]" if command == "run" else "<working directory> [...]"
    )
    lines = [usage, f"       ./{command}.sh <{kind}> --help lists the flags", ""]
    width = max(map(len, known), default=0)
    for name, path in known.items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        lines.append(f"  {name:{width}}  {about}")
    return "\n".join(lines)


def main(command: str, *words: str) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(listing(command))
        return
    name, *rest = words
    known = scripts(command)
    script = known.get(name.removesuffix(".py"))
    if script is None:
        print(
            f"error: no {KINDS[command]} is named {name}{nearest(name, known)} "
            f"(./{command}.sh alone lists them)",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = [str(script), *rest]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
