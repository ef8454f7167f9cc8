"""Checksums that agree with the damage, so that what lies behind them is met too."""

import json
from hashlib import sha256

from gemma_train.data.blocks import BlockChecks
from tests.fuzz.reader import Files

_NO_RECORD = (KeyError, ValueError, TypeError, AttributeError, RecursionError)


def targets(files: Files) -> Files:
    """Counts and checksums of the shards that are there, as the sidecar and the notes tell them."""
    files = dict(files)
    for name in ("teacher.json", "targets-00000.json", "targets-00001.json"):
        try:
            record = json.loads(files[f"store/{name}"] or b"")
            notes = record["shards"] if "shards" in record else [record["shard"]]
            first = 0 if "shards" in record else int(name[8:13])
            for number, shard in enumerate(notes, first):
                rows, targets = (files[f"store/targets-{number:05d}.{s}"] for s in ("rows", "bin"))
                shard["rows"], shard["bytes"] = len(rows or b"") // 24, len(targets or b"")
                shard["rows_sha256"] = sha256(rows or b"").hexdigest()
                shard["targets_sha256"] = sha256(targets or b"").hexdigest()
            files[f"store/{name}"] = json.dumps(record).encode()
        except _NO_RECORD:
            continue
    return files


def dataset(files: Files) -> Files:
    """Block checks and checksums of token shards, as dataset.json tells them."""
    files = dict(files)
    for name in [name for name in files if name.endswith("dataset.json")]:
        folder = name.removesuffix("dataset.json")
        try:
            record = json.loads(files[name] or b"")
            for number, shard in enumerate(record["shards"]):
                checks = b""
                for suffix, what in (
                    ("bin", "tokens"),
                    ("offsets", "offsets"),
                    ("images", "images"),
                ):
                    content = files[f"{folder}tokens-{number:05d}.{suffix}"] or b""
                    blocks = BlockChecks()
                    blocks.update(content)
                    checks += blocks.digest()
                    shard[f"{what}_sha256"] = sha256(content).hexdigest()
                files[f"{folder}tokens-{number:05d}.checks"] = checks
                shard["checks_sha256"] = sha256(checks).hexdigest()
            files[name] = json.dumps(record).encode()
        except _NO_RECORD:
            continue
    return files


def checkpoint(files: Files) -> Files:
    """Sizes and checksums of a checkpoint's files, as its seal tells them."""
    files = dict(files)
    for name in [name for name in files if "/seal-" in name]:
        folder = name.rpartition("/")[0]
        try:
            record = json.loads(files[name] or b"")
            for file in record["files"]:
                content = files[f"{folder}/{file['name']}"] or b""
                file["size"], file["sha256"] = len(content), sha256(content).hexdigest()
            files[name] = json.dumps(record).encode()
        except _NO_RECORD:
            continue
    return files
