#!/bin/sh
# sbom.sh FOLDER IMAGE...: a software bill of materials of each image, read from the image itself.
#
# IMAGE.python.cdx.json by cyclonedx-py, with licences and dependencies; IMAGE.debian.cdx.json by debsbom.
set -eu
folder=$1
shift
mkdir -p "$folder"
tools="${PREFIX}must-tools:$TAG"
for image in "$@"; do
    container=$("$ENGINE" create "$PREFIX$image:$TAG")
    "$ENGINE" export --output "$folder/root.tar" "$container"
    "$ENGINE" rm "$container" >/dev/null
    # Of Python's packages only what tells about them is unpacked, not a gigabyte of torch.
    "$ENGINE" run --rm --volume "$(cd "$folder" && pwd)/root.tar:/root.tar:ro" "$tools" sh -c 'mkdir /image \
        && tar -x -f /root.tar -C /image --wildcards "opt/must/bin/*" opt/must/pyvenv.cfg "opt/must/*.dist-info/*" \
        && cyclonedx-py environment --output-reproducible --of JSON /image/opt/must/bin/python' \
        >"$folder/$image.python.cdx.json"
    "$ENGINE" run --rm --volume "$(cd "$folder" && pwd)/root.tar:/root.tar:ro" "$tools" sh -c \
        'debsbom generate --root - --sbom-type cdx --out - </root.tar' \
        >"$folder/$image.debian.cdx.json" 2>"$folder/log"
    rm "$folder/root.tar"
done
"$ENGINE" run --rm --interactive --volume "$(cd "$folder" && pwd):/sbom:ro" "$tools" python - "$folder" <<'END'
import json, pathlib, sys

for file in sorted(pathlib.Path("/sbom").glob("*.cdx.json")):
    print(f"{sys.argv[1]}/{file.name}: {len(json.loads(file.read_text())['components'])} components")
END
