"""Draws the sweeps of a record of scripts/bench.sh: python3 scripts/bench_plots.py benches/record/NAME.json

One SVG file for each sweep, beside the record: medians by x, a line for each series, ranges as bars.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402 (after the choice of what it draws with)


def draw(sweep, heading, path):
    # The same figures make the same file.
    matplotlib.rcParams["svg.hashsalt"] = sweep["name"]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for series in dict.fromkeys(row["series"] for row in sweep["rows"]):
        taken = [row for row in sweep["rows"] if row["series"] == series]
        medians = [row["median"] for row in taken]
        below = [row["median"] - row["least"] for row in taken]
        above = [row["most"] - row["median"] for row in taken]
        axes.errorbar([row["x"] for row in taken], medians, [below, above], label=series, marker="o", markersize=3, capsize=2)
    axes.set_xscale("log", base=2)
    if sweep["unit"] == "µs":
        axes.set_yscale("log")
    axes.set(title=sweep["name"], xlabel=sweep["x"], ylabel=sweep["unit"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.text(0.01, 0.01, heading.splitlines()[0], fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main():
    record = pathlib.Path(sys.argv[1])
    contents = json.loads(record.read_text())
    for sweep in contents["sweeps"]:
        draw(sweep, contents["heading"], record.with_name(f"{record.stem}-{sweep['name'].replace(' ', '-')}.svg"))


if __name__ == "__main__":
    main()
