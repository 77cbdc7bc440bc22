"""Pictures from what experiments have left on the disk. Neither TensorFlow nor Core here.

matplotlib is imported when a picture is drawn.
"""

from pathlib import Path

import numpy as np

SURFACE_CLIP = 3.5
SURFACE_VIEWS = {  # (elevation, azimuth) in degrees, by (data set, random labels); SPEC F3
    ("mnist", False): (60, 225),
    ("mnist", True): (65, 225),
    ("cifar10", False): (50, 225),
    ("cifar10", True): (50, 225),
}


def surface(
    X: np.ndarray, Y: np.ndarray, Z: np.ndarray, path: Path | str, view: tuple[int, int] = (60, 225)
) -> Path:
    """Draw the loss in the plane of three networks as the second paper does (SPEC F3), into a file.

    Args:
      X, Y, Z: [n, n]; Z is the loss. It is clipped at 3.5; a loss that is no number counts as that.
      path: of the picture; its suffix says the format.
      view: elevation and azimuth, degrees.

    Returns: path.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clipped = np.minimum(np.nan_to_num(Z, nan=SURFACE_CLIP, posinf=SURFACE_CLIP), SURFACE_CLIP)
    figure = Figure(figsize=(5, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), projection="3d")
    axes.plot_surface(
        X,
        Y,
        clipped,
        cmap=colormaps["coolwarm"],
        rcount=len(X),
        ccount=len(X),
        linewidth=0,
        antialiased=False,
    )
    axes.view_init(*view)
    axes.set_axis_off()
    figure.savefig(path, dpi=120)
    return Path(path)
