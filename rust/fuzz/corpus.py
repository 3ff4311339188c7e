"""Seeds for the fuzz targets: `corpus.py FOLDER`.

From the files that come with pydicom, and from the curated ones where they are (see tests/support/instances.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pydicom

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support import odd_requests
from support.instances import Instance, curated_folder, from_file
from support.scu import echo_rq, fragments, store_rq

MOST_BYTES = 60_000
# As in the targets.
DATASETS = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
SOURCES = (*DATASETS[:3], "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5")
CONTEXTS = {"1.2.840.10008.1.2.1": 1, "1.2.840.10008.1.2": 3, "1.2.840.10008.1.2.1.99": 5}


def files() -> list[Path]:
    """Small real files."""
    curated = curated_folder()
    bundled = Path(pydicom.__file__).parent / "data" / "test_files"
    found = [*sorted(bundled.glob("*.dcm")), *(sorted(curated.glob("*.dcm")) if curated else ())]
    return [file for file in found if file.stat().st_size <= MOST_BYTES]


def seeds(one: Instance) -> dict[str, list[bytes]]:
    """What a file is for each target."""
    syntax, found = one.transfer_syntax, {"command": [store_rq(one.sop_class, one.sop_instance, 1)]}
    if syntax in DATASETS:
        found["dataset"] = [bytes([DATASETS.index(syntax), 100]) + one.dataset]
    if syntax in SOURCES:
        found["transcode"] = [bytes([SOURCES.index(syntax), target]) + one.dataset for target in range(4)]
    if syntax in CONTEXTS:
        context = CONTEXTS[syntax]
        command = store_rq("1.2.840.10008.5.1.4.1.1.2", one.sop_instance, 1)
        stream = fragments(context, True, command, 16384) + fragments(context, False, one.dataset, 4096)
        found["association"] = [stream, fragments(7, True, echo_rq(1), 128) + stream]
    return found


def write_requests(folder: Path) -> int:
    """A-ASSOCIATE-RQs, odd and refused ones."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = [one.pdu for one in odd_requests.taken()] + [pdu for pdu, _ in odd_requests.REFUSED.values()]
    for number, request in enumerate(requests):
        (folder / f"request-{number:04}").write_bytes(request)
    return len(requests)


def main(folder: Path) -> None:
    """Writes the seeds."""
    count = write_requests(folder / "association")
    for number, file in enumerate(files()):
        try:
            one = from_file(file)
            if one is None:
                continue
        except (ValueError, AttributeError, pydicom.errors.InvalidDicomError, UnicodeDecodeError):
            continue
        for target, contents in seeds(one).items():
            (folder / target).mkdir(parents=True, exist_ok=True)
            for variant, content in enumerate(contents):
                (folder / target / f"{number:04}-{variant}").write_bytes(content)
                count += 1
    sys.stdout.write(f"{count} seeds in {folder}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
