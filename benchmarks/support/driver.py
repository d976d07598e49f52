"""What bash benchmarks/run.sh does once the programs are built."""
import argparse
import importlib
import importlib.util
import pathlib
import signal
import sys
import time

from . import compare, interleave, rows
from .ranks import FOLDER, Failed, Host, Skip, groups

def gpus():
    return [path for path in pathlib.Path("/dev").glob("nvidia[0-9]*")]


def lack_of_gpus(build):
    if not gpus():
        return "this machine has no GPU of NVIDIA's (no /dev/nvidia0)"
    if not (build / "benchmarks" / "rank_nccl").exists():
        return "there is no target accel::nccl (no NCCL beside a LibTorch for CUDA)"
    return None


def names():
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def question(name):
    """The first line of a benchmark's file."""
    with open(FOLDER / f"{name}.py") as lines:
        return lines.readline().lstrip("# ").strip()


class Bench:
    """What a benchmark's run(bench) is given."""

    def __init__(self, name, options):
        self.name, self.quick = name, options.quick
        self.world_sizes = options.ranks  # None: the benchmark's own
        self.build, self.python, self.device = options.build, options.python, options.device
        self.rounds, self.turn_s = (3, 0.2) if self.quick else (5, 0.5)
        self.rows = []

    def cpu_sizes(self, default):
        """The world sizes of a benchmark that has no variant for GPUs."""
        if self.device == "cuda":
            raise Skip("it runs on CPU ranks only")
        return self.world_sizes or default

    def here(self, world_size):
        return [Host()] * world_size

    def groups(self, systems, hosts, **settings):
        """The ranks of the systems that are there: {system: Group}."""
        if "hf_accelerate" in systems and not importlib.util.find_spec("accelerate"):
            self.say("    hf_accelerate IS LEFT OUT: accelerate is not installed and could not be")
            systems = [system for system in systems if system != "hf_accelerate"]
        return groups(systems, hosts, build=self.build, python=self.python, **settings)

    def places(self, world_sizes):
        """(device, world size, prefix of labels) to run on: CPU ranks, and one rank per GPU where there are some."""
        if self.device != "cuda":
            for world_size in self.world_sizes or world_sizes:
                yield "cpu", world_size, ""
        if self.device == "cpu":
            return
        lack = lack_of_gpus(self.build)
        if lack and self.device == "cuda":
            raise Skip(lack)
        if lack:
            self.say(f"    SKIPPED on GPUs: {lack}")
            return
        here = len(gpus())
        for world_size in self.world_sizes or ([1] if self.quick or here == 1 else [1, here]):
            if world_size > here:
                self.say(f"    SKIPPED on {world_size} GPUs: there are {here}")
            else:
                yield "cuda", world_size, "GPU, "

    def compare(self, label, cells, started, over=None, rounds=None, steps=None, probes=interleave.PROBES,
                bound=interleave.LOSS_BOUND, show=True, **more):
        """Runs cells in turns, after their losses have been found to be the same, and prints their rows, unless the
        caller will, with what follows from them.

        `over` is the case that the last column of the table relates to, where that is not accel in the same case."""
        world_size = started[cells[0].system].world_size
        rounds = rounds or self.rounds
        cells = interleave.open_cells(cells, started, probes)
        difference = interleave.check_losses(cells, label, bound)
        steps = steps or interleave.steps_in(self.turn_s, cells, started)
        interleave.take_turns(cells, started, rounds, steps, warm=max(1, steps // 10))
        interleave.close_cells(cells, started)
        found = interleave.rows_of(self.name, label, cells, world_size, threads=1, **more)
        if over:
            reference = next(row for row in found if row.case == over)
            for row in found:
                row.over = row.p50 / reference.p50
        note = f"    {rounds} rounds of {steps} steps; losses within {difference:.0e}\n"
        if show:
            self.add(found, over or "accel", note=note)
        return found if show else (found, note)

    def add(self, found, over="accel", columns=(), note=""):
        self.rows += found
        rows.print_table(found, over, columns)
        self.say(note)

    def say(self, text):
        print(text, flush=True)


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="bash benchmarks/run.sh", allow_abbrev=False,
        description="Runs benchmarks, all of them where none is named: " + ", ".join(names()))  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds: less than 50 s each")
    parser.add_argument("--ranks", type=int, metavar="N", help="this world size only")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="only there; both where nothing is said")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write the rows there, a JSON object a line")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), type=pathlib.Path,
                        help="say what changed between two such files, and run nothing")  # fmt: skip
    parser.add_argument("--only-check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--build", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--python", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in names():
            parser.error(f'there is no benchmark "{name}"; there are: {", ".join(names())}')
    if options.ranks is not None and options.ranks < 1:
        parser.error(f"--ranks {options.ranks} must be at least 1")
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    options.ranks = [options.ranks] if options.ranks else None
    return options


def main(arguments):
    options = options_of(arguments)
    if options.compare:
        return compare.main(*options.compare)
    if options.only_check:
        return 0
    print(f"on {rows.MACHINE}; one thread per rank; {rows.versions()}", flush=True)
    if not options.names:
        for name in names():
            print(f"    {name:14} {question(name)}")
    written = 0
    failed = []
    if options.json:
        options.json.write_text("")
    for name in options.names or names():
        begin = time.monotonic()
        bench = Bench(name, options)
        print(f"==> {name}: {question(name)}", flush=True)
        try:
            importlib.import_module(name).run(bench)
        except Skip as skip:
            bench.say(f"    SKIPPED: {skip}")
        except (Failed, interleave.Different) as error:
            failed.append(name)
            print(f"\nerror: {name}: {error}\n", file=sys.stderr, flush=True)
        if options.json:
            with open(options.json, "a") as file:
                file.writelines(row.json() + "\n" for row in bench.rows)
        written += len(bench.rows)
        bench.say(f"    {time.monotonic() - begin:.0f} s: {name}")
    if options.json:
        print(f"{written} rows are in {options.json}")
    if failed:
        print("FAILED: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the ranks and takes the link down
    sys.exit(main(sys.argv[1:]))
