"""Units of work on the workers of a Dask cluster: this machine's cores or GPUs, or many machines.

The same results as `execution.Serial`'s, bit for bit, with the same threads and parts. A worker works on one unit at
a time. It keeps a Context for each task (`spec_of`), and gets published weights from the driver.

Dask is an optional package (requirements-cluster.txt).
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
import uuid
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from context import Context
from errors import Stopped, UserError
from execution import Unit
from files import read_bytes
from results import ROOT
from screen import Throttle, Uncounted, log

PATHS = ("data_dir", "load_dir", "random_labels", "resume", "logs_dir", "dataset")  # flags that may hold a path
CONNECT = 10.0  # seconds in which a scheduler must answer
START = 30.0  # seconds in which a scheduler and its first worker must be there
PATIENCE = 5.0  # seconds that a scheduler may not answer
LOOK = 0.2  # seconds between two looks at signals and workers, while a unit is waited for
MALLOC = {  # Dask's own settings give memory back at every step: TensorFlow then takes up to 1.9 times the time
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
HERE = {"host": "127.0.0.1"}  # who can connect to a scheduler can run code on its workers
QUIET = ("distributed", "distributed.scheduler", "distributed.nanny", "distributed.client", "distributed.core")
SETTINGS = {
    "distributed.scheduler.allowed-failures": 20,
    "distributed.scheduler.worker-ttl": "15 minutes",  # a long turn of a graph lets a worker say nothing
    "distributed.nanny.pre-spawn-environ": MALLOC | {"DASK_LOGGING__DISTRIBUTED": "critical"},
    **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")},
    "distributed.admin.large-graph-warning-threshold": "1GB",
}
KEPT = 3  # Contexts that a worker keeps


def require_dask() -> Any:
    """The package distributed. Raises: UserError where it is not installed."""
    try:
        import distributed
    except ImportError:
        raise UserError(
            "--cluster needs Dask, which is not installed: pip install -r requirements-cluster.txt"
        ) from None
    return distributed


# In the driver


def local_workers(n: int, threads: int, gpus: list[str]) -> list[dict[str, str]]:
    """The environment of each of n workers of this machine: its share of the cores, and one of the GPUs, in turn.

    Args:
      threads: for a worker. gpus: the ids that CUDA knows; none: the workers see no GPU.
    """
    blas = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return [blas | MALLOC | {"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)] if gpus else ""} for k in range(n)]


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show to this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    from device import import_tensorflow

    return [str(k) for k in range(len(import_tensorflow().config.list_physical_devices("GPU")))]


class Cluster:
    """A connection to workers. Use it in `with`.

    Args:
      wanted: a number of workers on this machine; 'tcp://host:port' of a scheduler; or a scheduler file.
      threads: with which each worker computes. gpu: below 0: no worker uses a GPU.

    Attributes:
      n: how many workers there were at the last look, about a second ago.

    Raises: UserError for an address where nobody listens, or workers that cannot work with this program.
    """

    def __init__(self, wanted: int | str, threads: int, gpu: int = 0):
        require_dask()
        self.wanted, self.threads, self.gpu = wanted, threads, gpu
        self._id = uuid.uuid4().hex
        self._look_at_workers = Throttle(1.0)
        self._had: set[str] = set()  # workers at the last look
        self._silent_since: float | None = None

    def __enter__(self) -> "Cluster":
        import dask
        import distributed

        dask.config.set(SETTINGS | {"distributed.comm.timeouts.connect": f"{CONNECT}s"})
        for name in QUIET:  # what matters is said by this program
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._local = None
        try:
            if isinstance(self.wanted, int):
                self._local = self._start_local(self.wanted)
                self.client = distributed.Client(self._local)
            else:
                self.client = distributed.Client(self._address(), timeout=CONNECT)
                self._wait_for_workers()
            self._check(self._workers())
        except (OSError, TimeoutError, ValueError) as error:
            self.close()
            what = str(error).split("\n")[0] or type(error).__name__
            raise UserError(
                f"--cluster {self.wanted}: no scheduler answers there ({what}); start one, or give a number"
            ) from None
        except BaseException:
            self.close()
            raise
        log.info("cluster: %s; dashboard: %s", self.said(), self.client.dashboard_link or "none")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _address(self) -> str:
        """The scheduler's. Raises: UserError for a file that is no scheduler file."""
        if "://" in str(self.wanted):
            return str(self.wanted)
        path, end = Path(str(self.wanted)), time.monotonic() + START
        while not path.exists() and time.monotonic() < end:  # a job script starts all at once
            time.sleep(LOOK)
        try:
            return str(json.loads(read_bytes(path))["address"])
        except FileNotFoundError:
            raise UserError(f"--cluster {path}: no such file; start dask scheduler --scheduler-file {path}") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--cluster {path}: not a scheduler file, as `dask scheduler` writes one") from None

    def _start_local(self, n: int) -> Any:
        import distributed

        gpus = visible_gpus() if self.gpu >= 0 else []
        workers = {
            k: {"cls": distributed.Nanny, "options": {"nthreads": 1, "memory_limit": 0, "env": env, "name": k} | HERE}
            for k, env in enumerate(local_workers(n, self.threads, gpus))
        }
        scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": "127.0.0.1:8787"} | HERE}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the dashboard's usual port is taken: it takes another
            return distributed.SpecCluster(workers=workers, scheduler=scheduler)

    def close(self) -> None:
        """End the workers that were started here, and the connection. Nothing that was asked for goes on."""
        client = getattr(self, "client", None)
        if client is not None:
            self._tell_workers(None)
            with contextlib.suppress(Exception):  # it is gone already
                client.close(timeout=5)
        if self._local is not None:
            self._local.close(timeout=10)
            self._local = None

    @property
    def n(self) -> int:
        return len(self._had)  # not asked for anew: that would take milliseconds

    def _workers(self) -> set[str]:
        return set(self.client.scheduler_info(n_workers=-1).get("workers", ()))

    def said(self) -> str:
        """How many workers of what kind, in words."""
        kind = "of this machine" if isinstance(self.wanted, int) else f"of {self.wanted}"
        workers, threads = (
            f"{n} {what}{'s' * (n > 1)}" for n, what in ((self.n, "worker"), (self.threads, "thread"))
        )
        return f"{workers} {kind}, {threads} each"

    def _check(self, workers: set[str]) -> None:
        """Raises: UserError for a worker that cannot give the same results as this process."""
        here = facts(str(ROOT))
        for address, there in self.client.run(_facts_by_value(), str(ROOT), workers=sorted(workers)).items():
            for what, value in here.items():
                if there.get(what) != value:
                    raise UserError(
                        f"--cluster: the worker {address} has {what} {there.get(what)}, here it is {value}; "
                        "give all the same, and restart the worker"
                    )
        for address, count in self.client.nthreads().items():
            if count != 1:
                raise UserError(
                    f"--cluster: the worker {address} takes {count} units at a time; start it with --nthreads 1 "
                    "(--threads of the run says on how many threads it computes)"
                )
        self._had |= workers

    def _wait_for_workers(self) -> None:
        end = time.monotonic() + START
        while not self._workers():
            if time.monotonic() > end:
                raise UserError(f"--cluster {self.wanted}: the scheduler has no worker; start some, and try again")
            time.sleep(LOOK)

    # The interface of `execution.Serial`

    def executor(self, context: Context, priority: int = 0) -> "Remote":
        """An executor for the units of a task. Those of a higher priority go first."""
        return Remote(self, context, priority)

    # What its executors need

    def _tell_workers(self, keys: list | None) -> None:
        """Cancel running units: those with these keys, or all of this driver."""
        if self.client.status == "running":
            with contextlib.suppress(Exception):  # a worker that is gone needs no telling
                self.client.run(_cancel, self._id, keys, wait=False)

    def check_alive(self) -> None:
        """Say so when workers went or came. Raises: UserError when the scheduler is gone."""
        if self.client.status == "running":
            self._silent_since = None
        else:
            self._silent_since = self._silent_since or time.monotonic()
            if self.client.status != "connecting" or time.monotonic() - self._silent_since > PATIENCE:
                raise UserError(
                    f"--cluster {self.wanted}: the scheduler is gone; what is done is saved: go on with --resume"
                )
        if self._silent_since is None and self._look_at_workers():
            have = self._workers()
            for address in self._had - have:
                log.info("note: the worker %s is gone; its unit goes to another one", address)
            self._had &= have
            if have - self._had:
                with contextlib.suppress(OSError):  # it is gone again
                    self._check(have - self._had)


