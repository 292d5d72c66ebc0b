"""
The log of a run: log.csv (step, split, metric, value), the progress bar, and curves.png, which is drawn from log.csv.
"""
import csv
import math
import os
from contextlib import suppress
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from support import parallel
from support.checkpoint import replacing

class Log:
    """log.csv, to which a resumed run appends, and the progress bar. Only the first process writes and shows them."""
    def __init__(self, out_dir, step, max_steps):
        first = parallel.rank() == 0
        self.file = open(Path(out_dir) / "log.csv" if first else os.devnull, "a", newline="")
        if self.file.tell() == 0:
            self.file.write("step,split,metric,value\n")
        # disable=None hides the bar where the output is not a terminal
        self.bar = tqdm(total=max_steps, initial=step, disable=None if first else True, leave=False)

    def write(self, step, split, metrics):
        """Adds one row for each metric. split: train or val."""
        csv.writer(self.file, lineterminator="\n").writerows((step, split, k, f"{v:.8g}") for k, v in metrics.items())

    def say(self, line):
        """Prints a line without breaking the progress bar."""
        self.bar.write(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()
        with suppress(OSError):    # a full disk has been reported by now
            self.file.close()

def read_log(path):
    """log.csv as metric -> split -> [(step, value), ...]. Raises ValueError that names the first invalid row."""
    series = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        for n, row in enumerate(csv.DictReader(f), 2):
            try:
                splits = series.setdefault(row["metric"], {})
                splits.setdefault(row["split"], []).append((int(row["step"]), float(row["value"])))
            except (KeyError, TypeError, ValueError):
                row = str(list(row.values()))[:60]
                raise ValueError(f"{path}, line {n}: expected step,split,metric,value, not {row}") from None
    return series

# ---------------------------------------------------------------------------------------------------------------------
# curves.png

# What the y axis of a metric counts. A name that ends in / stands for all metrics that begin with it.
UNITS = {"lr": "learning rate", "grad_norm": "norm before clipping", "accuracy": "share of pairs",
         "rewards/accuracies": "share of pairs", "rewards/": "beta x nats", "logps/": "nats per completion",
         "margin": "nats", "objective/kl": "nats per completion", "objective/eos": "share of samples",
         "policy/entropy": "nats per token"}

NAMES = {"train": "training batches", "val": "validation"}

def unit(metric):
    """The label of a metric's y axis, "" if it has no unit."""
    return UNITS.get(metric, UNITS.get(metric.split("/")[0] + "/", ""))

def varying(series):
    """The metrics with more than one distinct finite value, or the first metric if all are constant."""
    names = []
    for metric, splits in series.items():
        values = {value for _, value in chain.from_iterable(splits.values()) if math.isfinite(value)}
        if len(values) > 1:
            names.append(metric)
    return names or list(series)[:1]

def row_sizes(n, widest=4):
    """How many panels each row has: n panels in as few rows as possible, as evenly as possible, 7 -> [4, 3]."""
    rows = -(-n // widest)
    return [n // rows + (row < n % rows) for row in range(rows)]

def plot_curves(out_dir):
    """Draws curves.png from log.csv. If that fails, prints why: a run must not fail for its picture."""
    try:
        draw_curves(out_dir)
    except (OSError, ValueError) as e:
        print(f"curves.png was not drawn: {e}")

def draw_curves(out_dir):
    """One panel for each metric that varies. The panels of a row fill its width."""
    from matplotlib.figure import Figure    # here, because it takes a second to import
    series = read_log(Path(out_dir) / "log.csv")
    names = varying(series)
    if not names:
        raise ValueError(f"{Path(out_dir) / 'log.csv'}: has no rows")
    sizes = row_sizes(len(names))
    width, height = 3.2 * max(sizes), 2.4 * len(sizes) + 0.4
    fig, axes = Figure(figsize=(width, height)), []
    for row, size in enumerate(sizes):
        # Fixed margins, in inches: to find them from the texts takes Matplotlib longer than to draw them
        top, bottom = height - 0.7 - 2.4 * row, height - 2.35 - 2.4 * row
        grid = fig.add_gridspec(1, size, left=0.65 / width, right=1 - 0.1 / width, top=top / height,
                                bottom=bottom / height, wspace=0.3)
        axes += grid.subplots(squeeze=False)[0].tolist()
    for ax, metric in zip(axes, names):
        draw_metric(ax, metric, series[metric])
    lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}    # one legend entry for each split
    fig.legend(lines.values(), lines.keys(), loc="upper center", ncols=2, fontsize=9)
    with replacing(Path(out_dir) / "curves.png") as part:
        fig.savefig(part, dpi=110, format="png")

def draw_metric(ax, metric, splits):
    """One panel: training as a thin line, validation as a line with dots. splits: split -> [(step, value), ...]."""
    for split, style in (("train", "C0-"), ("val", "C1o-")):
        if split in splits:
            steps, values = zip(*splits[split])
            ax.plot(steps, values, style, label=NAMES[split], lw=0.9, ms=3.5)
    ax.set_title(metric, fontsize=10)
    ax.set_xlabel("step", fontsize=8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(unit(metric), fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
