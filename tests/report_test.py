"""The report: valid HTML that shows a set of working directories and asks no network for anything."""

import base64
import math
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from justhtml import JustHTML

import figures
import flags as flag_table
import report
import results
from catalogue.measures import FIGURES
from reporting import kinds, page, tables
from reporting.runs import label
from reporting.tables import Entry
from storage import workdir
from support.files import ROOT

LN10 = math.log(10)
HOSTILE = """<script>alert("x")</script> & 'q' </code> {} $1"""


def made(path, task, res, command, **flags):
    """A working directory as a run leaves it."""
    path.mkdir(parents=True)
    run = workdir.WorkDir(path)
    given = {"task": task, "dataset": "mnist", "model.description": "CNN"} | flags
    run.write_json("flags.json", flag_table.complete(given))
    run.write_json(
        "about.json",
        {
            "experiment": path.parent.name,
            "command": command,
            "began": "2026-01-02 03:04:05 +0000",
            "git": "0123456789abcdef",
            "versions": {"python": "3.11.7", "tensorflow": "2.21.0"},
            "machine": "Linux, 2 cores",
            "device": "CPU",
            "data": {"train": 60000, "test": 10000, "crc32": 1},
        },
    )
    run.write_res(res)
    return path


def epoch(eid):
    stats = {
        **{"loss": 0.9, "log_loss": -eid * 267 * LN10, "log_frame": -1.0, "acc": 1 - 0.1 / eid},
        **{"test_loss": 0.1, "test_acc": 0.9, "rho": 10.0 + eid, "rho_0": 3.0 + eid, "rho_1": 4.0 + eid},
        **{"norm_prod": 12.0, "rhoL": 100.0, "q_min": eid - 1.5, "q_max": 9.0, "q_bar_min": (eid - 1.5) / 100},
        **{"q_bar2_min": (eid - 1.5) / 12, **{f"n_supp_{k}": k for k in range(1, 8)}},
        **{
            "train_time": 0.1,
            "eval_time": 0.1,
            "attempts": 2,
            "q_bar_svm": 0.02,
            "q_bar_linf": 0.3,
            "q_bar_spectral": 0.2,
        },
        **{"smoothed_q_bar": (eid - 1.6) / 100, "smoothed_q_bar2": (eid - 1.6) / 12},
        **{key: 0.3 * eid for figure in FIGURES.values() for panel in figure.panels for key in panel.keys},
    }
    return {"eid": eid, "lr": 0.1, "log_frame": -1.0, "rt_loss": 1.0, "time": 0.25, "stats": stats}


def training(path, command="exper.py --E 3", **flags):
    return made(path, "train", {"flags": {}, "raw": {k: epoch(k) for k in (1, 2, 3)}}, command, E=3, **flags)


def attack(path, method="ddn", **flags):
    rng = np.random.default_rng(0)
    n = 40
    res = {
        "images": np.zeros((n, 2, 2, 1), np.float32),
        "errors": np.full(n, 0.1) if method == "pgd" else rng.uniform(0.5, 3, n) ** 2,
        "labels": np.zeros(n, int),
        "indices": np.arange(n),
        "success": np.ones(n, bool),
        "clean_correct": np.ones(n, bool),
        "certified": np.full(n, 0.1),
    }
    command = f"eval-{method}.py run --eid 7"
    made(path, "attack", {7: res}, command, attack_method=method, load_dir="run", eid=7, **flags)
    eps = ("0.1",) if method == "pgd" else ("0.5", "1.0")
    summary = {
        **{"n": n, "clean_acc": 0.975, "success": 1.0, "median": 1.2345678, "mean": math.inf},
        **{"certified_median": 0.125, "robust_acc": dict(zip(eps, (0.75, 0.25), strict=False))},
        **{"log_loss": -5 * LN10, "q_bar_min": None},
    }
    workdir.WorkDir(path).write_json("summary.json", {"7": summary})
    return path


def pgd(path):
    return attack(path, "pgd", attack_eps_list=(0.1,))


def fmn_l1(path):
    return attack(path, "fmn-l1")


def fmn_linf(path):
    return attack(path, "fmn-linf")