class Remote:
    """Works on the units of one task on a cluster; as `execution.Serial`.

    Args:
      context: the task's. Workers make their own from its flags.
    """

    def __init__(self, cluster: Cluster, context: Context, priority: int):
        self.cluster, self.context, self.priority = cluster, context, priority
        self._spec = spec_of(context, cluster)
        self._weights: dict[str, list[np.ndarray]] = {}
        self._pickled = pickle.dumps(self._weights)

    def publish(self, name: str, weights: Any) -> None:
        """Make weights known to units by a name. They go to a worker with each unit: so none can be lost."""
        self._weights[name] = [np.asarray(w) for w in weights]
        self._pickled = pickle.dumps(self._weights)

    def run(self, units: Iterable[Unit], done: Callable[[Unit, Any], bool | None], ticker: Uncounted) -> None:
        """As `execution.Serial.run`. At most 2 units a worker are not done. Raises also: UserError."""
        waiting: deque[tuple[Unit, Any]] = deque()
        units, over = iter(units), False
        try:
            while True:
                while not over and len(waiting) < 2 * max(self.cluster.n, 1):
                    unit = next(units, None)
                    over = unit is None
                    if unit is not None:
                        waiting.append((unit, self._submit(unit)))
                if not waiting:
                    return
                unit, future = waiting[0]
                result = self._result(unit, future, waiting, ticker)
                waiting.popleft()
                ticker.advance(unit.size)
                if done(unit, result):
                    return
                ticker.stop_if_asked()
        finally:
            self._cancel(waiting)

    def _submit(self, unit: Unit) -> Any:
        return self.cluster.client.submit(
            _work_by_value(), str(ROOT), pickle.dumps((self._spec, unit, self.cluster._id)), self._pickled,
            key=f"{unit.work.__module__}.{unit.work.__name__}-{'-'.join(map(str, unit.key))}-{uuid.uuid4().hex[:8]}",
            priority=self.priority, pure=False,
        )  # fmt: skip

    def _result(self, unit: Unit, future: Any, waiting: deque, ticker: Uncounted) -> Any:
        """The result of the first unit; all that were lost with a worker are submitted again."""
        from distributed import CancelledError, KilledWorker

        while True:
            arrived = threading.Event()
            future.add_done_callback(lambda _, arrived=arrived: arrived.set())
            while not arrived.wait(LOOK) and future.status == "pending":
                ticker.stop_if_asked()
                self.cluster.check_alive()
            if future.status == "error":
                error = future.exception()
                if isinstance(error, KilledWorker):
                    raise UserError(f"--cluster: a unit ended its worker again and again ({error})")
                raise error
            try:
                found = future.result(timeout=30)
                if not isinstance(found, str) or found != CANCELLED:
                    return found
            except (CancelledError, TimeoutError, OSError) as error:  # the result died with its worker
                log.debug("%s: %s", unit.key, error)
            self.cluster.check_alive()
            ticker.stop_if_asked()
            for k, (other, old) in enumerate(waiting):
                if old.status in ("cancelled", "lost") or old is future:
                    waiting[k] = other, self._submit(other)
            future = waiting[0][1]

    def _cancel(self, waiting: deque) -> None:
        keys = [unit.key for unit, future in waiting if future.status == "pending"]
        for _, future in waiting:
            with contextlib.suppress(Exception):  # the scheduler is gone
                future.cancel()
        if keys:
            self.cluster._tell_workers(keys)


