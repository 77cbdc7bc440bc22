"""Results of runs, for notebooks and scripts. Nothing in the program imports it, and it loads no TensorFlow.

import results
res = results.load("logs/exper-quick-digits-cnn-loss-based-lr/latest")
res["raw"][300]["stats"]["q_bar_min"]

python results.py <working directory> [--csv FILE]
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from storage.read import (
    check_run,
    choose_eids,
    load,
    load_checkpoint,
    load_weights,
    read_about,
    read_flags,
    read_journal,
    read_res,
    read_summary,
    stored_eids,
)
from storage.table import main, table

__all__ = ["check_run", "choose_eids", "load", "load_checkpoint", "load_weights", "read_about", "read_flags"]
__all__ += ["main", "read_journal", "read_res", "read_summary", "stored_eids", "table"]

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
