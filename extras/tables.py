"""Tables, verdicts, curves and sheets of the rows of extras.ablation.

results, everywhere: [(row, seed, {column: value})], as extras.judges measures it. runs: {(row,
seed): folder of the run}. Checkpoints are read one after another, as many would fill the memory.
"""

import csv
import math
import statistics

import numpy as np
from matplotlib.figure import Figure

import data
import oasis
import sample
from extras.judges import COLUMNS, LEGEND

# ---- The table and the verdicts ------------------------------------------------------------------


def markdown(lines):
    """Lines of cells, the first of them the heading -> a markdown table."""
    texts = []
    for line in lines:
        texts.append("| " + " | ".join(map(str, line)) + " |")
    texts.insert(1, "| " + " | ".join(["---"] * len(lines[0])) + " |")
    return "\n".join(texts)


def write_csv(path, lines):
    """Lines of cells, the first of them the heading, as a csv file."""
    with data.write_whole(path) as partial, open(partial, "w", newline="") as file:
        csv.writer(file).writerows(lines)


def rows_of(pairs):
    """[(row, ...), ...] -> the rows, each once, in their order."""
    return list(dict.fromkeys(pair[0] for pair in pairs))


def values_of(results, row, column):
    """The values of a column, one for each seed of the row that has it."""
    values = []
    for name, _, result in results:
        if name == row and column in result:
            values.append(result[column])
    return values


def cell(values):
    """Mean ± standard deviation over seeds."""
    if not values:
        return ""
    mean = statistics.mean(values)
    if mean >= 1000:                            # a number of parameters
        return f"{mean:,.0f}"
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


def table(results):
    """results -> a markdown table, a line for each row and one for the real images."""
    heading = ["", "seeds"]
    real = ["real images", ""]
    for column, text in COLUMNS.items():
        heading.append(text)
        real.append(cell(values_of(results[:1], results[0][0], f"{column}_real")))
    lines = [heading, real]
    for row in rows_of(results):
        line = [row, len(values_of(results, row, "miou"))]
        for column in COLUMNS:
            line.append(cell(values_of(results, row, column)))
        lines.append(line)
    return markdown(lines)


def verdict(first, second):
    """Do the values of two rows differ? (difference of means, its standard deviations, decided).

    The standard deviation is the root of the mean of both rows' variances. Decided: at least two
    of them. With one seed in a row there is no variance: (difference, nan, False).
    """
    difference = statistics.mean(first) - statistics.mean(second)
    if min(len(first), len(second)) < 2:
        return difference, math.nan, False
    deviation = math.sqrt((statistics.variance(first) + statistics.variance(second)) / 2)
    if deviation > 0:
        ratio = abs(difference) / deviation
    else:
        ratio = math.inf if difference else 0.0
    return difference, ratio, ratio >= 2


def verdict_cell(first, second):
    """A verdict as text, bold if decided: **+0.051** (3.1)."""
    if not first or not second:
        return ""
    difference, ratio, decided = verdict(first, second)
    mark = "**" if decided else ""
    deviations = "–" if math.isnan(ratio) else f"{ratio:.1f}"
    return f"{mark}{difference:+.3g}{mark} ({deviations})"


def verdicts(results, pairs):
    """A markdown table: for each pair of rows, the first minus the second in every score."""
    columns = [name for name in COLUMNS if name not in ("seconds_per_step", "parameters")]
    lines = [["first − second"]]
    for column in columns:
        lines[0].append(COLUMNS[column].rstrip(" ↑↓"))
    for first, second in pairs:
        line = [f"{first} − {second}"]
        for column in columns:
            line.append(verdict_cell(values_of(results, first, column),
                                     values_of(results, second, column)))
        if any(line[1:]):
            lines.append(line)
    return markdown(lines)


def write_tables(out, results, pairs):
    """ablation.csv and table.md; the latter is printed, too."""
    names = list(COLUMNS)
    for name in COLUMNS:
        if f"{name}_real" in results[0][2]:
            names.append(f"{name}_real")
    lines = [["row", "seed"] + names]
    for row, seed, result in results:
        lines.append([row, seed] + [result.get(name, "") for name in names])
    write_csv(out / "ablation.csv", lines)
    text = (f"{table(results)}\n\nMean ± standard deviation over the seeds. {LEGEND}\n\n"
            f"{verdicts(results, pairs)}\n\nDifference of the means (in standard deviations: the "
            f"root of the mean of both\nrows' variances). Bold: at least two. (–): one seed, not "
            f"decided.")
    with data.write_whole(out / "table.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nSee also {out}.")


# ---- The pictures --------------------------------------------------------------------------------


def scores_by_step(runs, row, name):
    """{step: the score of each seed of the row}."""
    found = {}
    for (other, _), folder in runs.items():
        if other == row:
            for line in sample.load_checkpoint(folder / "latest.pt")["scores"]:
                if name in line:
                    found.setdefault(line["step"], []).append(line[name])
    return found


def save_curves(runs, path):
    """The scores of each row over the steps: a line for the mean of the seeds, a dot for each."""
    figure = Figure(figsize=(12, 4.5), layout="tight")
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("miou", "fd_segmenter")):
        for row in rows_of(runs):
            found = scores_by_step(runs, row, name)
            means = [statistics.mean(values) for values in found.values()]
            curve, = axis.plot(list(found), means, label=row)
            for step, values in found.items():
                axis.plot([step] * len(values), values, ".", color=curve.get_color())
        axis.set(xlabel="step", ylabel=name)
    axes[0].legend(fontsize=7)
    with data.write_whole(path) as partial:
        figure.savefig(partial, dpi=80, format="png")


def save_sheet(runs, val_set, device, path, scale=None, empty_real=False):
    """Every row's pictures of the same label maps from the same noise seeds, side by side.

    Of each row the first seed is shown. empty_real: the place of the real picture stays empty,
    where it may not be shown.
    """
    generators = {}
    for (row, _), folder in runs.items():
        if row not in generators:
            checkpoint = sample.load_checkpoint(folder / "latest.pt")
            generators[row] = sample.build_generator(checkpoint).to(device)
    grid = []
    for i in range(0, len(val_set), max(1, len(val_set) // 5))[:5]:
        image, labels = val_set[i]
        real = data.to_uint8(image[None])[0]
        if empty_real:
            real = np.full_like(real, 255)
        for seed in (0, 1):
            line = [val_set.palette[labels], real]
            for G in generators.values():
                noise = oasis.draw_noise([seed], labels.shape, G.noise_dim, G.pixel_noise)
                line.append(sample.paint(G, labels, noise)[0])
            grid.append(line)
    scale = scale or max(1, 192 // val_set.size[0])
    captions = ["label map", "real"] + list(generators)
    with data.write_whole(path) as partial:
        data.picture_grid(grid, captions, scale).save(partial, "png")
