"""gs:// from inside a container, against a real server of the protocol."""

import os

from must.base import storage
from tests.containers.engine import run


def test_sharding_into_a_bucket(demo, bucket_server):
    options = ("--network", "host", "--env", f"STORAGE_EMULATOR_HOST={os.environ['STORAGE_EMULATOR_HOST']}")
    source = ("--source", "/data/images/test", "--labels", "folder", "--output", f"{bucket_server.uri}/shards")
    run("must-shard", "must", "shard", *source, data=demo, options=options)
    names = {entry.name for entry in storage.list_files(f"{bucket_server.uri}/shards")}
    assert "index.json" in names and any(name.endswith(".tar") for name in names)
    result = run("must-shard", "must", "index", "verify", f"{bucket_server.uri}/shards", options=options)
    assert "500" in result.stdout
