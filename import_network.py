"""Import a network that was trained elsewhere.

    python import_network.py FILE --dataset D [data flags] [--name N]

FILE is Keras's .keras or .h5, an .onnx, or an .npz of export.py. The working directory that this writes is inspected,
attacked and measured like any run's, as epoch 0. docs/import.md has an example of each.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from flags.command_line import Parser, exit_status, refuse_empty, value_of
from flags.table import BY_NAME, DATA, nest
from support.device import import_tensorflow
from support.errors import UserError

FLAGS = {
    name.removeprefix("model."): name for name in (*DATA, "model.input_mean", "model.input_std", "gpu", "logs_dir")
}


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status: 0; 2 for a user's mistake, 130 for Ctrl-C."""
    parser = Parser(prog="python import_network.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="the network: .keras, .h5, .onnx, .npz")
    parser.add_argument("--name", help="of the working directory's folder [import-<name of the file>]")
    parser.add_argument(
        "--levels", help="the network reads pixels in [0, LEVELS] [255 if it begins by dividing them, else 1]"
    )
    for short, name in FLAGS.items():
        parser.add_argument(f"--{short}", dest=name, metavar="VALUE", help=BY_NAME[name].help.replace("%", "%%"))

    def answer() -> None:
        options = vars(parser.parse_args(argv))
        refuse_empty(options["file"], options["name"])
        words = {name: options[name] for name in FLAGS.values() if options[name] is not None}
        flags = {name: value_of(name, word) for name, word in words.items()}
        levels = options["levels"]
        if levels is not None and (not levels.isdecimal() or not 1 <= int(levels) <= 65535):
            raise UserError(f"--levels {levels}: expected the largest value of a pixel, such as 1 or 255")
        import_tensorflow()  # without its start-up messages
        from exchange.importing import import_network

        import_network(options["file"], nest(flags), options["name"], None if levels is None else int(levels))

    return exit_status(answer, "no working directory was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
