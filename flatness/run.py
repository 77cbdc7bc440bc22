"""The tasks of the flatness experiments (arXiv 1801.02254, section IV), and further measures of stored networks."""

import math
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.labels import draw_random_labels, save_random_labels, with_labels_of
from engine.context import Context
from engine.measurement import checked_networks, measure
from engine.units import Unit
from flatness import curvature, interpolation, plane, radius, sharpness
from flatness.published import published_radius, table_row
from models.margins import log_mean_exp
from storage import read
from storage.run_flags import Place, stored
from support import forms
from support.errors import UserError
from support.files import replace_atomically
from support.screen import log, shown_path

# The forms of what a measurement's journal has of a unit
WALK = {"network": forms.text, "radius": forms.number, "profile": forms.numbers, "end": forms.number}
SHARPNESS = {"network": forms.text, "adaptive": forms.text, "losses": forms.numbers}
SHARPNESS |= dict.fromkeys(("log_loss", "rho", "worst"), forms.number)
CURVATURE = {"network": forms.text, "parameters": forms.number}


def make_random_labels(context: Context) -> Path:
    """Store random labels for the dataset, once. Returns the path of the file."""
    path = context.random_labels_path
    if path.exists():
        with_labels_of(context.natural_dataset, path)  # raises where they do not fit
        log.info("%s exists already and is kept; delete it to draw again", shown_path(path))
        return path
    (_, labels), _ = context.natural_dataset
    drawn = draw_random_labels(labels, context.natural_dataset.n_classes, context.f.seed)
    save_random_labels(path, drawn, context.f.seed, labels)
    changed = 100 * (drawn != labels).mean()
    log.info("%d labels, %.2f%% of them changed, in %s", len(drawn), changed, shown_path(path))
    return path


def measure_radius(context: Context) -> Path:
    """Measure the flatness radius of each network of load_dir (arXiv 1801.02254, table 1). Returns the directory.

    Writes `res`['raw'] = {'networks': {name: {...}}, 'row': {...}}. A network has I (its loss),
    radii, profiles (for each direction the losses at 0, s, 2s, ... up to the radius), ends (the loss
    one step on, or a lower bound of it that is beyond the threshold), mean, norm (of the perturbed
    tensors), mean_by_norm. The row: `flatness.published.table_row`.
    """
    f = context.f
    networks = checked_networks(context)

    def entry(unit: Unit, walk: dict) -> dict:
        named = {"network": unit.args["label"], "direction": unit.args["direction"]}
        log.info(
            "%s, direction %d: I = %.4g, radius %.4g, loss there %.4g",
            *(*named.values(), walk["profile"][0], walk["radius"], walk["profile"][-1]),
        )
        return named | walk

    def finish(walks: list[dict]) -> dict:
        moved = radius.perturbed(context.model.names, f.params)
        found = {}
        for label, place in networks.items():
            weights = context.stored_weights(*place)
            length = radius.norm([w for w, m in zip(weights, moved, strict=True) if m])
            own = [walk for walk in walks if walk["network"] == label]
            found[label] = {"eid": place[1]} | radius.summary(own, length)
            log.info(
                "%s: I(w) = %.4g, radius %.4f, by norm %.4f (norm %.2f)",
                *(label, *(found[label][key] for key in ("I", "mean", "mean_by_norm", "norm"))),
            )
        published = published_radius(stored(f.load_dir), context.flags)
        row = table_row(found, f.dataset, f.params, f.random_labels is not None, published)
        log.info("%s", row["text"])
        return {"networks": found, "row": row}

    return measure(context, networks, directions(context, networks), entry, WALK, finish)


def directions(context: Context, networks: dict[str, Place]) -> list[Unit]:
    """Return the units of a radius: each direction of each network."""
    return [
        Unit(radius.work, (n, k), {"label": label, "number": n, "network": place, "direction": k})
        for n, (label, place) in enumerate(networks.items())
        for k in range(context.f.directions)
    ]


def make_points(context: Context) -> Path:
    """Compute the loss in the plane of the three networks of load_dir (section IV). Returns the directory.

    Writes X.npy, Y.npy, Z.npy (the losses), float64 [grid, grid], and the same in `res`['raw'].
    """
    networks = checked_networks(context)
    if len(networks) != 3:
        raise UserError(
            f"{context.f.load_dir}: a surface goes through three networks; here are {len(networks)} "
            f"({', '.join(networks)})"
        )
    X, Y = interpolation.grid(context.f.grid)
    places = list(networks.values())
    units = [Unit(interpolation.work, (row,), {"row": row, "networks": places}) for row in range(len(X))]

    def entry(unit: Unit, found: dict) -> dict:
        log.info("row %d of %d: losses %s", unit.args["row"] + 1, len(X), spread(np.array(found["losses"])))
        return found

    def finish(rows: list[dict]) -> dict:
        return {"X": X, "Y": Y, "Z": np.array([row["losses"] for row in rows]), "networks": list(networks)}

    path = measure(context, networks, units, entry, {"losses": forms.numbers}, finish)
    raw = read.load(path)["raw"]
    for name in "XYZ":
        replace_atomically(path / f"{name}.npy", partial(_save, raw[name]))
    return path


def spread(values: np.ndarray) -> str:
    """Return 'from a to b', of the finite values, and how many are not finite, as with a negative variance."""
    finite = values[np.isfinite(values)]
    text = f"from {finite.min():.4g} to {finite.max():.4g}" if len(finite) else "without a finite one"
    return text if len(finite) in (0, len(values)) else f"{text}, {len(values) - len(finite)} not finite"


