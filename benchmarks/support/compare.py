"""bash benchmarks/run.sh --compare OLD NEW: what changed between two files of rows, beyond the noise of both."""
import json
import math
import statistics
import sys

from .rows import significant

SMALLEST = 0.02  # what nobody should call a change, however quiet the machine was


def read(path):
    """{(benchmark, case, system, world_size): row}; the last one counts."""
    found = {}
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = (row["benchmark"], row["case"], row["system"], row["world_size"])
                if not all(math.isfinite(row[q]) and row[q] > 0 for q in ("p10", "p50", "p99")):
                    raise ValueError("a quantile is not a number above 0")
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"{path}, line {number} is no row of a benchmark: {type(error).__name__} {error}")
            found[key] = row
    return found


def noise(row):
    """How far the medians of the rounds are apart, as a share of theirs; where there are none, p10 from p50."""
    rounds = row.get("rounds") or []
    if len(rounds) >= 3:
        return (max(rounds) - min(rounds)) / statistics.median(rounds)
    return (row["p50"] - row["p10"]) / row["p50"]


def verdict(old, new):
    """The change of p50 in words, as a share of the old one, and whether it is beyond the noise."""
    change = new["p50"] / old["p50"] - 1
    bound = max(noise(old), noise(new), SMALLEST)
    if abs(change) <= bound:
        return f"within noise ({change:+.1%} of +-{bound:.1%})", False
    text = f"faster by {-change:.0%}" if change < 0 else f"slower by {change:.0%}"
    return f"{text}, beyond +-{bound:.1%}", True


def report(old, new):
    """Lines of text."""
    lines, changed = [], 0
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        if a["unit"] != b["unit"]:
            lines.append(f"  {describe(key)}: {a['unit']} there and {b['unit']} here cannot be compared")
            continue
        text, beyond = verdict(a, b)
        changed += beyond
        lines.append(f"{'*' if beyond else ' '} {describe(key)}: {significant(a['p50'])} -> {significant(b['p50'])}"
                     f" {a['unit']}: {text}")
    for title, ours, others in (("only in the old file", old, new), ("only in the new file", new, old)):
        lines += [f"  {describe(key)}: {title}" for key in ours if key not in others]
    both = sum(key in new for key in old)
    lines.append(f"{both} rows in both files, {changed} changed beyond the noise")
    return lines


def describe(key):
    benchmark, case, system, world_size = key
    return f"{benchmark}, {case}, {system} at {world_size}"


def main(old, new):
    for path in (old, new):
        if not path.exists():
            sys.exit(f"error: there is no file {path}")
    print("\n".join(report(read(old), read(new))))
    return 0
