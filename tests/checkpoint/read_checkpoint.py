"""A reader of accel's checkpoints, written from README's page on their format: checks everything, prints what is there.

usage: python read_checkpoint.py folder

It needs the standard library only. A line per part and entry: part, rank (or -), name, dtype, shape, value of a number or
CRC-32C of a tensor's bytes. It leaves with 1 and a sentence at the first thing that is not as it should be.
"""

import json
import os
import struct
import sys

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return f"{crc ^ 0xFFFFFFFF:08x}"


def require(holds, sentence):
    if not holds:
        sys.exit(sentence)


def read_manifest(folder):
    with open(os.path.join(folder, "manifest.json"), "rb") as file:
        first = file.readline()
        rest = file.read()
    require(first == b'{"crc32c": "%s",\n' % crc32c(rest).encode(), "manifest.json is damaged")
    return json.loads(first + rest)


def read_header(folder, name, entry):
    path = os.path.join(folder, name)
    require(os.path.getsize(path) == entry["bytes"], f"{name} has another size")
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(struct.unpack("<Q", length)[0])
    require(crc32c(length + header) == entry["crc32c"], f"the header of {name} is damaged")
    return 8 + len(header), json.loads(header)


def main(folder):
    manifest = read_manifest(folder)
    require(manifest["format"] == "accel checkpoint" and manifest["version"] == 1, "another format, or a newer one")
    headers = {}
    for name, entry in manifest["files"].items():
        if entry["tensors"]:
            headers[name] = read_header(folder, name, entry)
        else:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            require(len(data) == entry["bytes"] and crc32c(data) == entry["crc32c"], f"{name} is damaged")
    print("checkpoint", manifest["step"], manifest["world_size"])
    for part in manifest["parts"]:
        own = part.get("rank", "-")
        prefix = f"rank{own}/" if "rank" in part else ""
        for name, value in part["values"].items():
            print(part["name"], own, name, "float" if isinstance(value, float) else "int", "[]", repr(value))
        for name, entry in part["tensors"].items():
            begin, header = headers[entry["file"]]
            stored = header[f"{prefix}{part['name']}/{name}"]
            require(stored["dtype"] == entry["dtype"] and stored["shape"] == entry["shape"], f"{name} is another tensor")
            at, end = stored["data_offsets"]
            with open(os.path.join(folder, entry["file"]), "rb") as file:
                file.seek(begin + at)
                data = file.read(end - at)
            require(crc32c(data) == entry["crc32c"], f"{part['name']}/{name} in {entry['file']} is damaged")
            print(part["name"], own, name, entry["dtype"], entry["shape"], entry["crc32c"])


main(sys.argv[1])
