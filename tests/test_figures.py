"""
assignments/figures.py: what is drawn, read back from the axes, against formulas by hand and slow loops over the stored
results; whether it can be read from afar; and what the command says.
"""
import csv
import inspect
import itertools
import math
import re
import warnings
from collections import defaultdict

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from assignments import drawing, figures
from study import bandit, places

NAMES = ["losses", "links", "beta", "displacement", "frontier", "length", "estimators", "gae", "clip", "best_of_n",
         "judge_bias", "early_stopping"]
FROM_RESULTS = ["beta", "displacement", "frontier", "length", "estimators", "best_of_n", "early_stopping"]

@pytest.fixture(scope="module")
def drawn():
    """{name: Figure} of all figures. A warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: figures.compose(name) for name in figures.FIGURES}

def data(ax, label):
    """(n, 2): the points of the line with this label, also of one with error bars."""
    for container in ax.containers:
        if container.get_label() == label:
            return container.lines[0].get_xydata()
    [line] = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata()

def stored(name, *keys):
    """{key columns as texts: [values as floats]} of a CSV file of study/results."""
    found = defaultdict(list)
    with open(places.RESULTS / name) as f:
        for row in csv.DictReader(f):
            found[tuple(row[key] for key in keys)].append(float(row.get("mean") or row["value"]))
    return found

def sigmoid(x):
    return 1 / (1 + np.exp(-x))

# ---------------------------------------------------------------------------------------------------------------------
# all figures

def test_the_twelve_figures_are_there():
    """A lecture plan names them. Each is a short function that says what to point at."""
    assert list(figures.FIGURES) == NAMES
    for function, text in figures.FIGURES.values():
        assert len(inspect.getsource(function).splitlines()) <= 40 and re.search(r", from [\w/]+\.(py|csv)\b", text)
        assert len(inspect.getdoc(function)) > 100
    sources = re.findall(r"[\w/]+\.py|[\w/]+\.csv", " ".join(text for _, text in figures.FIGURES.values()))
    for source in sources:
        assert (places.ROOT / source).is_file() or (places.RESULTS / source).is_file(), source

def in_pixels(line):
    """(n, 2): points along what a line draws, at most a few pixels apart."""
    path = line.get_transform().transform_path(line.get_path()).vertices
    if line.get_linestyle() == "None" or len(path) < 2:
        return path
    steps = np.linspace(0, 1, 60)[:, None, None]
    return (path[:-1] * (1 - steps) + path[1:] * steps).reshape(-1, 2)

@pytest.mark.parametrize("name", NAMES)
def test_a_figure_can_be_read_from_the_back_row(name, drawn):
    """Small print, thin lines and more than six of them cannot be read there."""
    fig = drawn[name]
    assert fig.get_figwidth() / fig.get_figheight() == pytest.approx(16 / 9)
    assert fig.axes[0].get_gridspec().nrows == (2 if name == "clip" else 1)    # panels stand side by side
    assert all(text.get_fontsize() >= 14 for text in fig.findobj(Text) if text.get_text())
    for ax in fig.axes:
        assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
        lines = [line for line in ax.lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]
        assert len(lines) <= 6 and all(line.get_linewidth() >= 2 for line in lines)

@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off_or_hidden(name, drawn):
    """Text beyond the edge is cut off. A legend or a note on a line hides it. Nor may painting warn."""
    fig = drawn[name]
    with warnings.catch_warnings(), matplotlib.rc_context(drawing.STYLE):
        warnings.simplefilter("error")
        fig.draw_without_rendering()
    for ax in fig.axes:
        over = [*filter(None, [ax.get_legend()]), *ax.texts]
        for part in (ax.title, ax.xaxis.label, ax.yaxis.label, *over):
            box = part.get_window_extent()
            assert 0 <= box.x0 and box.x1 <= fig.bbox.x1 and 0 <= box.y0 and box.y1 <= fig.bbox.y1, part
        for part in over:
            (x0, y0), (x1, y1) = part.get_window_extent().get_points()
            for line in ax.lines:
                x, y = in_pixels(line).T
                assert not ((x0 < x) & (x < x1) & (y0 < y) & (y < y1)).any(), (part, line)

@pytest.mark.slow
@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("name", NAMES)
def test_a_painted_figure_is_the_same_each_time(name, tmp_path):
    """An SVG has random names and a date, so that a repository of slides would change with every build."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.main(["--out", str(tmp_path), "--only", name])
        drawing.save(figures.compose(name), tmp_path / "again.svg")
    svg, png = ((tmp_path / f"{name}.{form}").read_bytes() for form in ("svg", "png"))
    assert svg == (tmp_path / "again.svg").read_bytes() and b"<dc:date>" not in svg
    assert 2_000 < len(svg) < 200_000 and b'width="921.6pt" height="518.4pt"' in svg
    assert png[16:24] == (1920).to_bytes(4, "big") + (1080).to_bytes(4, "big")    # width and height in a PNG's head

