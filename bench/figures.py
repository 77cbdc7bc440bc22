"""Seconds from a working directory to all its figures, in a separate process.

    python bench/figures.py [directory ...] [--epochs 10000] [--json FILE]

Without a directory: of a made-up training run of the given length with all the keys of a real one. Printed:

    seconds      on the clock, from the start of the process (imports are in it)
    processor    seconds of processor time, which other processes on the machine do not lengthen as much
    kilobytes    of the largest PNG and PDF
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flags as flag_table
from storage import workdir
from support.files import ROOT


def made_up(directory: Path, epochs: int, reach: float = 800, seed: int = 0, **flags) -> Path:
    """Make a training run's working directory with numbers like a real one's: every key, every epoch.

    Args:
      directory: made here.
      epochs: of the run.
      reach: minus log10 of the training loss in the last epoch.
      flags: other than the defaults.

    Returns: directory.
    """
    rng = np.random.default_rng(seed)
    eid = np.arange(1, epochs + 1)
    log_loss = (0.4 - (reach + 0.4) * ((eid - 1) / max(epochs - 1, 1)) ** 0.8) * math.log(10) + rng.normal(
        0, 0.05, epochs
    )
    log_frame = np.concatenate([[math.log(math.log(10))], log_loss[:-1]])
    rho_k = np.sqrt(np.array([8.0, 11.4, 45.2, 4.6])[:, None] ** 2 + 0.2 * np.maximum(-log_loss, 0))
    rho = np.sqrt((rho_k**2).sum(axis=0))
    q_min = -log_loss - math.log(1500) + rng.normal(0, 0.1, epochs)
    acc = np.where(q_min > 0, 1.0, 1 - rng.uniform(0, 0.3, epochs))
    test_acc = np.round(297 * np.minimum(acc, rng.uniform(0.985, 0.995, epochs))) / 297
    attempts = rng.poisson(2.2, epochs) + 1
    numbers = (log_loss, log_frame, acc, test_acc, rho, rho_k, q_min, attempts)
    raw = {e: _info(e, *(column[..., k] for column in numbers), rng) for k, e in enumerate(eid.tolist())}
    flags = flag_table.flatten(
        {"dataset": "digits", "E": epochs, "model": {"description": "CNN"}}
    ) | flag_table.flatten(flags)
    full = flag_table.complete(flags)
    directory.mkdir(parents=True)
    work_dir = workdir.WorkDir(directory)
    work_dir.write_json("flags.json", full)
    data = {"train": 1500, "test": 297, "classes": 10, "crc32": 1}
    work_dir.write_json("about.json", {"experiment": "made-up", "data": data})
    work_dir.write_res({"flags": full, "raw": raw})
    return directory


def _info(e, log_loss, log_frame, acc, test_acc, rho, rho_k, q_min, attempts, rng) -> dict:
    """Return the info of an epoch."""
    stats = {
        "loss": math.exp(log_loss - log_frame),
        "log_loss": float(log_loss),
        "log_frame": float(log_frame),
        "acc": float(acc),
        "test_loss": 0.03,
        "test_acc": float(test_acc),
        "rho": float(rho),
        **{f"rho_{layer}": float(norm) for layer, norm in enumerate(rho_k)},
        "norm_prod": float(rho_k.prod()),
        "rhoL": float(rho**4),
        "q_min": float(q_min),
        "q_max": float(2 * q_min),
        "q_bar_min": float(q_min / rho**4),
        "q_bar2_min": float(q_min / rho_k.prod()),
        **{f"n_supp_{power}": 2**power for power in range(1, 8)},
        "train_time": 0.2,
        "eval_time": 0.05,
        "attempts": int(attempts),
    }
    return {
        "eid": e,
        "lr": float(0.1 / e**0.9 * rng.uniform(0.7, 1.4)),
        "log_frame": float(log_frame),
        "rt_loss": 0.9,
        "stats": stats,
        "time": 0.25 * int(attempts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directories", nargs="*", help="working directories")
    parser.add_argument("--epochs", type=int, default=10_000, help="of the made-up run [10000]")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "figures"
        directories = options.directories or [str(made_up(Path(place) / "run", options.epochs))]
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, str(ROOT / "figures.py"), *directories, "--out", str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {
            "figures": len(list(out.glob("*.png"))),
            "seconds": seconds,
            "processor": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
            "kilobytes": {
                suffix: max(path.stat().st_size for path in out.glob(f"*.{suffix}")) / 1000
                for suffix in ("png", "pdf")
            },
        }
    print(
        f"{found['figures']} figures as PNG and PDF: {found['seconds']:.2f} s, "
        f"{found['processor']:.2f} s of processor time; the largest: "
        + ", ".join(f"{suffix} {size:.0f} kB" for suffix, size in found["kilobytes"].items())
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