def spec_of(context: Context, cluster: Cluster) -> bytes:
    """What a worker makes a Context of: flags, name, the data's CRC. Equal for all units of a task."""
    flags = context.flags
    for name in PATHS:
        value = flags.get(name)
        if isinstance(value, str) and Path(value).exists():
            flags[name] = str(Path(value).resolve())
    if flags["data_dir"] is None and os.environ.get("DATA_DIR"):
        flags["data_dir"] = str(Path(os.environ["DATA_DIR"]).resolve())
    flags |= {"cluster": None, "speculate": False, "resume": None}
    flags |= {"threads": cluster.threads, "parts": context.parts, "gpu": min(cluster.gpu, 0)}
    return pickle.dumps({"flags": flags, "name": context.name, "crc": context.fingerprint})


# What both sides compare


def facts(root: str) -> dict[str, str]:
    """What must be the same in driver and workers: this program's sources and the packages that compute."""
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*.py")):
        part = path.relative_to(root).parts
        if part[0] not in ("tests", "bench", "docs", "notebooks", ".venv", "logs"):
            digest.update("/".join(part).encode() + path.read_bytes())
    found = {"program": digest.hexdigest()[:12], "Python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("tensorflow", "numpy", "distributed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _facts_by_value() -> Callable[[str], dict[str, str]]:
    """`facts` as a function that a worker can run before it can import this program."""

    def there(root: str) -> dict[str, str]:
        import importlib
        import sys
        from pathlib import Path

        if not (Path(root) / "cluster.py").is_file():
            return {"program": f"not at {root}"}
        if root not in sys.path:
            sys.path.insert(0, root)
        module = importlib.import_module("cluster")
        module.prepare()
        return module.facts(root)

    return there


def _work_by_value() -> Callable:
    """`work_on` as a function that a scheduler can read without this program."""

    def there(root: str, content: bytes, published: bytes) -> Any:
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        from cluster import work_on

        spec, unit, driver = pickle.loads(content)
        return work_on(spec, unit, driver, pickle.loads(published))

    return there


# In a worker

CANCELLED = "cancelled"  # the result of a unit that was ended before its time
_contexts: "OrderedDict[bytes, Context]" = OrderedDict()
_now: tuple[str, tuple] | None = None  # driver and key of the unit under way
_cancelled: set[tuple[str, tuple | None]] = set()


def prepare() -> None:
    """Ready a worker: runs write their own logs; Ctrl-C in the driver's terminal is the driver's to answer."""
    log.setLevel("INFO")
    log.propagate = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


async def _cancel(driver: str, keys: list | None) -> None:
    """End the units of a driver that are under way: those with these keys, or all."""
    if _now is not None and _now[0] == driver and (keys is None or _now[1] in map(tuple, keys)):
        _cancelled.add(_now)


def _stop_if_cancelled() -> None:
    if _now in _cancelled:
        raise Stopped(signal.SIGTERM)


def work_on(spec: bytes, unit: Unit, driver: str, published: dict[str, Any]) -> Any:
    """A unit's result; runs in a worker."""
    global _now
    _now = driver, tuple(unit.key)
    _cancelled.discard(_now)
    try:
        context = _context(spec)
        context.published = published
        return unit.work(context, unit.args, lambda fraction: _stop_if_cancelled())
    except Stopped:
        return CANCELLED
    except UserError as error:
        from distributed import get_worker

        raise UserError(f"the worker {get_worker().address}: {error}") from None
    finally:
        _cancelled.discard(_now)
        _now = None


def _context(spec: bytes) -> Context:
    """The Context of a spec, kept for the next unit."""
    if spec not in _contexts:
        made = pickle.loads(spec)
        context = Context(made["flags"], made["name"], _stop_if_cancelled)
        if context.fingerprint != made["crc"]:
            raise UserError(f"has other data under the name {context.f.dataset} than the driver; give all the same")
        _contexts[spec] = context
        while len(_contexts) > KEPT:
            _contexts.popitem(last=False)
    _contexts.move_to_end(spec)
    return _contexts[spec]
