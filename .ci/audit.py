"""Known vulnerabilities of the packages in this environment, by one question to the OSV database.

Says one line where the database does not answer. The exit code is 1 where there are any, else 0.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from importlib.metadata import distributions

DATABASE = "https://api.osv.dev/v1/querybatch"
SECONDS = 10


def main() -> int:
    installed = sorted({(d.metadata["Name"], d.version.partition("+")[0]) for d in distributions()})
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in installed]
    asked = urllib.request.Request(DATABASE, json.dumps({"queries": queries}).encode(), method="POST")
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            results = json.load(answer)["results"]
    except (OSError, ValueError, KeyError) as error:
        print(f"Dependencies were not audited: {DATABASE} does not answer ({type(error).__name__}).")
        return 0
    found = {at: [each["id"] for each in one.get("vulns", [])] for at, one in zip(installed, results, strict=True)}
    affected = {at: ids for at, ids in found.items() if ids}
    for (name, version), ids in affected.items():
        print(f"{name} {version}: {', '.join(ids)}")
    print(f"Dependencies audited: {len(installed)}, with known vulnerabilities: {len(affected)}.")
    return bool(affected)


if __name__ == "__main__":
    sys.exit(main())
