"""The worker's side of a cluster: what runs in the processes that Dask starts (`engine.cluster` is the driver's).

A worker executes one unit at a time. It keeps an `engine.units.Worker` for each task, and receives published weights
from the driver. Two functions reach it by value, before it can import this program.
"""

import hashlib
import pickle
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.context import Context
from engine.units import Unit, Worker
from support.errors import Stopped, UserError
from support.screen import log

KEPT = 3  # tasks whose Context, with data and network, a worker keeps


def facts(root: str) -> dict[str, str]:
    """Return what must be equal in driver and workers: this program's sources and the packages that compute."""
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*.py")):
        part = path.relative_to(root).parts
        if path.is_file() and part[0] not in ("tests", "bench", "docs", "notebooks", ".venv", "logs"):
            digest.update("/".join(part).encode() + path.read_bytes())
    found = {"program": digest.hexdigest()[:12], "Python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("tensorflow", "numpy", "distributed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def facts_by_value() -> Callable[[str], dict[str, str]]:
    """Return `facts` as a function that a worker can run before it can import this program."""

    def there(root: str) -> dict[str, str]:
        import importlib
        import sys
        from pathlib import Path

        if not (Path(root) / "engine" / "cluster_worker.py").is_file():
            return {"program": f"not at {root}"}
        if root not in sys.path:
            sys.path.insert(0, root)
        module = importlib.import_module("engine.cluster_worker")
        module.prepare()
        return module.facts(root)

    return there


def work_by_value() -> Callable:
    """Return `work_on` as a function that a scheduler can read without this program."""

    def there(root: str, content: bytes, published: bytes) -> Any:
        import importlib
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        importlib.import_module("support.device").import_tensorflow()  # before the unit's function imports it
        spec, unit, driver = pickle.loads(content)
        return importlib.import_module("engine.cluster_worker").work_on(spec, unit, driver, pickle.loads(published))

    return there


# In a worker

CANCELLED = "cancelled"  # the result of a unit that was cancelled
_workers: "OrderedDict[tuple[bytes, str], Worker]" = OrderedDict()  # by the spec of a task, and its driver
_now: tuple[str, tuple] | None = None  # driver and key of the running unit
_cancelled: set[tuple[str, tuple | None]] = set()


def prepare() -> None:
    """Prepare a worker: runs write their own logs, and the driver handles Ctrl-C."""
    log.setLevel("INFO")
    log.propagate = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


async def cancel(driver: str, keys: list | None) -> None:
    """Cancel the running units of a driver: those with these keys, or all."""
    if _now is not None and _now[0] == driver and (keys is None or _now[1] in map(tuple, keys)):
        _cancelled.add(_now)


def _stop_if_cancelled(fraction: float) -> None:
    if _now in _cancelled:
        raise Stopped(signal.SIGTERM)


def work_on(spec: bytes, unit: Unit, driver: str, published: dict[Any, Any]) -> Any:
    """Return a unit's result; runs in a worker."""
    global _now
    _now = driver, tuple(unit.key)
    _cancelled.discard(_now)
    try:
        worker = _worker(spec, driver)
        worker.published = published
        worker.context.held = {place: weights for place, weights in published.items() if isinstance(place, tuple)}
        return unit.work(worker, unit.args, _stop_if_cancelled)
    except Stopped:
        return CANCELLED
    except UserError as error:
        from distributed import get_worker

        raise UserError(f"the worker {get_worker().address}: {error}") from None
    finally:
        _cancelled.discard(_now)
        _now = None


def _worker(spec: bytes, driver: str) -> Worker:
    """Return the Worker of a task of a driver, kept for its next unit."""
    key = spec, driver
    if key not in _workers:
        made = pickle.loads(spec)
        context = Context(made["flags"], made["name"], _stop_if_cancelled)
        if context.fingerprint != made["crc"]:
            raise UserError(f"has other data named {context.f.dataset} than the driver; give all the same")
        _workers[key] = Worker(context)
        while len(_workers) > KEPT:
            _workers.popitem(last=False)
    _workers.move_to_end(key)
    return _workers[key]
