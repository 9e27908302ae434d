"""Lists a bucket of a million objects and plans their sharding, as `must shard` does: the client's time and memory.

    python benchmarks/listing.py [--store s3] [--objects 1000000]

On the servers that the tests use, a million objects would have to be uploaded one by one first. So a simulated server
generates the pages for each request: correct XML or JSON, with names like those of photo collections. "CPU" is that of
the listing process alone; "wall" includes the simulated server's work, instead of a real bucket's round trip for each
request.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HOST, PAGE = "127.0.0.1", 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("s3", "gs"), default="s3")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.objects)
        return
    if options.measure:
        print(json.dumps(measure(options.store)))
        return
    command = [sys.executable, __file__, "--store", options.store, "--objects"]
    print(f"{options.store}://, load before: {os.getloadavg()[0]:.1f}")
    print(f"{'objects':>10}{'requests':>10}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}")
    for count in (0, options.objects // 10, options.objects):
        with subprocess.Popen([*command, str(count), "--serve"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            url = f"http://{HOST}:{int(server.stdout.readline())}"
            settings = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
            settings |= {"AWS_REGION": "us-east-1", "STORAGE_EMULATOR_HOST": url}
            measuring, environment = [*command, str(count), "--measure"], os.environ | settings
            result = subprocess.run(measuring, env=environment, check=True, capture_output=True, text=True)
            server.kill()
        cost = json.loads(result.stdout)
        assert cost["items"] == count
        numbers = f"{cost['cpu']:>8.1f}{cost['wall']:>8.1f}{cost['peak'] / 1e6:>9.0f}"
        print(f"{count:>10}{max(1, -(-count // PAGE)):>10}{numbers}", flush=True)


def measure(store: str) -> dict[str, float]:
    """The listing of `must shard`, up to the plan of its units on a local disk."""
    from must.data.shards.listing import shuffle
    from must.data.sources.files import Folder, ListingReport

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = Folder(f"{store}://bucket/photos", "folder")
        plan = shuffle(source.items(ListingReport(lambda name, reason: None)), Path(folder), 1000)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "items": plan.items,
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - began,
        "peak": usage.ru_maxrss * 1024,
    }


def get_name(number: int) -> str:
    return f"photos/breed-{number % 997:03d}/IMG_2026{number:010d}.jpg"


def serve(count: int) -> None:
    """Answers S3's ListObjectsV2 and Cloud Storage's objects.list."""

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            google = url.path.startswith("/storage/")
            start = int(query.get("pageToken" if google else "continuation-token", 0))
            stop = min(count, start + PAGE)
            body = (as_json if google else as_xml)(start, stop, count).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if google else "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Pages)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever).start()


def as_xml(start: int, stop: int, count: int) -> str:
    contents = "".join(
        f"<Contents><Key>{get_name(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>127000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(start, stop)
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{stop}</NextContinuationToken>"
    end = more if stop < count else "<IsTruncated>false</IsTruncated>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>photos/</Prefix><KeyCount>{stop - start}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"{end}{contents}</ListBucketResult>"
    )


def as_json(start: int, stop: int, count: int) -> str:
    items = [{"name": get_name(number), "size": "127000"} for number in range(start, stop)]
    return json.dumps({"items": items} | ({"nextPageToken": str(stop)} if stop < count else {}))


if __name__ == "__main__":
    main()
