"""Rows: what a benchmark found, as a table and as lines of JSON."""
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics

TRAINERS = ("accel", "libtorch", "per_tensor", "cpp_reducer", "pytorch_ddp", "hf_accelerate")
SAVERS = ("raw_write", "read_and_checksum", "torch_save", "safetensors", "async_dcp")
SYSTEMS = (*TRAINERS, "pytorch", *SAVERS)  # pytorch: which is asked for an optimizer's step and no training


def quantile(values, q):
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def machine():
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


MACHINE = machine()


def versions():
    found = []
    for name in ("torch", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def significant(value):
    """Three digits that count, and no exponent: 0.0123, 1.23, 123, 12345."""
    digits = 2
    if abs(value) < 1e-9:
        return "0"
    scale = abs(value)
    while scale >= 10:
        scale, digits = scale / 10, digits - 1
    while scale < 1:
        scale, digits = scale * 10, digits + 1
    return f"{value:.{max(digits, 0)}f}"


class Row:
    """One system in one case. `rounds` holds a list of values for each turn that the system had."""

    def __init__(self, benchmark, case, system, world_size, unit, rounds, again=False, **more):
        assert system in SYSTEMS, system
        values = [value for turn in rounds for value in turn]
        self.benchmark, self.case, self.system, self.world_size, self.unit = benchmark, case, system, world_size, unit
        self.p10, self.p50, self.p99 = (quantile(values, q) for q in (0.1, 0.5, 0.99))
        self.count = len(values)
        self.rounds = [statistics.median(turn) for turn in rounds]
        self.again = again  # it stands in another case, too: the table has it once
        self.ratio_to = {}
        self.over = None  # p50 over that of accel in the same case, or of what else the table is about
        self.more = more

    def json(self):
        return json.dumps(
            {"benchmark": self.benchmark, "case": self.case, "system": self.system, "world_size": self.world_size,
             "unit": self.unit, "p10": self.p10, "p50": self.p50, "p99": self.p99, "ratio_to": self.ratio_to,
             "rounds": self.rounds, "values": self.count, "machine": MACHINE,
             **self.more}, allow_nan=False)  # fmt: skip


def relate(rows):
    """ratio_to of rows of one case: another system's p50 over this one's, so 2.0 says that this takes half of it."""
    for row in rows:
        row.ratio_to = {other.system: other.p50 / row.p50 for other in rows if other is not row}
        row.over = next((row.p50 / other.p50 for other in rows if other.system == "accel"), None)
    return rows


def print_table(rows, over="accel", columns=()):
    """One line per row, its p50 over that of `over` last. `columns` are names of what else a row holds."""
    width = max([len(row.case) for row in rows] + [24])
    print(f"{'case':{width}} {'ranks':>5} {'system':14} {'p10':>9} {'p50':>9} {'p99':>9} {'unit':7}"
          + "".join(f" {name.replace('_', ' '):>12}" for name in columns) + f" / {over}")
    last = None
    for row in rows:
        if row.again:
            continue
        ratio = f"{row.over:.2f}" if row.over is not None and row.over != 1 else ""
        case = row.case if row.case != last else ""
        last = row.case
        print(f"{case:{width}} {row.world_size:>5} {row.system:14} {significant(row.p10):>9} {significant(row.p50):>9}"
              f" {significant(row.p99):>9} {row.unit:7}"
              + "".join(f" {'' if row.more.get(name) is None else significant(row.more[name]):>12}" for name in columns)
              + f" {ratio:>7}")