def radius(path):
    network = {
        **{"I": 0.01, "radii": [2.0, 3.0], "profiles": [[0.01, 0.02, 0.04], [0.01, 0.02, 0.03, 0.05]]},
        **{"ends": [0.2, 0.3], "mean": 2.5, "norm": 20.0, "mean_by_norm": 0.125},
    }
    row = {"mean": 2.5, "sd": 0.0625, "by_norm_mean": 0.125, "by_norm_sd": 0.0, "published": (2.34, 0.1393)}
    raw = {"networks": {"seed 0": network, "seed 1": network}, "row": row | {"standard_errors": 1.5}}
    return made(path, "measure_radius", {"flags": {}, "raw": raw}, "measure_radius_mnist_top.py", params="top")


def points(path):
    X, Y = np.meshgrid(np.linspace(-0.4, 1.3, 6), np.linspace(-0.4, 1.3, 6))
    raw = {"X": X, "Y": Y, "Z": X**2 + 4 * Y**2 + 0.5, "networks": ["seed 0", "seed 1", "seed 2"]}
    return made(path, "make_points", {"flags": {}, "raw": raw}, "make_points_mnist.py")


def epochs(path):
    raw = {k: epoch(k) for k in (1, 3)}
    return made(path, "measure_epochs", {"flags": {}, "raw": raw}, "measure_theory.py x", measure=("theory",))


def curvature(path):
    found = {
        **{"network": "epoch 9", "log_loss": -800 * LN10, "log_frame": -800 * LN10, "parameters": 77},
        **{"eigenvalues": [4.5, 1.25], "trace": 6.0, "trace_error": 0.5},
        **{"sharpness": 4.5, "lr_sharpness": 0.9},
    }
    spectrum = {"parameters": 77, "values": np.array([-1.0, 2, 4.5]), "weights": np.array([0.25, 0.25, 0.5])}
    found["density"] = {"hessian": spectrum | {"trace": 6.5, "trace_error": 0.25}}
    return made(path, "measure_curvature", {"flags": {}, "raw": {"epoch 9": found}}, "measure_curvature.py")


def sharpness(path):
    ball = {"rho": [0.1, 0.2], "worst": [-900.0, LN10], "average": [-1800.0, -1000.0], "average_error": [0.5, 0.25]}
    raw = {"epoch 9": {"log_loss": -800 * LN10, "sharpness": {"layer": ball}}}
    return made(path, "measure_sharpness", {"flags": {}, "raw": raw}, "measure_sharpness.py x")


def plane(path):
    heights = np.add.outer(np.arange(4.0), np.arange(5.0)) * -100 * LN10 - LN10
    raw = {
        "x": np.arange(5.0) - 2,
        "y": np.arange(4.0) - 1,
        "log_loss": heights,
        "plane": "pca",
        "network": "epoch 9",
    }
    raw |= {"path_eids": [3, 6], "path": np.ones((2, 2)), "explained": np.array([0.9, 0.06])}
    return made(path, "make_surface", {"flags": {}, "raw": raw}, "make_surface.py x")


KINDS = {
    **{"train": training, "attack": attack, "pgd": pgd},
    **{"radius": radius, "points": points, "curvature": curvature, "epochs": epochs},
    **{"fmn_l1": fmn_l1, "fmn_linf": fmn_linf, "sharpness": sharpness, "plane": plane},
}


@pytest.fixture
def no_figures(monkeypatch):
    """A report without its figures, which take most of its time."""
    monkeypatch.setattr(page, "make_figures", lambda runs: label(runs) and {})


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """(text, document) of a report on a directory of every kind; parsing it strictly raises."""
    root = tmp_path_factory.mktemp("logs")
    paths = [make(root / f"exper-{kind}" / "1") for kind, make in KINDS.items()]
    out = report.write(paths, root / "report.html")
    text = out.read_text(encoding="utf-8")
    return text, JustHTML(text, strict=True, sanitize=False)


def rows(document, caption):
    """{row's name: [cell, ...]} of the body of a table, as text."""
    (table,) = [t for t in document.query("table") if t.query("caption")[0].to_text() == caption]
    return [[cell.to_text() for cell in row.query("th, td")] for row in table.query("tbody tr")]


