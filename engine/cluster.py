"""The driver's side of a cluster: this machine's cores or GPUs, or many machines, through Dask.

Results equal those of `engine.serial.Serial`, bit for bit, with the same threads and parts. `engine.cluster_worker`
is the workers' side. Dask is an optional package (requirements-cluster.txt).
"""

import contextlib
import importlib.util
import json
import logging
import os
import pickle
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine import cluster_worker
from engine.context import Context
from engine.serial import Serial
from engine.units import Done, Executor, Unit
from flags.table import PATHS
from support.device import import_tensorflow
from support.errors import UserError
from support.files import ROOT, read_bytes
from support.screen import Progress, Throttle, log

CONNECT = 10.0  # seconds within which a scheduler must answer
START = 30.0  # seconds within which a scheduler and its first worker must start
PATIENCE = 5.0  # seconds of silence that a scheduler is allowed
LOOK = 0.2  # seconds between two checks of signals and workers while waiting for a unit
MALLOC = {  # Dask's own settings return memory at every step: TensorFlow then takes up to 1.9 times as long
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
HERE = {"host": "127.0.0.1"}  # whoever can connect to a scheduler can run code on its workers
QUIET = ("distributed", "distributed.scheduler", "distributed.nanny", "distributed.client", "distributed.core")
SETTINGS = {
    "distributed.scheduler.allowed-failures": 20,
    "distributed.scheduler.worker-ttl": "15 minutes",  # during a long turn of a graph a worker is silent
    "distributed.nanny.pre-spawn-environ": MALLOC | {"DASK_LOGGING__DISTRIBUTED": "critical"},
    **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")},
    "distributed.admin.large-graph-warning-threshold": "1GB",
}


def require_dask() -> Any:
    """Return the package distributed. Raises: UserError where it is not installed."""
    try:
        import distributed
    except ImportError:
        raise UserError(
            "--cluster needs Dask, which is not installed: pip install -r requirements-cluster.txt"
        ) from None
    return distributed


def local_workers(n: int, threads: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return the environment of each of n workers of this machine: its share of the cores, and one GPU each.

    Args:
      threads: per worker. gpus: the ids that CUDA knows, assigned in turn; none: the workers see no GPU.
    """
    blas = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return [blas | MALLOC | {"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)] if gpus else ""} for k in range(n)]


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(k) for k in range(len(import_tensorflow().config.list_physical_devices("GPU")))]


class Cluster:
    """A connection to workers. Use it in `with`.

    Args:
      wanted: a number of workers on this machine; 'tcp://host:port' of a scheduler; or a scheduler file.
      threads: with which each worker computes. gpu: below 0: no worker uses a GPU.

    Attributes:
      n: how many workers there were about a second ago.

    Raises: UserError for an address without a scheduler, or workers that do not match this program.
    """

    def __init__(self, wanted: int | str, threads: int, gpu: int = 0):
        require_dask()
        self.wanted, self.threads, self.gpu = wanted, threads, gpu
        self.id = uuid.uuid4().hex
        self._look_at_workers = Throttle(1.0)
        self._had: set[str] = set()  # workers at the last look
        self._silent_since: float | None = None

    def __enter__(self) -> "Cluster":
        import dask
        import distributed

        dask.config.set(SETTINGS | {"distributed.comm.timeouts.connect": f"{CONNECT}s"})
        for name in QUIET:  # this program reports what matters
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
        dashboard = self.client.dashboard_link if importlib.util.find_spec("bokeh") else "none (it needs bokeh)"
        log.info("cluster: %s; dashboard: %s", self.described(), dashboard or "none")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _address(self) -> str:
        """Return the scheduler's address. Raises: UserError for a file that is not a scheduler file."""
        if "://" in str(self.wanted):
            return str(self.wanted)
        path, end = Path(str(self.wanted)), time.monotonic() + START
        while not path.exists() and time.monotonic() < end:  # a job script starts everything at the same time
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
            warnings.simplefilter("ignore")  # the dashboard's usual port is taken: it uses another
            return distributed.SpecCluster(workers=workers, scheduler=scheduler)

    def close(self) -> None:
        """Stop the workers that were started here, and close the connection. No submitted work continues."""
        client = getattr(self, "client", None)
        if client is not None:
            self.tell_workers(None)
            with contextlib.suppress(Exception):  # it is gone already
                client.close(timeout=5)
        if self._local is not None:
            self._local.close(timeout=10)
            self._local = None

    @property
    def n(self) -> int:
        """How many workers there are; the last known number, since asking takes milliseconds."""
        return len(self._had)

    def _workers(self) -> set[str]:
        return set(self.client.scheduler_info(n_workers=-1).get("workers", ()))

    def described(self) -> str:
        """Return the number and kind of workers, in words."""
        kind = "of this machine" if isinstance(self.wanted, int) else f"of {self.wanted}"
        workers, threads = (
            f"{n} {what}{'s' * (n > 1)}" for n, what in ((self.n, "worker"), (self.threads, "thread"))
        )
        return f"{workers} {kind}, {threads} each"

    def _check(self, workers: set[str]) -> None:
        """Raises: UserError for a worker that cannot give the same results as this process."""
        here = cluster_worker.facts(str(ROOT))
        for address, there in self.client.run(
            cluster_worker.facts_by_value(), str(ROOT), workers=sorted(workers)
        ).items():
            for what, value in here.items():
                if there.get(what) != value:
                    raise UserError(
                        f"--cluster: the worker {address} has {what} {there.get(what)}, the driver has {value}; "
                        "make them equal, and restart the worker"
                    )
        for address, count in self.client.nthreads().items():
            if count != 1:
                raise UserError(
                    f"--cluster: the worker {address} takes {count} units at a time; start it with --nthreads 1 "
                    "(the run's --threads is how many threads compute)"
                )
        self._had |= workers

    def _wait_for_workers(self) -> None:
        end = time.monotonic() + START
        while not self._workers():
            if time.monotonic() > end:
                raise UserError(f"--cluster {self.wanted}: the scheduler has no worker; start some, and try again")
            time.sleep(LOOK)

    def executor(self, context: Context, priority: int = 0) -> "Remote":
        """Return an executor for the units of a task. Those of a higher priority go first."""
        return Remote(self, context, priority)

    def tell_workers(self, keys: list | None) -> None:
        """Cancel running units: those with these keys, or all of this driver."""
        if self.client.status == "running":
            with contextlib.suppress(Exception):  # a lost worker needs no cancelling
                self.client.run(cluster_worker.cancel, self.id, keys, wait=False)

    def check_alive(self) -> None:
        """Log lost workers, and check new ones. Raises: UserError when the scheduler is gone."""
        if self.client.status == "running":
            self._silent_since = None
        else:
            self._silent_since = self._silent_since or time.monotonic()
            if self.client.status != "connecting" or time.monotonic() - self._silent_since > PATIENCE:
                raise UserError(
                    f"--cluster {self.wanted}: the scheduler is gone; finished work is saved: continue with --resume"
                )
        if self._silent_since is None and self._look_at_workers():
            have = self._workers()
            for address in self._had - have:
                log.info("note: the worker %s is gone; its unit is given to another one", address)
            self._had &= have
            if have - self._had:
                with contextlib.suppress(OSError):  # it is gone already
                    self._check(have - self._had)


class Remote:
    """An `Executor` of one task on a cluster.

    Args:
      context: the task's. Workers make their own from its flags.
      priority: units of a higher priority go first.
    """

    def __init__(self, cluster: Cluster, context: Context, priority: int):
        self.cluster, self.context, self.priority = cluster, context, priority
        self._spec = spec_of(context, cluster)
        self._weights: dict[str | tuple[str, int], list[np.ndarray]] = {}
        self._pickled = pickle.dumps(self._weights)

    def publish(self, name: str | tuple[str, int], weights: Any) -> None:
        """Send weights with each unit, so that none can be lost (`Executor.publish`)."""
        self._weights[name] = [np.asarray(w) for w in weights]
        self._pickled = pickle.dumps(self._weights)

    def run(self, units: Iterable[Unit], done: Done, progress: Progress) -> None:
        """Execute units, at most 2 unfinished ones per worker (`Executor.run`). Raises also: UserError."""
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
                result = self._result(unit, future, waiting, progress)
                waiting.popleft()
                progress.advance(unit.size)
                if done(unit, result):
                    return
                progress.check()
        finally:
            self._cancel(waiting)

    def _submit(self, unit: Unit) -> Any:
        return self.cluster.client.submit(
            cluster_worker.work_by_value(), str(ROOT),
            pickle.dumps((self._spec, unit, self.cluster.id)), self._pickled,
            key=f"{unit.work.__module__}.{unit.work.__name__}-{'-'.join(map(str, unit.key))}-{uuid.uuid4().hex[:8]}",
            priority=self.priority, pure=False,
        )  # fmt: skip

    def _result(self, unit: Unit, future: Any, waiting: deque, progress: Progress) -> Any:
        """Return the result of the first unit; units that were lost with a worker are submitted again."""
        from distributed import CancelledError, KilledWorker

        while True:
            arrived = threading.Event()
            future.add_done_callback(lambda _, arrived=arrived: arrived.set())
            while not arrived.wait(LOOK) and future.status == "pending":
                progress.check()
                self.cluster.check_alive()
            if future.status == "error":
                error = future.exception()
                if isinstance(error, KilledWorker):
                    raise UserError(f"--cluster: a unit killed its workers repeatedly ({error})")
                raise error
            try:
                found = future.result(timeout=30)
                if not isinstance(found, str) or found != cluster_worker.CANCELLED:
                    return found
            except (CancelledError, TimeoutError, OSError) as error:  # the result was lost with its worker
                log.debug("%s: %s", unit.key, error)
            self.cluster.check_alive()
            progress.check()
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
            self.cluster.tell_workers(keys)


def spec_of(context: Context, cluster: Cluster) -> bytes:
    """Return what a worker makes a Context from: flags, name, the data's CRC. Equal for all units of a task."""
    flags = context.flags
    for name in PATHS:
        value = flags.get(name)
        if isinstance(value, str) and name not in ("dataset", "random_labels") and Path(value).exists():
            flags[name] = str(Path(value).resolve())
    if flags["data_dir"] is None and os.environ.get("DATA_DIR"):
        flags["data_dir"] = str(Path(os.environ["DATA_DIR"]).resolve())
    flags |= {"cluster": None, "speculate": False, "resume": None}
    flags |= {"threads": cluster.threads, "parts": context.compute.parts, "gpu": min(cluster.gpu, 0)}
    return pickle.dumps({"flags": flags, "name": context.name, "crc": context.fingerprint})


@contextlib.contextmanager
def executor(context: Context, at_once: int = 1, priority: int = 0) -> Iterator[Executor]:
    """Context manager: the executor that the flag `cluster` means.

    Args:
      at_once: of a Serial. priority: of a Remote.
    """
    if context.f.cluster is None:
        yield Serial(context, at_once)
        return
    with Cluster(context.f.cluster, context.compute.threads, context.f.gpu) as cluster:
        yield cluster.executor(context, priority)
