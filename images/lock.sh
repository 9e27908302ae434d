#!/bin/sh
# lock.sh: renews images/locks/*.txt from pyproject.toml and the *.in files; `make lock` runs it in must-tools.
#
# Made for Python 3.11, the oldest that is served. The base image may have any version from there on (the Makefile's has
# 3.13), for no package here is wanted by a newer Python alone.
#
# The images share layers, so each lock is bound to what the ones below it chose. torch and torchvision are left out of
# them: their wheels, and so the hashes, differ from index to index. torch-cuda.txt has them as PyPI does. To lock the
# CPU build by hash as well, where its index can be reached:
#
#   uv pip compile images/locks/torch.in --torch-backend cpu --generate-hashes -o images/locks/torch-cpu.txt
#   make images CPU_LOCK=torch-cpu.txt
#
# LOCK_ARGS: where uv finds a torch without CUDA to resolve with; --find-links DIR if not at PyTorch's own index.
set -eu
cd images/locks
lock() {
    output=$1
    shift
    uv pip compile --quiet --upgrade --generate-hashes --no-header --python-version 3.11 --output-file "$output" "$@"
}
without_torch="--constraint torch.in --no-emit-package torch --no-emit-package torchvision ${LOCK_ARGS:---torch-backend cpu}"
project=../../pyproject.toml
# shellcheck disable=SC2086 # a word each
{
    lock build.txt build.in
    lock tools.txt tools.in
    lock shard.txt --extra gcs --extra s3 --extra azure $project
    lock torch.txt --extra gcs --extra s3 --extra azure --extra export --extra serve --constraint shard.txt $without_torch $project
    lock train.txt --extra gcs --extra s3 --extra azure --extra train --constraint torch.txt $without_torch $project
    lock serve.txt --extra gcs --extra s3 --extra azure --extra serve --constraint shard.txt --constraint torch.txt $project
    lock torch-cuda.txt --constraint torch.txt torch.in
}