def _save(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def make_surface(context: Context) -> Path:
    """Compute the log of the loss in a plane through a stored network. Returns the directory.

    Writes `res`['raw'] = {'x', 'y': the grid's values along the two directions, float64 [grid]; 'log_loss': float64
    [grid, grid], a row a y; 'plane', 'network'; of the path of training (plane pca) 'path_eids', 'path': float64
    [epochs, 2], 'explained': float64 [2]}.
    """
    f = context.f
    networks = checked_networks(context)
    if len(networks) != 1:
        raise UserError(
            f"{f.load_dir}: a surface goes through one network; here are {len(networks)} ({', '.join(networks)}); "
            "give one --eid, or one seed's directory"
        )
    [(label, (run, eid))] = networks.items()
    eids, path = [], None
    if f.plane == "pca":
        size = sum(array.nbytes for array in context.stored_weights(run, eid))
        eids = plane.thinned([other for other in read.stored_eids(Path(run)) if other < eid], size)
        if len(eids) < 2:
            raise UserError(
                f"--plane pca: the path of training needs two stored epochs before {eid}; {run} has {len(eids)} "
                "(train with --archive n to keep every n-th)"
            )
        path = plane.directions_of(context, (run, eid), eids)[1]
    coordinates = None if path is None else path.coordinates
    x, y = plane.sides(f.plane, f.grid, f.extent, coordinates)
    same = {"network": (run, eid), "eids": eids}
    units = [
        Unit(plane.work, (row,), same | {"row": row, "points": [(float(a), float(b)) for a in x]})
        for row, b in enumerate(y)
    ]

    def entry(unit: Unit, found: dict) -> dict:
        log10 = np.array(found["log_losses"]) / math.log(10)
        log.info("row %d of %d: log10 losses %s", unit.args["row"] + 1, len(y), spread(log10))
        return found

    def finish(rows: list[dict]) -> dict:
        raw: dict[str, Any] = {"x": x, "y": y, "log_loss": np.array([row["log_losses"] for row in rows])}
        raw |= {"plane": f.plane, "network": label}
        if path is not None:
            if path.is_line:
                log.info("note: the path of training is a line; the plane's second direction is random")
            log.info("explained variance: %.1f %% and %.1f %%", *(100 * path.explained))
            raw |= {"path_eids": eids, "path": path.coordinates, "explained": path.explained}
        return raw

    return measure(context, networks, units, entry, {"log_losses": forms.numbers}, finish)


def measure_sharpness(context: Context) -> Path:
    """Measure worst-case and average sharpness of each network of load_dir. Returns the directory.

    Writes `res`['raw'] = {name: {'log_loss': its natural log, 'sharpness': {adaptive:
    `flatness.sharpness.summary`}}}.
    """
    f = context.f
    networks = checked_networks(context)
    units = [
        Unit(sharpness.work, (n, a, r), {"label": label, "number": n, "network": place, "adaptive": kind, "rho": rho})
        for n, (label, place) in enumerate(networks.items())
        for a, kind in enumerate(f.adaptive)
        for r, rho in enumerate(f.rho)
    ]

    def entry(unit: Unit, found: dict) -> dict:
        named = {"network": unit.args["label"], "adaptive": unit.args["adaptive"]}
        average = log_mean_exp(np.array(found["losses"]))
        log.info(
            "%s, relative to %s, rho %g: log10 loss %.4g, at worst %.4g, on average %.4g",
            *(*named.values(), found["rho"]),
            *(value / math.log(10) for value in (found["log_loss"], found["worst"], average)),
        )
        return named | found

    def finish(found: list[dict]) -> dict:
        raw: dict[str, dict] = {}
        for label in networks:
            own = [part for part in found if part["network"] == label]
            parts = {kind: [part for part in own if part["adaptive"] == kind] for kind in f.adaptive}
            raw[label] = {"log_loss": own[0]["log_loss"]}
            raw[label]["sharpness"] = {kind: sharpness.summary(part) for kind, part in parts.items()}
        return raw

    return measure(context, networks, units, entry, SHARPNESS, finish)


def measure_curvature(context: Context) -> Path:
    """Measure the Hessian's largest eigenvalues and its trace at each network of load_dir. Returns the directory.

    Writes `res`['raw'] = {name: `flatness.curvature.measure`}; with the flag `density` also 'density', {operator:
    `flatness.curvature.spectrum`}.
    """
    networks = checked_networks(context)
    operators, units = curvature.operators(context), []
    for n, (label, place) in enumerate(networks.items()):
        args = {"label": label, "number": n, "network": place}
        units.append(Unit(curvature.work, (n, 0, 0), args))
        units += [
            Unit(curvature.density_work, (n, 1 + k, probe), args | {"operator": operator, "probe": probe})
            for k, operator in enumerate(operators)
            for probe in range(context.f.density_probes)
        ]

    def entry(unit: Unit, found: dict) -> dict:
        args = unit.args
        if "operator" not in args:
            log.info("%s: %s", args["label"], curvature.line(found))
            return {"network": args["label"], "operator": None} | found
        values = found["values"]
        log.info(
            "%s, %s, probe %d: spectrum from %.4g to %.4g",
            *(args["label"], args["operator"], args["probe"], values[0], values[-1]),
        )
        return {"network": args["label"], "operator": args["operator"]} | found

    def finish(found: list[dict]) -> dict:
        raw: dict[str, dict] = {part["network"]: part for part in found if part.get("operator") is None}
        for name in raw if operators else ():
            of = {k: [p for p in found if (p["network"], p.get("operator")) == (name, k)] for k in operators}
            raw[name]["density"] = {operator: curvature.spectrum(probes) for operator, probes in of.items()}
        return raw

    return measure(context, networks, units, entry, CURVATURE, finish)
