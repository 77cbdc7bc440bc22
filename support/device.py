"""TensorFlow's import and the device it computes on."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from support.errors import UserError
from support.screen import log


def import_tensorflow() -> Any:
    """Import TensorFlow when it is first needed, so that errors in flags are reported before. Returns the module.

    At its start TensorFlow writes to file descriptor 2, bypassing Python; that is shown only if the import fails. It
    also loads Keras if present, which takes a third of the time (`python -X importtime -c "import tensorflow"`). Only
    exports and downloads need Keras, and import it then, so it is hidden here.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryFile() as chatter, _hidden("keras"):
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
            # Each span, attack and network has graphs of its own, on purpose: TensorFlow warns of many.
            tf.get_logger().setLevel("ERROR")
        except BaseException:
            chatter.seek(0)
            os.write(stderr, chatter.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return tf


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Context manager: a package that is not loaded yet cannot be imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function with `tf.function`, without AutoGraph; also a decorator.

    Loops and branches that depend on tensors are TensorFlow's own ops here. AutoGraph would translate Python
    code in vain before the first step.

    Args:
      function: what to compile; None: returns a decorator.
      options: of `tf.function`.
    """
    import tensorflow as tf

    return tf.function(function, autograph=False, **options)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_pools: list[tuple[int, int]] = []  # (ops at the same time, threads of an op) of this process, once they are set


def set_threads(threads: int, parts: int) -> None:
    """Let `parts` ops run at the same time, each on its share of the threads.

    The number of threads of an op changes the last bits of what it computes. TensorFlow fixes both numbers when it
    first computes anything. A later task of the process that asks for others keeps those, and says so.
    """
    from threadpoolctl import threadpool_limits

    wanted = (min(parts, threads), max(threads // parts, 1)) if parts > 1 else (threads, threads)
    threadpool_limits(threads, "blas")  # NumPy's own, whose count changes last bits, too
    if not _pools:
        tf = import_tensorflow()
        with contextlib.suppress(RuntimeError):  # something has been computed: TensorFlow has its threads, one a core
            if wanted != (cores(), cores()):
                tf.config.threading.set_inter_op_parallelism_threads(wanted[0])
                tf.config.threading.set_intra_op_parallelism_threads(wanted[1])
            _pools.append(wanted)
        if not _pools:
            _pools.append((cores(), cores()))
    if _pools[0] != wanted:
        log.info(
            "note: an earlier task of this process set %d concurrent ops on %d threads each; this task asks for %d "
            "on %d: its last bits may differ from those of a separate process",
            *(*_pools[0], *wanted),
        )


def set_up_device(gpu: int, tf32: bool = False, deterministic: bool = False) -> str:
    """Choose the device for everything that follows; returns its name.

    Args:
      gpu: the GPU's id; -1, or no GPU present, means the CPU.

    Raises: UserError for an id that this machine does not have.
    """
    tf = import_tensorflow()
    gpus = tf.config.list_physical_devices("GPU") if gpu >= 0 else []
    if gpus and gpu >= len(gpus):
        raise UserError(f"--gpu {gpu}: this machine has GPUs 0 to {len(gpus) - 1}; give one of these, or -1")
    tf.config.set_visible_devices(gpus[gpu : gpu + 1], "GPU")
    if gpus:
        tf.config.experimental.set_memory_growth(gpus[gpu], True)
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if gpus:
        return f"GPU {gpu}: {tf.config.experimental.get_device_details(gpus[gpu]).get('device_name', 'unknown')}"
    return "CPU" if gpu < 0 else f"CPU (no GPU here for --gpu {gpu})"
