"""Sharding and labelling a bucket on paper: requests, bytes, hours and cost by the number of pods.

    python benchmarks/bucket_scaling.py                        the tables of docs/scaling.md
    python benchmarks/bucket_scaling.py --images 1e9 --latency 0.03 --get-price 0.0004

Nothing is run here. What was measured elsewhere (docs/data.md, docs/benchmarks.md) and what is assumed is said beside
each number; every one of them is an option.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

UNIT = 1000  # images of a unit and a shard
PAGE = 1000  # names of a request of a listing
READERS = 16  # records fetched at once


@dataclass(frozen=True)
class Input:
    flag: str
    value: float
    unit: str
    origin: str


INPUTS = [
    Input("images", 1e8, "", "the question"),
    Input("image-kb", 127, "kB", "assumed: the benchmarks' JPEGs of 500 x 400"),
    Input("cores", 8, "a pod", "assumed"),
    Input("shard-rate", 578, "images/s a core", "measured: `must shard`, decoding, on a local disk"),
    Input("list-cpu", 25, "s a million names", "measured: gs://, with the plan; machine busy"),
    Input("latency", 0.1, "s a request", "assumed"),
    Input("record-kb", 80, "kB a unit", "calculated: 80 bytes an image"),
    Input("bandwidth", 1.0, "GB/s a pod", "assumed"),
    Input("sum-cpu", 0.83, "s a million", "measured: checksums compared"),
    Input("predict-rate", 1033, "images/s a core", "measured: decoding alone, JPEGs of 320 x 240"),
    Input("gpu-rate", 6000, "images/s a GPU", "assumed: ViT-B/16 in fp16"),
    Input("list-price", 5e-6, "$ a listing, write or copy", "assumed: a list price of S3"),
    Input("get-price", 4e-7, "$ a read", "assumed: a list price of S3"),
    Input("egress-price", 0.02, "$ a GB", "assumed: to another region; 0 inside one"),
    Input("core-price", 0.045, "$ a core and hour", "assumed"),
    Input("gpu-price", 4.0, "$ a GPU and hour", "assumed"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for one in INPUTS:
        parser.add_argument(f"--{one.flag}", type=float, default=one.value, help=f"{one.unit} [{one.value:g}]")
    parser.add_argument("--pods", type=int, nargs="+", default=[1, 4, 16, 64])
    options = parser.parse_args()
    print("| | value | | where from |\n|---|--:|---|---|")
    for one in INPUTS:
        print(f"| `--{one.flag}` | {one.value:g} | {one.unit} | {one.origin} |")
    print("\n**Sharding**\n")
    print("| pods | listing | units | the last part | hours | listings, writes, copies | reads | requests | cores |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for pods in options.pods:
        print(sharding(options, pods))
    print("\n**Labelling**, a GPU a pod\n")
    print("| pods | hours | reads | read | requests | pods' price |\n|--:|--:|--:|--:|--:|--:|")
    for pods in options.pods:
        print(labelling(options, pods))
    gigabytes = options.images * options.image_kb * 1e3 / 1e9
    print(f"\n{gigabytes / 1e3:.1f} TB; read once from another region: ${gigabytes * options.egress_price:,.0f}")
    print(
        f"Disk of each part for its plan: {2 * 200 * options.images / 1e9:.0f} GB; of the last one, besides: ", end=""
    )
    print(f"{(36 * options.images + options.record_kb * 1e3 * options.images / UNIT) / 1e9:.0f} GB")


def sharding(o: argparse.Namespace, pods: int) -> str:
    units, pages = o.images / UNIT, o.images / PAGE
    listing = (pages * o.latency + o.images / 1e6 * o.list_cpu) / 3600
    work = o.images / (pods * o.cores * o.shard_rate) / 3600
    fetched = units * max(o.latency / READERS, o.record_kb * 1e3 / (o.bandwidth * 1e9))
    # A shard: copied, its piece deleted, its offsets written; one after the other in each worker.
    last = (fetched + o.images / 1e6 * o.sum_cpu + units * 3 * o.latency / o.cores) / 3600
    writes = pods * pages + 2 * units + 2 * units  # pieces and records; copies and offsets. Deleting is free
    reads = o.images + units
    hours = listing + work + last
    price = writes * o.list_price + reads * o.get_price
    cores = o.core_price * o.cores * (pods * (listing + work) + last)
    return (
        f"| {pods} | {listing:.1f} h | {work:.1f} h | {last:.1f} h | **{hours:.1f}** | {writes / 1e6:.2f} M | "
        f"{reads / 1e6:.0f} M | ${price:,.0f} | ${cores:,.0f} |"
    )


def labelling(o: argparse.Namespace, pods: int) -> str:
    rate = min(o.gpu_rate, o.cores * o.predict_rate)
    hours = o.images / (pods * rate) / 3600
    reads = o.images / UNIT * (2 + max(1, UNIT * o.image_kb * 1e3 / (32 << 20)))  # in ranges of 32 MiB; offsets
    price = hours * pods * (o.gpu_price + o.cores * o.core_price)
    return (
        f"| {pods} | {hours:.1f} | {reads / 1e6:.2f} M | {o.images * o.image_kb / 1e9:,.1f} TB | "
        f"${reads * o.get_price + o.images / UNIT * o.list_price:,.2f} | ${price:,.0f} |"
    )


if __name__ == "__main__":
    main()
