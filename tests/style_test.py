"""The style of all figures: legible, thinned without loss, fit for print (`reporting.style`)."""

import math

import numpy as np
import pytest
from builders import an_attack, assert_nothing_overlaps, curves
from scipy import ndimage

import figures
import results
from bench.figures import made_up
from reporting import style


def test_ten_thousand_epochs_keep_their_extremes_and_ends_when_thinned(long_run, long_drawn):
    raw = results.load(long_run)["raw"]
    for axes, name in zip(long_drawn["accuracy"].axes, ("acc", "test_acc"), strict=True):
        (points,) = curves(axes)
        values = 100 * np.array([raw[e]["stats"][name] for e in raw])
        assert len(points) < 5000
        assert points[[0, -1], 0].tolist() == [1, 10_000]
        assert points[:, 1].min() == values.min() and points[:, 1].max() == values.max()
        assert (points[:, 1] == values[points[:, 0].astype(int) - 1]).all()


def test_a_thinned_curve_looks_like_the_whole_one():
    rng = np.random.default_rng(0)
    pictures = []
    for treat in (lambda figure: None, style.thin):
        figure, axes = style.panels(1, 1, "")
        axes.plot(np.arange(20_000), np.cumsum(rng.standard_normal(20_000)), **style.cycle(1)[0])
        treat(figure)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba(), int))
        rng = np.random.default_rng(0)
    assert len(axes.lines[0].get_xdata()) < 5000
    whole, thinned = pictures
    assert (abs(whole - thinned).max(axis=2) > 40).mean() < 0.005
    inked = [picture.min(axis=2) < 128 for picture in (whole, thinned)]
    for these, those in (inked, inked[::-1]):  # no ink is more than a pixel from where it was
        assert not (these & ~ndimage.binary_dilation(those, np.ones((3, 3)))).any()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_thinning_keeps_the_extremes_of_every_column(scale):
    rng = np.random.default_rng(1)
    x = np.arange(1, 5001)
    place = (np.log(x) if scale == "log" else x) / 7
    y = rng.standard_normal(len(x))
    y[2000] = math.nan
    kept = style.visible(np.floor(place), y)
    assert (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == len(x) - 1
    for column in np.unique(np.floor(place)):
        own = np.flatnonzero(np.floor(place) == column)
        mine = np.intersect1d(own, kept)
        assert np.nanmax(y[mine]) == np.nanmax(y[own]) and np.nanmin(y[mine]) == np.nanmin(y[own])
        assert {own[0], own[-1]} <= set(mine)


def test_pdfs_embed_their_fonts_and_none_is_type_3(drawn_files):
    for _, path in drawn_files.values():
        content = path.read_bytes()
        descriptors = content.count(b"/Type /FontDescriptor")
        assert descriptors and content.count(b"/FontFile2 ") == descriptors
        assert b"/Type3" not in content and content.count(b"/Subtype /CIDFontType2") == descriptors


def test_letters_are_at_least_7_points_where_a_panel_is_a_column_wide(drawn):
    from matplotlib.text import Text

    for name, figure in drawn.items():
        texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        assert texts and min(t.get_fontsize() for t in texts) >= 7, name
        assert figure.get_figwidth() <= 2 * style.PANEL[0]


def test_no_tick_label_lies_on_its_neighbour_and_no_legend_on_a_panel(drawn, tmp_path):
    paths = [made_up(tmp_path / f"run-{k}", 30, lr=0.01 * (k + 1)) for k in range(6)]
    for figure in [*drawn.values(), *figures.build(paths).values()]:
        assert_nothing_overlaps(figure)


def test_a_long_legend_stays_on_the_page_and_leaves_the_panels_their_size(tmp_path):
    plain = an_attack(tmp_path / "ddn", {eid: [0.1 * eid, 0.2] for eid in range(1, 31)})
    other = an_attack(
        tmp_path / "cw", {10: [0.5, 0.7]}, method="cw", attack_K=10_000, attack_search_steps=9,
        attack_initial_const=0.001, attack_confidence=0.25, attack_set="test", attack_lr=0.01,
        attack_N=1000, dataset=f"/data/{'x' * 120}.npz",
    )  # fmt: skip
    heights = []
    for directories in ([plain], [plain, other]):
        figure = figures.build(directories)["attack_l2"]
        assert_nothing_overlaps(figure)
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]


def test_the_palette_stays_distinct_to_the_colour_blind_and_the_dashes_to_all():
    from matplotlib.colors import to_rgb

    # Machado, Oliveira and Fernandes (2009): full protanopia and deuteranopia, on linear RGB.
    blind = {
        "none": np.eye(3),
        "protanopia": [
            [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
        ],
    }  # fmt: skip
    rgb = np.array([to_rgb(colour) for colour in style.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for kind, matrix in blind.items():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.4)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 10 * np.eye(len(seen))
        assert distance.min() > 0.12, kind
        assert distance[0, 1] > 0.5, kind  # the two of the paper's comparison
    looks = [(look["color"], str(look["linestyle"])) for look in style.cycle(35)]
    assert len(set(looks)) == 35