@pytest.mark.usefixtures("painted")
def test_two_files_of_one_figure_are_equal(tmp_path):
    """As above, for one figure."""
    for name in ("a.svg", "b.svg"):
        drawing.save(figures.compose("gae"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()

# ---------------------------------------------------------------------------------------------------------------------
# curves of functions

def test_losses_and_their_gradients_by_hand(drawn):
    """At beta 1, as functions of the margin."""
    left, right = drawn["losses"].axes
    h = np.linspace(-4, 4, 401)
    dpo, swapped, e = np.log1p(np.exp(-h)), np.log1p(np.exp(h)), 0.2
    want = {"dpo": (dpo, -sigmoid(-h)), "hinge": (np.maximum(0, 1 - h), -1.0 * (h < 1)),
            "ipo": ((h - 0.5) ** 2, 2 * (h - 0.5)),
            "cdpo, smoothing 0.2": ((1 - e) * dpo + e * swapped, sigmoid(h) - (1 - e)),
            "robust, smoothing 0.2": (((1 - e) * dpo - e * swapped) / (1 - 2 * e),
                                      (-(1 - e) * sigmoid(-h) - e * sigmoid(h)) / (1 - 2 * e))}
    slopes = [line for line in right.lines if len(line.get_xdata()) > 2]
    for (label, (loss, slope)), line in zip(want.items(), slopes, strict=True):
        assert np.allclose(data(left, label), np.stack([h, loss], 1)), label
        away = np.abs(h - 1) > 1e-6 if label == "hinge" else h < 9    # hinge has a corner at 1
        assert np.allclose(line.get_ydata()[away], slope[away]), label
        assert line.get_color() == next(one for one in left.lines if one.get_label() == label).get_color()

def test_links_by_hand(drawn):
    """Rows of the table in losses.link, and their derivatives."""
    left, right = drawn["links"].axes
    x = np.linspace(-4, 4, 401)
    want = {"reverse_kl (DPO)": (x, np.ones_like(x)), "jsd": (np.log(2 * sigmoid(x)), sigmoid(-x)),
            "alpha 0.3": ((1 - np.exp(-0.3 * x)) / 0.3, np.exp(-0.3 * x)),
            "alpha 0.7": ((1 - np.exp(-0.7 * x)) / 0.7, np.exp(-0.7 * x)), "forward_kl": (-np.exp(-x), np.exp(-x))}
    for (label, (link, slope)), line in zip(want.items(), right.lines, strict=True):
        assert np.allclose(data(left, label), np.stack([x, link], 1)), label
        assert np.allclose(line.get_ydata(), slope), label

def test_beta_scales_the_margin_and_its_gradient(drawn):
    """The gradient in w - l has beta twice: as a factor, and within the sigmoid."""
    left, middle, _ = drawn["beta"].axes
    for beta, line in zip((0.1, 0.3, 1), middle.lines, strict=True):
        gap, loss = data(left, f"beta {beta:g}").T
        assert (gap[0], gap[-1]) == (-10, 20) and np.allclose(loss, np.log1p(np.exp(-beta * gap)))
        assert np.allclose(line.get_ydata(), -beta * sigmoid(-beta * gap))

def test_the_policies_of_beta_end_where_the_file_and_the_formula_say(drawn):
    """The optimum by a slow loop over five worlds; the runs from beta.csv."""
    ax = drawn["beta"].axes[2]
    for beta, found in data(ax, "RLHF optimum")[::20]:
        total = 0.0
        for seed in range(5):
            ref, reward = bandit.world(seed=seed)
            for log_q, r in zip(ref.numpy(), reward.numpy()):
                p = np.exp(log_q + r / beta)
                p /= p.sum()
                total += (p * (np.log(p) - log_q)).sum() / len(ref) / 5
        assert found == pytest.approx(total)
    with open(places.RESULTS / "beta.csv") as f:
        rows = [row for row in csv.DictReader(f) if row["world"] == "exact"]
    for labels, name in (("best", "better always wins"), ("bradley_terry", "drawn labels")):
        for beta, found in data(ax, name):
            kls = [float(row["kl"]) for row in rows if row["labels"] == labels and float(row["beta"]) == beta]
            assert len(kls) == 5 and found == pytest.approx(np.mean(kls))

def test_weights_of_gae_are_powers_of_lambda(drawn):
    """(gamma lambda)^l at gamma 1: 1, 0, 0, ... for lambda 0."""
    for lam in (0, 0.5, 0.9, 0.95, 1):
        found = data(drawn["gae"].axes[0], f"lambda {lam:g}")
        assert np.allclose(found, [(n, float(lam) ** n) for n in range(21)], atol=1e-6)

def test_advantages_of_the_example_by_a_slow_sum(drawn):
    """Sum over l of lambda^l delta_{t+l}, with the score at the last token and no value after it."""
    values = [*figures.EXAMPLE, 0.0]
    n = len(values) - 1
    deltas = [(t == n - 1) + values[t + 1] - values[t] for t in range(n)]
    for lam in (0, 0.9, 1):
        want = [(t + 1, sum(lam ** m * deltas[t + m] for m in range(n - t))) for t in range(n)]
        assert np.allclose(data(drawn["gae"].axes[1], f"lambda {lam:g}"), want, atol=1e-6)
    assert np.allclose(data(drawn["gae"].axes[1], "lambda 1")[:, 1], 1 - np.array(figures.EXAMPLE), atol=1e-6)

def test_the_clipped_objective_is_flat_beyond_its_bound_on_one_side_only(drawn):
    """Beyond 1 + clip for a positive advantage, below 1 - clip for a negative one. Clip-higher moves 1 + clip only."""
    above, below = drawn["clip"].axes[:2], drawn["clip"].axes[2:]
    for sign, high, low in zip((1, -1), above, below):
        for bound, label, line in zip((1.2, 1.28), ("clip 0.2", "clip 0.2, clip_high 0.28"), low.lines, strict=True):
            ratio, objective = data(high, label).T
            flat = ratio > bound if sign > 0 else ratio < 0.8
            want = np.where(flat, bound if sign > 0 else -0.8, sign * ratio)
            assert np.allclose(objective, want) and ratio.min() == 0 and ratio.max() == 2
            assert line.get_ydata()[flat].tolist() == [0] * flat.sum() and np.allclose(line.get_ydata()[~flat], sign)
        assert [line.get_linestyle() for line in high.lines] == ["-", "--"]

def test_estimates_by_hand(drawn):
    """k1, k2 and k3 over the log-ratio log(p / q)."""
    l = np.linspace(-2.5, 2.5, 401)
    left = drawn["estimators"].axes[0]
    for label, want in (("k1", l), ("k2", l * l / 2), ("k3", np.exp(-l) - 1 + l),
                        ("k3 with the ratio inverted, a mistake", np.exp(l) - 1 - l)):
        assert np.allclose(data(left, label), np.stack([l, want], 1)), label

# ---------------------------------------------------------------------------------------------------------------------
# best of n and judges

def test_best_of_n_against_all_choices_and_all_draws():
    """The reward: all choices of n of 8 samples. The KL: all 6^n lists of n answers of the reference."""
    ref, reward = (x.numpy() for x in bandit.world())
    found = drawing.best_of_points(n_samples=8)
    drawn = bandit.torch.multinomial(bandit.world()[0].exp(), 8, True,
                                     generator=bandit.torch.Generator().manual_seed(0)).numpy()
    for n in (1, 2, 4, 8):
        highest = [[max(r[i] for i in choice) for choice in itertools.combinations(row, n)]
                   for r, row in zip(reward, drawn)]
        assert found[n][0] == pytest.approx(np.mean([np.mean(of_prompt) for of_prompt in highest]))
        assert found[n][2] == pytest.approx(math.log(n) - 1 + 1 / n)
        if n > 4:
            continue
        total = 0.0
        for log_q, r in zip(ref, reward):
            p = np.zeros(6)
            for answers in itertools.product(range(6), repeat=n):
                p[max(answers, key=lambda i: r[i])] += math.exp(sum(log_q[i] for i in answers))
            assert p.sum() == pytest.approx(1)
            total += sum(x * (math.log(x) - y) for x, y in zip(p, log_q) if x) / len(ref)
        assert found[n][1] == pytest.approx(total, abs=1e-9)

def test_best_of_n_is_drawn_against_n_and_against_both_kls(drawn):
    """On the toy world the file's numbers, as means over seeds. The bound lies to the right of the exact KL."""
    left, middle, right = drawn["best_of_n"].axes
    rewards = stored("sweep.csv", "recipe", "measure")
    want = [(2 ** i, np.mean(rewards[f"best_of n={2 ** i}", "reward"])) for i in range(7)]
    assert np.allclose(left.containers[0].lines[0].get_xydata(), want)
    bound = [(math.log(n) - 1 + 1 / n, reward) for n, reward in want[1:]]
    assert np.allclose(data(middle, "best of n: KL bound"), bound, atol=1e-4)
    points = np.array([*drawing.best_of_points().values()])    # reward, KL, bound
    assert len(points) == 7 and (points[1:, 2] > points[1:, 1]).all()
    assert np.allclose(data(right, "best of n: exact KL"), points[:, [1, 0]])
    assert np.allclose(data(right, "best of n: KL bound"), points[:, [2, 0]])

@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
def test_rates_of_a_biased_judge_by_hand(bias):
    """
    First place: all biased verdicts are wins. Second place: none is. In both orders a biased verdict is a win once and
    a loss once. The longer answer is the same in both orders.
    """
    for p in (0.0, 0.4, 1.0):
        rate = lambda kind, orders, p=p, **more: drawing.judged_rate(p, bias, kind, orders, **more)
        assert rate("position", "A") == pytest.approx(bias + (1 - bias) * p)
        assert rate("position", "B") == pytest.approx((1 - bias) * p)
        assert rate("position", "both") == pytest.approx(bias / 2 + (1 - bias) * p)
        for orders in ("A", "B", "both"):
            assert rate("length", orders) == pytest.approx(0.8 * bias + (1 - bias) * p)
            assert rate("length", orders, longer=0.3) == pytest.approx(0.3 * bias + (1 - bias) * p)

def test_the_rates_are_drawn_under_their_names(drawn):
    """Of a judge with a bias in 3 of 10 verdicts."""
    left, right = drawn["judge_bias"].axes
    p = np.linspace(0, 1, 101)
    for ax, label, want in ((left, "judge without bias", p), (left, "one order, the run first", 0.3 + 0.7 * p),
                            (left, "one order, the run second", 0.7 * p), (left, "both orders", 0.15 + 0.7 * p),
                            (right, "judge without bias", p), (right, "one order", 0.24 + 0.7 * p),
                            (right, "both orders", 0.24 + 0.7 * p)):
        assert np.allclose(data(ax, label), np.stack([p, want], 1)), label

# ---------------------------------------------------------------------------------------------------------------------
# results of the study

def test_displacement_shows_changes_of_log_probs(drawn):
    """Means over seeds: during training minus the start, from curves.csv; after it, from displacement.csv."""
    left, right = drawn["displacement"].axes
    logged = stored("curves.csv", "recipe", "split", "metric", "step")
    for method, side in itertools.product(("dpo", "ipo"), ("chosen", "rejected")):
        at = lambda step, m=method, s=side: np.mean(logged[f"{m} beta=0.1", "val", f"logps/{s}", str(step)])
        want = [(step, at(step) - at(0)) for step in range(0, 141, 20)]
        assert np.allclose(data(left, f"{method}, {side}"), want)
    measured = stored("displacement.csv", "method", "measure")
    methods = [label.get_text() for label in right.get_xticklabels()]
    bars = [bars for bars in right.containers if bars.get_label() in ("chosen", "rejected")]
    assert methods == ["dpo", "ipo", "dpop", "cal_dpo"] and len(bars) == 2
    for side in bars:
        values = [measured[method, side.get_label()] for method in methods]
        assert np.allclose([bar.get_height() for bar in side], np.mean(values, 1))
        ends = np.array(side.errorbar.lines[2][0].get_segments())[:, :, 1]    # (methods, 2): low, high
        assert np.allclose(ends, [(min(v), max(v)) for v in values])

def test_the_frontier_has_means_and_ranges_over_seeds(drawn):
    """Every setting of a method, in the order of the KL."""
    ax, measures = drawn["frontier"].axes[0], stored("sweep.csv", "recipe", "measure")
    for method, label in (("dpo", "DPO"), ("rloo", "RLOO, learned reward"), ("preferred_ft", "SFT on the chosen")):
        recipes = {r for r, _ in measures if r.split()[0] == method and "T=" not in r and " step-" not in r}
        want = sorted((np.mean(measures[r, "kl"]), np.mean(measures[r, "reward"])) for r in recipes)
        assert np.allclose(data(ax, label), want)
        [container] = [c for c in ax.containers if c.get_label() == label]
        low_high = sorted((min(measures[r, "kl"]), max(measures[r, "kl"])) for r in recipes)
        assert np.allclose(sorted(map(tuple, np.array(container.lines[2][0].get_segments())[:, :, 0])), low_high)
    assert ax.get_xlim() == (0, 6)

def test_length_is_that_of_the_second_sweep_and_of_long_runs(drawn):
    """The two sweeps have other seeds: the left panel must not mix them."""
    left, right = drawn["length"].axes
    measures = stored("second/sweep.csv", "recipe", "measure")
    for method, label in (("rdpo", "rdpo"), ("sft", "SFT"), ("ppo", "PPO, learned reward")):
        recipes = {r for r, _ in measures if r.split()[0] == method and "T=" not in r}
        want = sorted((np.mean(measures[r, "length"]), np.mean(measures[r, "reward"])) for r in recipes)
        assert np.allclose(data(left, label), want)
    steps = stored("sweep.csv", "recipe", "measure", "seed")
    for i, line in enumerate(right.lines):
        name, seed = ("along_dpo", "along_ipo")[i // 3], str(i % 3)
        want = [(n, steps[f"{name} step-{n}", "length", seed][0]) for n in range(0, 481, 40)]
        assert np.allclose(line.get_xydata(), want)
    assert len(right.lines) == 6

def test_means_and_deviations_of_the_estimators_are_the_files(drawn):
    """Each divided by the KL of its row, then averaged over seeds."""
    with open(places.RESULTS / "estimators.csv") as f:
        rows = [row for row in csv.DictReader(f) if row["world"] == "exact"]
    for ax, column in zip(drawn["estimators"].axes[1:3], ("mean", "std")):
        for name, line in zip(("k1", "k2", "k3", "k3 inverted"), ax.lines, strict=True):
            assert line.get_label().split()[0] == name.split()[0]
            want = defaultdict(list)
            for row in rows:
                if row["estimator"] == name:
                    want[row["policy"]].append((float(row["kl"]), float(row[column]) / float(row["kl"])))
            assert np.allclose(line.get_xydata(), [np.mean(values, 0) for values in want.values()])

def test_the_star_is_at_the_lowest_validation_loss(drawn):
    """In all three panels of early_stopping, for each seed."""
    logged = stored("curves.csv", "recipe", "split", "metric", "seed")
    steps = stored("sweep.csv", "recipe", "measure", "seed")
    axes = drawn["early_stopping"].axes
    for i in range(6):
        name, seed = ("along_dpo", "along_ipo")[i // 3], str(i % 3)
        losses = np.array(logged[name, "val", "loss", seed])
        lowest = 40 * int(losses.argmin())
        values = {n: {m: steps[f"{name} step-{n}", m, seed][0] for m in ("reward", "kl")} for n in range(0, 481, 40)}
        for ax, want, at_star in ((axes[0], losses / losses[0], losses.min() / losses[0]),
                                  (axes[1], [v["reward"] for v in values.values()], values[lowest]["reward"]),
                                  (axes[2], [v["kl"] for v in values.values()], values[lowest]["kl"])):
            line, star = ax.lines[2 * i:2 * i + 2]
            assert np.allclose(line.get_xydata(), np.stack([range(0, 481, 40), want], 1))
            assert star.get_marker() == "*" and star.get_xydata() == pytest.approx(np.array([[lowest, at_star]]))

# ---------------------------------------------------------------------------------------------------------------------
# the command and its errors

def test_the_command_writes_the_files_and_says_what_they_show(tmp_path, capsys):
    """Files are overwritten, and the line says so. A name or a format that is given twice is drawn once."""
    out = tmp_path / "new" / "figures"
    figures.main(["--out", str(out), "--only", "gae", "clip", "gae"])
    assert sorted(path.name for path in out.iterdir()) == ["clip.png", "clip.svg", "gae.png", "gae.svg"]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{out / 'gae.svg'}, {out / 'gae.png'}: shows {figures.FIGURES['gae'][1]}."
    assert str(out / "clip.svg") in second and "overwritten" not in first + second
    figures.main(["--out", str(out), "--only", "clip", "--format", "svg", "svg"])
    assert capsys.readouterr().out.startswith(f"{out / 'clip.svg'} (overwritten): shows PPO's")

def test_without_flags_all_figures_go_to_out():
    """In both formats."""
    args = figures.get_args([])
    assert (args.out, args.only, args.format) == ("out/figures", NAMES, ["svg", "png"])

def test_an_unknown_name_is_refused_in_one_line_with_all_names(capsys):
    """A typo must not be drawn as nothing."""
    with pytest.raises(SystemExit) as end:
        figures.main(["--only", "clip", "clap"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "clap" in said and all(name in said for name in NAMES)

def refused(argv, capsys):
    """The one line on stderr with which main ends."""
    with pytest.raises(SystemExit) as end:
        figures.main(argv)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err

@pytest.mark.parametrize("name", FROM_RESULTS)
def test_a_missing_file_is_named_in_one_line(name, tmp_path, monkeypatch, capsys):
    """study/results may be left out of a copy of the project."""
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    said = refused(["--out", str(tmp_path / "out"), "--only", name], capsys)
    assert re.search(rf"{tmp_path}/[\w/]+\.csv: no such file", said)
    assert not list((tmp_path / "out").iterdir())

def test_figures_of_functions_need_no_results(tmp_path, monkeypatch, capsys):
    """So the other five are drawn without study/results."""
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    others = [name for name in NAMES if name not in FROM_RESULTS]
    figures.main(["--out", str(tmp_path), "--only", *others, "--format", "svg"])
    assert len(capsys.readouterr().out.splitlines()) == 5

@pytest.mark.parametrize("name, file, text, reason", [
    ("beta", "beta.csv", "world,labels,beta,seed,reward,kl\nexact,optimum,1,0,1,1\n", "no row with exact, best"),
    ("beta", "beta.csv", "world,labels,beta,kl\nexact,best,0.03,many\n", "damaged: expected numbers in kl"),
    ("estimators", "estimators.csv", "world,kl\nexact,1\n", "damaged: expected numbers in kl, mean, std"),
    ("frontier", "sweep.csv", "recipe,seed,measure,mean\nsft,0,reward,0.5\n", "no reward of 'rloo beta=0.5'"),
    ("frontier", "sweep.csv", "recipe,seed\nsft,0\n", "damaged"),
    ("early_stopping", "sweep.csv", "recipe,seed,measure,mean\nalong_dpo step-0,0,reward,0.5\n"
                                    "along_ipo step-0,0,reward,0.5\n", "curves.csv lacks loss of 'along_dpo'")])
def test_a_damaged_file_is_named_in_one_line(name, file, text, reason, tmp_path, monkeypatch, capsys):
    """A table that was cut short or edited must not end in a traceback or an empty panel."""
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    (tmp_path / "curves.csv").write_text("recipe,seed,step,split,metric,value\n")
    (tmp_path / file).write_text(text)
    assert reason in refused(["--out", str(tmp_path / "out"), "--only", name], capsys)

def test_a_file_in_place_of_the_folder_is_refused_in_one_line(tmp_path, capsys):
    """--out names a folder."""
    (tmp_path / "file").write_text("")
    assert "file" in refused(["--out", str(tmp_path / "file")], capsys)

def test_the_page_lists_all_figures():
    """docs/teaching.md says what each figure shows, in the words of FIGURES."""
    page = (places.ROOT / "docs" / "teaching.md").read_text()
    _, section = page.split("\n## Figures for lectures\n")
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    assert listed == [(name, text) for name, (_, text) in figures.FIGURES.items()]
