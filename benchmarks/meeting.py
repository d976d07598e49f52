# How long do a thousand ranks take to meet, what does rank 0 spend on them, and is a missing one named?
#
# Light ranks on loopback, without a backend: rank 0 is a process, the others are threads of a second one. libtorch is
# the same by the keys of LibTorch's TCPStore. An interval of accel's heartbeat is 1.5 s.
import json
import statistics
import subprocess

from support.ranks import Failed, free_port
from support.rows import Row, relate

SIZES = [64, 256, 1024, 4096]
PATIENCE_S = 5  # of programs/meeting.cpp


def start(bench, system, world_size, missing):
    """What both processes report: of rank 0, and of the others."""
    program, port = str(bench.build / "benchmarks" / "meeting"), str(free_port())
    processes = [
        subprocess.Popen([program, system, str(world_size), str(first), str(count), port, str(missing)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for first, count in ((0, 1), (1, world_size - 1))]  # fmt: skip
    reports = []
    for process in processes:
        try:
            output, errors = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise Failed(f"{world_size} ranks of {system} did not end within 180 s") from None
        if process.returncode != 0:
            raise Failed(f"{world_size} ranks of {system}: {errors.decode()[-2000:]}")
        reports.append(json.loads(output.decode().splitlines()[-1]))
    return reports


def check_names(reports, world_size, missing):
    """Everybody has named the one that did not come, and nobody else."""
    named = sum(report.get("named", 0) for report in reports)
    if named != world_size - 1:
        said = [text for report in reports for text in report.get("missed", {}).values()]
        raise Failed(f"of {world_size} ranks {named} have named rank {missing}, which alone stayed away; some say: {said}")


def run(bench):
    found, notes = [], []
    for world_size in bench.cpu_sizes(SIZES[:1] if bench.quick else SIZES):
        if world_size < 3:
            raise Failed("it takes 3 ranks at least")
        missing = world_size // 2
        for system in ("accel", "libtorch"):
            # More than a thousand clients of LibTorch's store on two cores take minutes.
            if system == "libtorch" and world_size > 1024:
                continue
            # A client of LibTorch's store asks for the name of its server: 5 s where the answer is lost.
            rounds = 1 if bench.quick or world_size > 256 or (system, world_size) == ("libtorch", 256) else 3
            meets, barriers, to_meet, idle = [], [], [], []
            for _ in range(rounds):
                reports = start(bench, system, world_size, missing if system == "accel" else -1)
                errors = [report["error"] for report in reports if "error" in report]
                if errors:
                    notes.append(f"    {world_size} ranks of {system} did not meet, or fell apart: {errors[0][:200]}\n")
                    break
                if system == "accel":
                    check_names(reports, world_size, missing)
                meets.append([max(report["met"] for report in reports) - min(report["begin"] for report in reports)])
                barriers.append([1e3 * seconds for seconds in reports[0]["barriers"]["first"]])
                to_meet.append(reports[0]["cpu_to_meet"])
                idle.append(1e3 * reports[0]["cpu_idle"])
            if meets:
                more = {"cpu_s_of_rank_0": statistics.median(to_meet), "idle_ms_per_s": statistics.median(idle)}
                found.append(Row(bench.name, f"{world_size} ranks meet", system, world_size, "s", meets, **more))
                found.append(Row(bench.name, f"{world_size} ranks, a barrier", system, world_size, "ms", barriers))
    cases = sorted({row.case for row in found}, key=lambda case: (int(case.split()[0]), case.endswith("barrier")))
    found = [row for case in cases for row in relate([one for one in found if one.case == case])]
    notes.append(f"    at each size all other ranks of accel have named the one that stayed away from a barrier for "
                 f"{PATIENCE_S} s, and nobody else\n")  # fmt: skip
    bench.add(found, columns=("cpu_s_of_rank_0", "idle_ms_per_s"), note="".join(notes))
