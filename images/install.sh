#!/bin/sh
# install.sh IMPORTS LOCK... [-- PIP_OPTION...]: installs lock files into /opt/must, small.
#
# Packages' own tests and what only building against them needs (headers, stubs, static libraries, Fortran tools) goes.
# Only what IMPORTS loads is compiled to bytecode, not what nobody calls: at run time the file system is read-only and
# nothing can be compiled for later. IMPORTS 'all' compiles everything.
set -eu
imports=$1
shift
requirements=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    requirements="$requirements --requirement /opt/must/locks/$1"
    shift
done
[ $# -eq 0 ] || shift
compile=--no-compile
[ "$imports" != all ] || compile=--compile
# shellcheck disable=SC2086 # a word each
/opt/tools/bin/pip --python /opt/must/bin/python install --quiet --no-deps "$compile" \
    --disable-pip-version-check --root-user-action=ignore $requirements "$@"
find /opt/must/lib -type d \( -name tests -o -path '*/numpy/f2py' -o -path '*/numpy/distutils' \) -prune \
    -exec rm -r {} +
for kind in h hpp cuh a pxd pyi proto; do
    find /opt/must/lib -type f -name "*.$kind" -delete
done
# botocore describes each of Amazon's services: the bucket, and what logs in to it, stay. dateutil has time zones of its own
# in an archive, beside those of the system, for a module that nothing here imports.
find /opt/must/lib -mindepth 1 -path '*/botocore/data/*' -prune -type d ! -name s3 ! -name sts ! -name sso \
    ! -name sso-oidc ! -name signin -exec rm -r {} +
find /opt/must/lib -type f -name dateutil-zoneinfo.tar.gz -delete
[ "$imports" = all ] || PYTHONDONTWRITEBYTECODE="" /opt/must/bin/python -c "import $imports"
