"""audit.py LOCK...: checks locked packages for known vulnerabilities, with pip-audit. `make audit` runs it.

Exit code 0: all were checked and none is known to be vulnerable; 1: some are; 3: some or all could not be checked.
pip-audit itself exits with 0 and "No known vulnerabilities found" even if it could not check a single package."""

import json
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path("/locks")


def main() -> None:
    pins = sorted({pin for lock in sys.argv[1:] for pin in read_pins(LOCKS / f"{lock}.txt")})
    requirements = Path("/tmp/pins.txt")
    requirements.write_text("\n".join(pins) + "\n")
    command = ["pip-audit", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
    result = subprocess.run([*command, "--requirement", requirements], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: NOT DONE: pip-audit gave no answer for the {len(pins)} locked packages: {reason}")
        raise SystemExit(3) from None
    skipped = [package for package in packages if "skip_reason" in package]
    vulnerabilities = [(package, problem) for package in packages for problem in package.get("vulns", [])]
    for package, problem in vulnerabilities:
        fixed = ", ".join(problem["fix_versions"]) or "no release"
        print(f"audit: {package['name']} {package['version']}: {problem['id']}, fixed in {fixed}")
    checked = len(packages) - len(skipped)
    print(f"audit: {len(pins)} locked packages, {checked} looked up, {len(vulnerabilities)} known vulnerabilities")
    if skipped:
        print(
            f"audit: {'NOT DONE' if not checked else 'INCOMPLETE'}: {len(skipped)} could not be looked up, such as "
            f"{skipped[0]['name']}: {skipped[0]['skip_reason']}"
        )
    raise SystemExit(1 if vulnerabilities else 3 if skipped else 0)


def read_pins(lock: Path) -> list[str]:
    return re.findall(r"^[a-zA-Z0-9_.-]+==[^\s;\\]+", lock.read_text(), re.M)


main()
