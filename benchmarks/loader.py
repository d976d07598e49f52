# What of a step is spent waiting for data, what does it cost to resume, and how much memory does a shuffled epoch take?
#
# One rank, and PyTorch's DataLoader on the same images and the same network; a worker has the second core. To resume is
# from a saved position to the first batch, of 10 million rows, against HF Accelerate's skip_first_batches. "permuted"
# is accel's order that is computed where it is looked at, "shuffled" PyTorch's, which is a list.
import importlib.util
import json
import os
import random
import subprocess
import tempfile

from support.ranks import FOLDER, Failed
from support.rows import Row, relate

IMAGES = 12800  # 200 batches
WIDTHS = {256: "a small network", 1024: "a larger one"}  # of its layers


def ask(bench, system, *arguments):
    words = [str(argument) for argument in arguments]
    if system == "accel":
        command = [str(bench.build / "benchmarks" / "loading"), *words]
    else:
        command = [bench.python, str(FOLDER / "programs" / "loading.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def waiting(bench):
    found = []
    with tempfile.NamedTemporaryFile() as file:
        pixels = random.Random(1)
        file.writelines(bytes([image % 10]) + pixels.randbytes(3072) for image in range(IMAGES))
        file.flush()
        cells = [("accel", 0), ("pytorch", 0), ("accel", 1), ("accel", 2), ("pytorch", 2)]
        cells = [(width, *cell) for width in WIDTHS for cell in cells]
        seen = {cell: [] for cell in cells}
        for _ in range(1 if bench.quick else 5):
            for width, system, workers in cells:
                steps = 40 if bench.quick else 190
                answer = ask(bench, system, "waiting", file.name, workers, steps, width)
                seen[width, system, workers].append(answer)
    for (width, system, workers), turns in seen.items():
        case = f"{WIDTHS[width]}, {workers} workers"
        share = sum(sum(turn["wait_ns"]) for turn in turns) / sum(sum(turn["step_ns"]) for turn in turns)
        found.append(Row(bench.name, case, system, 1, "ms", [[1e-6 * ns for ns in turn["step_ns"]] for turn in turns],
                         waiting_share=share))  # fmt: skip
    for case in dict.fromkeys(row.case for row in found):
        relate([row for row in found if row.case == case])
    bench.add(found, columns=("waiting_share",), note=(
        "    a step on 64 images, flipped and shifted; of two cores one trains; share: time in ++batch over all\n"))


def resuming(bench):
    rows, turns = (1_000_000, 1) if bench.quick else (10_000_000, 3)
    peer = bool(importlib.util.find_spec("accelerate"))
    if not peer:
        bench.say("    hf_accelerate IS LEFT OUT: accelerate is not installed and could not be")
    for place in (0.01, 0.5, 0.99):
        found = []
        for order in ("permuted", "shuffled"):
            answers = [ask(bench, "accel", "resume", order, rows, place) for _ in range(turns)]
            found.append(Row(bench.name, f"resume {order} at {place:.0%} of {rows}", "accel", 1, "ms",
                             [[1e-6 * answer["ns"]] for answer in answers]))  # fmt: skip
        if peer:
            answer = ask(bench, "hf_accelerate", "resume", rows, place)
            found.append(Row(bench.name, f"resume shuffled at {place:.0%} of {rows}", "hf_accelerate", 1, "ms",
                             [[1e-6 * answer["ns"]]]))  # fmt: skip
        relate(found[1:])
        bench.add(found)


def remembering(bench):
    rows = 1_000_000 if bench.quick else 100_000_000
    found = []
    for system, *order in (("accel", "permuted"), ("accel", "shuffled"), ("pytorch",)):
        answer = ask(bench, system, "memory", *order, rows)
        case = f"an epoch of {rows} rows, {(order or ['shuffled'])[0]}"
        found.append(Row(bench.name, case, system, 1, "MB", [[1e-6 * answer["bytes"]]]))
    relate(found[1:])
    bench.add(found, note="    more memory at the peak than for 1000 rows\n")


def run(bench):
    bench.cpu_sizes([1])
    waiting(bench)
    resuming(bench)
    remembering(bench)
