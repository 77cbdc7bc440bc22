"""Export trained networks.

    python export.py <working directory> --to keras|saved_model|onnx|npz [--eid n|last|all] [--out FILE]

The logits of each export are compared with the program's own on the whole test set before it gets its name.
docs/export.md shows how to use it in each tool.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from exchange.exporting import FORMS, export
from flags import values
from flags.command_line import Parser, exit_status, refuse_empty
from support.errors import UserError


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status: 0; 2 for a user's mistake, 130 for Ctrl-C."""
    parser = Parser(prog="python export.py", description="Export trained networks.", allow_abbrev=False)
    parser.add_argument("directory", metavar="DIRECTORY", help="a training run's working directory")
    parser.add_argument("--to", required=True, metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--eid", default="last", help="the epochs: last, all, n or n,n,n [last]")
    parser.add_argument("--out", metavar="FILE", help="where to [export/eid-<epoch> in the directory]")
    parser.add_argument("--data_dir", metavar="DIR", help="where the run's data is now")
    parser.add_argument("--dataset", metavar="FILE", help="where the run's .npz is now")
    parser.add_argument("--random_labels", metavar="FILE", help="where its labels are now")

    def answer() -> None:
        options = parser.parse_args(argv)
        moved = {name: getattr(options, name) for name in ("data_dir", "dataset", "random_labels")}
        refuse_empty(options.directory, options.out, *moved.values())
        try:
            eid = values.epochs(values.from_text(options.eid))
        except values.Bad as error:
            raise UserError(f"--eid {options.eid}: expected {error}") from None
        export(options.directory, options.to, eid, options.out, **moved)

    return exit_status(answer, "files that were written are complete")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
