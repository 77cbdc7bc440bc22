"""Writes the tables of docs/ that are made from the program: `python docs/generate.py`. A test compares them.

docs/flags.md comes from `flags.table`. The table of recorded numbers in docs/results.md comes from
`training.measures`, between two marker lines.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from catalogue.measures import INFO, key_table
from flags.table import ALIASES, FREE_ON_RESUME, SECTIONS
from flags.values import shown

BEGIN, END = "<!-- begin: python docs/generate.py -->\n", "<!-- end -->\n"

VALUES = """Learning rates: a number, or a scheduler with its arguments: `loss-based-v1` (lr, alpha1, alpha2, eps,
loss0), `aggressive` and `aggressive-v2` (lr, cd), `aggressive-v3` (lr, alpha1, alpha2), `const-lr-and-loss-based-lr`
(lr, alpha1, alpha2, eps). `models/lr_scheduler.py` says what each does.

Descriptions are lists of layers: `['C', channels, [kh, kw]]` convolution, `['P']` 2×2 max pool, `['A']` 2×2
average pool, `['F', units]` fully connected; `['P', [h, w]]` and `['A', [h, w]]` are pools of other sizes. A dict at
the end overrides: `{'act': False}`, `{'bias': True}`, `{'bn': True}`, `{'stride': [h, w]}`, and of a convolution
`{'pad': [top, bottom, left, right]}`."""


def flags_page() -> str:
    """docs/flags.md."""
    lines = [
        "# Flags",
        "",
        "Made by `python docs/generate.py` from `flags/table.py`.",
        "",
        "A flag is given as `--flag value`, `--flag=value`, or `--flag` alone for true. Lists are written `a,b,c` or",
        "as Python literals: `--lr loss-based-v1,0.1,2**(1/5),2**(1/10)`, `--model.description \"[['F', 10]]\"`. A",
        "script's `--help` shows every flag with the script's own value.",
        "",
        f"A resumed run may change only {', '.join(f'`{name}`' for name in FREE_ON_RESUME)}.",
        "",
        "Older names that still work: " + ", ".join(f"`--{old}` for `--{new}`" for old, new in ALIASES.items()) + ".",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}", ""]
        lines += [f"Read by: {', '.join(f'`{task}`' for task in section.tasks)}.", ""]
        lines += ["| flag | default | meaning |", "|---|---|---|"]
        for flag in section.flags:
            default = "" if flag.default is None else f"`{shown(flag.default)}`"
            lines.append(f"| `{flag.name}` | {default} | {flag.help} |")
    lines += ["", VALUES]
    return "\n".join(lines) + "\n"


def measures_table() -> str:
    """The table of what an epoch records."""
    lines = ["| key of `stats` | meaning | unit | recorded |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {meaning} | {unit} | {when} |" for key, meaning, unit, when in key_table()]
    lines += ["", "Besides `stats`, an `info` holds:", "", "| key | meaning | unit |", "|---|---|---|"]
    lines += [f"| `{key}` | {meaning} | {unit} |" for key, (meaning, unit) in INFO.items()]
    lines.append("| `all_rt_loss` | the list of all batch losses, with `--include_all_rt_loss_in_res` | frame |")
    return "\n".join(lines) + "\n"


def with_tables(page: str) -> str:
    """Return a page with its generated part replaced."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + measures_table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    (DOCS / "flags.md").write_text(flags_page())
    results_page = DOCS / "results.md"
    results_page.write_text(with_tables(results_page.read_text()))
