# What does each public header cost the compiler, over the third-party headers that it needs?
#
# Seconds of processor time and peak memory of -O0 -fsyntax-only. accel: the header alone, and the umbrella behind
# torch/torch.h, as in a program; libtorch: in its place the third-party headers that it and ours below it include.
import json
import os
import re
import shlex
import subprocess
import tempfile

from support.ranks import FOLDER, Failed, Skip
from support.rows import Row, relate

INCLUDE = FOLDER.parent / "include"
THIRD_PARTY = ("torch/", "ATen/", "c10/", "nlohmann/")
UMBRELLA = "accel/accelerator.hpp"
QUICK = ("accel/core/error.hpp", "accel/launch/topology.hpp", "accel/tensor/spec.hpp")


def includes(header):
    text = (INCLUDE / header).read_text()
    return re.findall(r"^ *# *include <([^>]+)>", text, re.MULTILINE)


def below(header, seen):
    """`header` and ours that it includes, and those of others. NCCL's are behind a macro."""
    others = []
    if header in seen or header == "accel/backend/nccl.hpp":
        return others
    seen.add(header)
    for name in includes(header):
        others += below(name, seen) if name.startswith("accel/") else [name]
    return others


def third_party(header):
    return sorted({name for name in below(header, set()) if name.startswith(THIRD_PARTY)})


def compiler(build):
    """The compiler and its flags, but for those that say what to make."""
    commands = build / "compile_commands.json"
    if not commands.exists():
        raise Skip(f"there is no {commands}, which bash benchmarks/run.sh makes")
    entry = next(entry for entry in json.loads(commands.read_text()) if entry["file"].endswith("programs/rank.cpp"))
    words = shlex.split(entry["command"])
    drop = {words.index("-o"), words.index("-o") + 1, words.index("-c"), words.index("-c") + 1}
    return [word for place, word in enumerate(words) if place not in drop and not re.match(r"-O\d|-W|-DNDEBUG", word)]


def compile_(command, headers):
    """(seconds, MB) of a file that includes these."""
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as source:
        source.write("".join(f"#include <{name}>\n" for name in headers))
        source.flush()
        process = subprocess.Popen([*command, "-O0", "-fsyntax-only", source.name], stderr=subprocess.PIPE)
        error = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
    if process.returncode != 0:
        raise Failed(f"{headers} do not compile:\n{error[:2000]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(bench, command, case, ours, others, rounds):
    """Both in turns."""
    headers = {"accel": ours, "libtorch": others}
    seconds, megabytes = {"accel": [], "libtorch": []}, {"accel": 0.0, "libtorch": 0.0}
    for turn in range(rounds):
        for system in sorted(headers, reverse=turn % 2 == 1):
            took, peak = compile_(command, headers[system])
            seconds[system].append([took])
            megabytes[system] = max(megabytes[system], peak)
    rows = [Row(bench.name, case, system, 1, "s", seconds[system], peak_mb=megabytes[system]) for system in headers]
    return relate(rows)


def umbrella(bench, command):
    """Over all that it needs, and over torch/torch.h alone."""
    behind = f"{UMBRELLA} behind torch/torch.h"
    found = measure(bench, command, behind, ["torch/torch.h", UMBRELLA],
                    ["torch/torch.h", *third_party(UMBRELLA)], 3)  # fmt: skip
    seconds, megabytes = zip(*(compile_(command, ["torch/torch.h"]) for _ in range(3)))
    ours = next(row for row in found if row.system == "accel")
    return found + relate([
        Row(bench.name, f"{behind} alone", system, 1, "s", [[took] for took in rounds], peak_mb=peak)
        for system, rounds, peak in [("accel", ours.rounds, ours.more["peak_mb"]), ("libtorch", seconds, max(megabytes))]
    ])


def run(bench):
    bench.cpu_sizes([1])
    command = compiler(bench.build)
    headers = sorted(str(path.relative_to(INCLUDE)) for path in (INCLUDE / "accel").rglob("*.hpp"))
    headers = [header for header in headers if "/detail/" not in header and "nccl" not in header and header != UMBRELLA]
    if not bench.quick:
        bench.add(umbrella(bench, command), columns=("peak_mb",), note="    3 compilations of each, in turns\n")
    found = []
    for header in QUICK if bench.quick else headers:
        found += measure(bench, command, header, [header], third_party(header), 3 if bench.quick else 1)
    bench.add(found, columns=("peak_mb",), note=("    headers of NCCL are left out; compilations of each, in turns: "
                                                 f"{3 if bench.quick else 1}\n"))  # fmt: skip
