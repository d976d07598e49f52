# How long does a save stop a training, how fast does it write, and how long until parameters hold verified bytes again?
#
# One rank with AdamW, of which a second core is left to the writer. Against torch.save, Python's safetensors and async
# torch.distributed.checkpoint on the same network, and against writing and flushing, or reading and checking, as many
# bytes. accel's files are flushed to the disk and carry checksums; those of the others neither. A stall is the call that
# saves and what the step behind it takes longer than others do.
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile

from support.ranks import FOLDER, Failed
from support.rows import Row, relate

PEERS = ("torch_save", "safetensors", "async_dcp")


def ask(bench, system, megabytes, steps):
    with tempfile.TemporaryDirectory(dir=bench.build) as folder:
        command = [str(bench.build / "benchmarks" / "saving")]
        if system != "accel":
            command = [bench.python, str(FOLDER / "programs" / "saving.py"), system]
        command += [folder, str(megabytes), str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def run(bench):
    bench.cpu_sizes([1])
    megabytes, steps, turns = (60, 5, 1) if bench.quick else (400, 12, 5)
    peers = PEERS
    if not importlib.util.find_spec("safetensors"):
        bench.say("    safetensors IS LEFT OUT: it is not installed and could not be")
        peers = [peer for peer in PEERS if peer != "safetensors"]
    seen = {system: [] for system in ("accel", *peers)}
    for _ in range(turns):
        for system, answers in seen.items():
            answers.append(ask(bench, system, megabytes, steps))
    found = []

    def rows(case, value, systems=tuple(seen)):
        case = f"{case} of {megabytes} MB"
        rows = [Row(bench.name, case, system, 1, "ms", [[1e-6 * value(answer)] for answer in seen[system]])
                for system in systems]  # fmt: skip
        found.extend(relate(rows))

    def stall(answer):
        return answer["call_ns"] + max(0, answer["first_ns"] - statistics.median(answer["alone_ns"]))

    rows("a stall by a save", stall)
    # Each in the place of an older one.
    rows("a save until it is there", lambda answer: statistics.median(answer["whole_ns"]))
    rows("a save into a new folder", lambda answer: statistics.median(answer["written_ns"]), ("accel",))
    raw = Row(bench.name, found[-1].case, "raw_write", 1, "ms",
              [[1e-6 * statistics.median(answer["raw_ns"])] for answer in seen["accel"]])  # fmt: skip
    relate([found[-1], raw])
    found.append(raw)
    floor = Row(bench.name, f"a load of {megabytes} MB", "read_and_checksum", 1, "ms",
                [[1e-6 * answer["read_ns"]] for answer in seen["accel"]])  # fmt: skip
    loaders = tuple(system for system in seen if "load_ns" in seen[system][0])
    rows("a load", lambda answer: answer["load_ns"], loaders)
    relate([*(row for row in found if row.case == floor.case), floor])
    found.append(floor)
    rows("a look at one tensor", lambda answer: answer["open_ns"], loaders)
    notes = ""
    for system, answers in seen.items():
        behind = [answer["first_ns"] for answer in answers]
        alone = [ns for answer in answers for ns in answer["alone_ns"]]
        notes += (
            f"    {system}: the step behind a save takes {1e-6 * statistics.median(behind):.1f} ms (most "
            f"{1e-6 * max(behind):.1f}), others {1e-6 * statistics.median(alone):.1f} (most {1e-6 * max(alone):.1f})\n"
        )
        beside = [ns for answer in answers for ns in answer["during_ns"]]
        if beside:
            notes += (
                f"    {system}: later ones, while that is written, {1e-6 * statistics.median(beside):.1f} ms "
                f"({len(beside)} steps)\n"
            )
    throughput = statistics.median(
        raw / whole for answer in seen["accel"] for raw, whole in zip(answer["raw_ns"], answer["written_ns"])
    )
    notes += f"    accel writes at {throughput:.2f} of the speed of raw write and flush\n"
    bench.add(found, note=notes)
