"""Two machines with a slow link between them: network namespaces, joined by a veth pair that `tc tbf` limits."""
import contextlib
import os
import shutil
import subprocess

from .ranks import Host, Skip


def call(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(f"this system allows no such link: {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_hosts():
    """Yields the two Hosts, and a function that sets the rate of their link in Mbit/s."""
    if os.geteuid() != 0:
        raise Skip("network namespaces are made as root, and this is not root")
    for tool in ("ip", "tc"):
        if not shutil.which(tool):
            raise Skip(f"{tool} is not installed (Debian: iproute2)")
    spaces = [f"accel-bench-{os.getpid()}-{index}" for index in range(2)]
    addresses = ["192.168.7.100", "192.168.7.101"]

    def set_rate(mbit):
        for space in spaces:
            # A burst of one large segment: what the sender hands over at once. The queue holds 50 ms.
            call("tc", "-n", space, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{mbit}mbit",
                 "burst", "128kb", "latency", "50ms")  # fmt: skip

    try:
        for space in spaces:
            call("ip", "netns", "add", space)
            call("ip", "-n", space, "link", "set", "lo", "up")
        call("ip", "-n", spaces[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", spaces[1])
        for space, address in zip(spaces, addresses):
            call("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            call("ip", "-n", space, "link", "set", "eth0", "up")
        yield [Host(["ip", "netns", "exec", space], address, "eth0")
               for space, address in zip(spaces, addresses)], set_rate  # fmt: skip
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