def assert_well_made(document):
    """What the standard asks beyond the grammar that a strict parser sees, and what a reader needs."""
    assert document.query("html")[0].attrs["lang"] == "en"
    assert len(document.query("h1")) == len(document.query("main")) == len(document.query("title")) == 1
    ids = [node.attrs["id"] for node in document.query("[id]")]
    assert len(ids) == len(set(ids))
    links = [node.attrs["href"] for node in document.query("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)
    for table in document.query("table"):
        assert len(table.query("caption")) == 1
        assert all(th.attrs["scope"] == "col" for th in table.query("thead th"))
        assert all(th.attrs["scope"] == "row" for th in table.query("tbody th, tfoot th"))
        n = len(table.query("thead th"))
        for row in table.query("tr"):
            assert sum(int(cell.attrs.get("colspan", 1)) for cell in row.query("th, td")) == n
    for figure in document.query("figure"):
        (image,) = figure.query("img")
        assert len(image.attrs["alt"]) > 30
        assert len(figure.query("figcaption")) == 1


def test_a_page_of_every_kind_of_run_is_valid_and_complete(everything):
    _, document = everything
    assert_well_made(document)
    shown = {node.attrs["id"].removeprefix("figure-") for node in document.query("figure")}
    assert shown == {name for kind in kinds.KINDS.values() for name in kind.figures} - {
        "measures",
        "stored_measures",
        "radius_loss",
        "seeds",
        *(f"examples_{norm}" for norm in ("l1", "l2", "linf")),  # the attacked images are not those of a data set
    }
    headings = ["Training", "Stored epochs, measured", "Attacks, L2", "Attacks, L1", "Attacks, L-infinity"]
    headings += ["Attacks, L-infinity, at given eps", "Flatness radius", "Loss surfaces", "Planes through a run"]
    assert [h.to_text() for h in document.query("#results ~ h3")] == [*headings, "Curvature", "Sharpness"]
    details = [h.to_text() for h in document.query("h2")]
    assert details[0] == "Results" and details[-1] == "Commands, environment and flags"
    assert {"Training", "Attacks, L2", "Flatness radius"} <= set(details)


def test_captions_say_what_is_drawn_and_from_which_runs(everything):
    captions = [caption.to_text() for caption in everything[1].query("figcaption")]
    assert captions[0].startswith("Training loss and normalized margin against epoch. Made from run 1")


def test_nothing_is_fetched_from_anywhere(everything):
    text, document = everything
    assert not document.query("link, script, iframe, object, base, form, video")
    for node in document.query("*"):
        for name, value in node.attrs.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith(("data:", "#")), (node.name, value[:80])
            assert name != "style" and not name.startswith("on")
    style = (
        "".join(node.to_text() for node in document.query("style")) or text.split("<style>")[1].split("</style>")[0]
    )
    assert "url(" not in style and "@import" not in style and "{" in style
    for image in document.query("img"):
        svg = base64.b64decode(image.attrs["src"].removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.lstrip().startswith("<?xml")
        for reference in re.findall(r"""(?:href|src)\s*=\s*["']([^"']*)""", svg) + re.findall(r"url\(([^)]*)", svg):
            assert reference.startswith(("#", "data:")), reference[:80]
        assert "@import" not in svg and "<script" not in svg


def test_the_final_stats_are_those_of_the_last_epoch(everything):
    text, document = everything
    shown = {row[0].split()[0]: row[1] for row in rows(document, "Training: all numbers of the last epoch")}
    assert shown["eid"] == "3 of 3"
    assert shown["log10_loss"] == "-801"
    assert set(epoch(3)["stats"]) <= set(shown)
    assert float(shown["q_bar_min"]) == 0.015 and shown["test_acc"] == "90.00%"
    assert f'value="{epoch(3)["stats"]["acc"]!r}"' in text  # all digits are in the page


def test_an_attacks_summary_is_listed_among_those_in_its_norm(everything):
    known = {"images": "40 of the training set", "log10 loss": "-5", "accuracy": "97.50%", "fooled": "100.00%"}
    known |= {"margin q_min/ρᴸ": "–", "median": "1.2346", "mean of those found": "inf", "certified, median": "0.1250"}
    grid = "The smallest eps of a list, in L-infinity, with an adversarial example"
    robust = {"robust at ε = 0.5": "75.00%", "robust at ε = 1.0": "25.00%"}
    for caption, more in (
        ("L2 distances to the nearest adversarial example found", robust),
        ("L1 distances to the nearest adversarial example found", robust),
        (grid, {"robust at ε = 0.1": "75.00%"}),
    ):
        assert dict(rows(everything[1], f"{caption}: all numbers")) == known | more
        headline = {key: known[key] for key in ("log10 loss", "margin q_min/ρᴸ", "fooled", "median")}
        assert dict(rows(everything[1], caption)) == headline


def test_a_report_opens_with_its_results(everything):
    """For each run its numbers, then at most two figures; what remains comes after, then commands and flags."""
    text, document = everything
    (results_, *_, commands) = document.query("main > section")
    assert results_.query("h2")[0].to_text() == "Results"
    assert commands.query("h2")[0].to_text() == "Commands, environment and flags"
    assert all(not details.attrs.get("open") for details in commands.query("details"))
    assert not results_.query("code") or not any("--" in code.to_text() for code in results_.query("code"))
    headline = dict(rows(document, "Training: the last epoch"))
    assert headline["log10 training loss"] == "-801" and headline["training accuracy"] == "96.67%"
    assert headline["margin q_min/ρᴸ"] == "0.015" and headline["margin q_min/(ρ₁⋯ρ_L)"] == "0.125"
    assert headline["epochs in which the smoothed margin fell"] == "–"  # it was negative at first
    shown = [figure.attrs["id"] for figure in results_.query("figure")]
    assert shown[:2] == ["figure-loss_margin", "figure-accuracy"] and "figure-margins" not in shown
    assert text.index("figure-loss_margin") < text.index("figure-margins") < text.index("All flags of run 1")


def test_several_runs_are_compared_in_one_table(tmp_path, no_figures):
    runs = [training(tmp_path / f"exper-{k}" / "1", lr=0.01 * k) for k in (1, 2, 3)]
    document = JustHTML(report.page(runs), strict=True, sanitize=False)
    assert len(rows(document, "Training: the last epoch")) == 3
    (first, *_) = document.query("table")
    assert first.query("caption")[0].to_text() == "Training: the last epoch"


def test_an_attacks_nearest_examples_are_shown_with_image_and_difference(tmp_path):
    from data import loading

    x = loading.load("digits")[0][0][:40] / 16
    path = attack(tmp_path / "exper-attack" / "1", dataset="digits")
    examples = x + np.where(np.arange(64).reshape(8, 8, 1) == 20, 0.5, 0)
    found = results.read_res(path)
    found[7] |= {"images": examples.astype(np.float32), "errors": np.full(40, 0.25)}
    found[7]["errors"][3] = 0.2500001
    workdir.WorkDir(path).write_res(found)
    figure = figures.build([path])["examples_l2"]
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_allclose(pictures[0], x[0, ..., 0])
    np.testing.assert_allclose(pictures[6], np.clip(examples[0, ..., 0], 0, 1), atol=1e-6)
    assert pictures[12][2, 4] == pytest.approx(1, abs=1e-6) and pictures[12][0, 0] == 0.5
    found[7]["images"] = examples.astype(np.float32) * 0.9  # not at the recorded distances: of other data
    workdir.WorkDir(path).write_res(found)
    assert "examples_l2" not in figures.build([path])


def test_radii_are_listed_next_to_the_published_ones(everything):
    (row,) = rows(
        everything[1],
        "Flatness radius: mean ± standard deviation over networks; published: arXiv 1801.02254, table 1",
    )
    assert row[1:] == [
        *("mnist", "natural labels", "top layer", "2", "2.5000 ± 0.0625", "2.3400 ± 0.1393", "1.5"),
        "0.1250 ± 0.0000",
    ]
    assert [row[1:4] for row in rows(everything[1], "Flatness radius of each network")] == [
        ["seed 0", "0.01", "2.5000"],
        ["seed 1", "0.01", "2.5000"],
    ]


def test_surfaces_and_curvature_are_there_also_far_below_float64(everything):
    (row,) = rows(everything[1], "Loss in the plane of three networks")
    assert row[4] == "6 × 6" and float(row[5]) == pytest.approx(0.5, abs=0.02)
    (row,) = rows(everything[1], "The training loss's Hessian")
    sharp = ["4.5", "0.9"]
    assert row[1:] == ["epoch 9", "-800", "4.500e-800, 1.250e-800", *sharp, "6.000e-800 ± 5.000e-801", "77"]


def test_spectra_sharpness_and_planes_are_there_also_far_below_float64(everything):
    (row,) = rows(everything[1], "Spectra, by stochastic Lanczos quadrature")
    assert row[1:] == [*("epoch 9", "Hessian", "77", "-1.000e-800", "4.500e-800", "8.33%", "6.500e-800 ± 2.500e-801")]
    found = rows(everything[1], "Sharpness: the loss in a ball around the weights")
    assert found[0][1:] == ["epoch 9", "layer", "0.1", "-800", "-390.87", "-781.73", "50.00%"]
    assert found[1][5] == "1"
    (row,) = rows(everything[1], "log of the loss in a plane")
    assert row[1:7] == ["epoch 9", "pca", "4 × 5", "-701", "-1", "2"] and row[7].split() == ["90.00%", "6.00%"]


def test_each_number_links_to_the_command_that_made_it(everything):
    _, document = everything
    articles = {f"#{a.attrs['id']}": a for a in document.query("article")}
    assert {code.to_text() for code in articles["#run-1"].query("dd code")} >= {"python exper.py --E 3"}
    tables = [t for section in document.query("main > section")[:-1] for t in section.query("table")]
    linked = [table.query("a[href]") for table in tables]
    assert len(tables) > 12 and all(linked)
    assert {link.attrs["href"] for links in linked for link in links} == set(articles)
    facts = {dt.to_text() for dt in document.query("dt")}
    assert {"command", "flags", "versions", "machine", "git revision", "seed"} <= facts
    assert "0123456789abcdef" in {dd.to_text() for dd in document.query("dd")}


def test_figures_have_alternative_text(everything):
    texts = {node.attrs["id"]: node.query("img")[0].attrs["alt"] for node in everything[1].query("figure")}
    assert "log10 training loss against epoch" in texts["figure-loss_margin"]
    assert "the curve goes from -267 at 1 to -801 at 3" in texts["figure-loss_margin"]
    assert "layer 2 goes from 5 at 1 to 7 at 3" in texts["figure-norms"]
    assert "4 curves between 0 and 0.05, for 0 to 3" in texts["figure-profiles"]
    assert not any(set("$\\{}") & set(text) for text in texts.values())


def test_whatever_a_flag_or_path_holds_is_only_text(tmp_path, no_figures):
    path = training(tmp_path / "a<b>&\"'" / "1", command=f"x.py {HOSTILE}", dataset=HOSTILE)
    out = report.write([path], tmp_path / "r.html")
    document = JustHTML(out.read_text(encoding="utf-8"), strict=True, sanitize=False)
    assert_well_made(document)
    assert not document.query("script")
    codes = [code.to_text() for code in document.query("code")]
    assert f"python x.py {HOSTILE}" in codes and HOSTILE in codes and str(path) in codes


def test_commands_can_be_pasted_also_with_spaces_in_their_paths(tmp_path, no_figures):
    run = training(tmp_path / "my runs" / "1", command="'my scripts/exper.py' --E 3")
    document = JustHTML(report.page([run]), strict=True, sanitize=False)
    assert "python 'my scripts/exper.py' --E 3" in {code.to_text() for code in document.query("code")}
    (made,) = document.query("footer code")
    assert shlex.split(made.to_text()) == ["python", "report.py", str(run)]


@pytest.mark.parametrize("command", ["./run.sh 'exper", "", "./run.sh exper.py"])
def test_commands_that_are_not_scripts_are_shown_as_recorded(tmp_path, command):
    (run,) = figures.read([training(tmp_path / "run", command=command)])
    assert Entry(1, run).command == command


def test_each_res_is_read_once(tmp_path, monkeypatch):
    runs = [training(tmp_path / "exper-a" / "1", lr=0.01), curvature(tmp_path / "exper-b" / "1")]
    read, load = [], results.load
    monkeypatch.setattr(kinds, "load", lambda path: [read.append(path), load(path)][1])
    monkeypatch.setattr(page, "svg", lambda figure: b"")
    report.page(runs)
    assert read == runs


def test_runs_of_one_kind_share_figures_and_tables_and_no_run_appears_twice(tmp_path, no_figures):
    a = training(tmp_path / "exper-a" / "1", lr=0.01)
    b = training(tmp_path / "exper-b" / "1", lr=0.1)
    out = report.write([a, b, a / ".", a])
    assert out == a / "report.html"
    document = JustHTML(out.read_text(encoding="utf-8"), strict=True, sanitize=False)
    assert len(document.query("article")) == 2
    assert len(rows(document, "Training: all numbers of the last epoch")[0]) == 3
    assert [p.to_text() for p in document.query("article summary .label")] == ["lr 0.01", "lr 0.1"]


def mistakes(root):
    run = training(root / "exper" / "1")
    young = made(root / "exper" / "young", "train", {"flags": {}, "raw": {}}, "exper.py")
    (root / "empty").mkdir()
    torn = training(root / "exper" / "torn")
    (torn / "res").write_bytes((torn / "res").read_bytes()[:100])
    odd = made(root / "exper" / "odd", "train", {"flags": {}, "raw": {1: {"eid": 1}}}, "exper.py")
    unsummed = attack(root / "eval" / "1")
    (unsummed / "summary.json").write_text('{"7": {}}')
    silent = training(root / "exper" / "silent")
    (silent / "about.json").unlink()
    listing = training(root / "exper" / "listing")
    (listing / "about.json").write_text("[1, 2]")
    return {
        "no such directory": [root / "nowhere"],
        "not a working directory": [root / "empty"],
        "no epoch was accepted": [run, young],
        "not a pickle of plain data": [torn],
        "not a result of the task train": [odd],
        "summary.json: epoch 7: missing or invalid: certified_median, clean_acc": [unsummed],
        "about.json: missing": [silent],
        "about.json: damaged: not a JSON object": [listing],
        "cannot write the report": [run, "--out", root / "nowhere" / "r.html"],
        "cannot write the report ": [run, "--out", root / "empty"],
        "DIRECTORY": [],
        "unrecognized": [run, "--colour"],
        "an empty word": [run, "--out", ""],
        "an empty word where a path": [""],
        "not a directory": [run / "res"],
    }


def test_epochs_of_one_run_are_not_averaged(tmp_path, no_figures):
    path = radius(tmp_path / "exper-radius" / "1")
    res = results.load(path)
    one = res["raw"]["networks"]["seed 0"]
    res["raw"]["networks"] = {"epoch 10": one, "epoch 30": one | {"mean": 3.5}}
    workdir.WorkDir(path).write_res(res)
    about = results.read_about(path) | {"measured": {"epoch 10": 10, "epoch 30": 30}}
    workdir.WorkDir(path).write_json("about.json", about)
    document = JustHTML(report.page([path]), strict=True, sanitize=False)
    captions = [caption.to_text() for caption in document.query("section.box caption")]
    assert [c for c in captions if c.startswith("Flatness")] == ["Flatness radius of each network"]
    cells = [cell.to_text() for cell in document.query("td")]
    assert {"epoch 10", "epoch 30", "2.5000", "3.5000"} <= set(cells)
    assert not [cell for cell in cells if cell.startswith("2.5000 ±")]


def test_a_user_error_is_one_line_and_status_2(tmp_path, capsys, no_figures):
    for expected, words in mistakes(tmp_path).items():
        before = sorted(tmp_path.rglob("*"))
        assert report.main([str(word) for word in words]) == 2, expected
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: "), err
        assert expected in err
        assert sorted(tmp_path.rglob("*")) == before


def test_the_command_says_where_the_report_is_and_needs_no_tensorflow(tmp_path):
    run = training(tmp_path / "exper" / "1")
    code = (
        "import sys, report; status = report.main(sys.argv[1:]);"
        "sys.exit(3 if 'tensorflow' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(str(run / "report.html"))


@pytest.mark.parametrize(
    "value, log_unit, text",
    [
        (1.5, 0, "1.500e+00"),
        (-2.5, -800 * LN10, "-2.500e-800"),
        (9.9996, -3 * LN10, "1.000e-02"),
        (0.0, -5.0, "0"),
        (math.nan, 0, "nan"),
    ],
)
def test_powers_are_formatted_below_the_smallest_float(value, log_unit, text):
    assert tables.power(value, log_unit) == text


def test_flags_are_shown_as_they_are_typed():
    assert [page.word(text) for text in ("a-b/c", "[['F', 10]]", "$x 'y'")] == [
        *("a-b/c", "\"[['F', 10]]\"", """'$x '"'"'y'"'"''""")
    ]


def test_a_bug_in_our_tables_is_not_reported_as_a_damaged_run(tmp_path, monkeypatch):
    monkeypatch.setattr("reporting.training.number", lambda *args: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        report.page([training(tmp_path / "run")])
