"""Decoding to Explicit VR Little Endian: against pydicom's plugins in one process, against DCMTK and GDCM as programs.

Every round asserts first that all of them give the same pixels (lossy sources: one grey level, two in colour).
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_decoder

from quiet import quiet
from storescp import _core
from storescp.engine import pool_config
from storescp.settings import Settings
from support.compressed import compressed_ct
from support.instances import Instance, curated_folder, dataset_of, from_file
from support.references import largest_difference
from support.scu import RawAssociation
from support.service import ServiceProcess

EXPLICIT = "1.2.840.10008.1.2.1"
ROUNDS = 9
# One store is short beside what the machine does on its own.
RECEIVING_ROUNDS = 15
COPIES = 60
# As a worker process does it: the frames of an instance, or the blocks of one frame, on all cores.
CORES = len(os.sched_getaffinity(0))
# What the service reserves and writes at a time.
RESERVED_BYTES = 16 << 20
WRITTEN_BYTES = 512 << 10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
FILES = {
    "RLE": "wg04_CT1_RLE.dcm",
    "JPEG Baseline": "orth_1.2.840.10008.1.2.4.50.dcm",
    "JPEG Extended, 12 bit": "wg04_MR1_JPLY.dcm",
    "JPEG Lossless": "wg04_CT1_JPLL.dcm",
    "JPEG-LS": "wg04_CT1_JLSL.dcm",
    "JPEG-LS near lossless": "wg04_CT1_JLSN.dcm",
    "JPEG 2000 lossless": "wg04_CT1_J2KR.dcm",
    "JPEG 2000": "wg04_US1_J2KI.dcm",
    "HTJ2K": "pdd_HTJ2KLossless_08_RGB.dcm",
}
PROGRAMS: dict[str, list[list[str]]] = {
    "RLE": [["dcmdrle"], ["gdcmconv", "--raw"]],
    "JPEG Baseline": [["dcmdjpeg"], ["gdcmconv", "--raw"]],
    "JPEG Extended, 12 bit": [["dcmdjpeg"]],
    "JPEG Lossless": [["dcmdjpeg"], ["gdcmconv", "--raw"]],
    "JPEG-LS": [["dcmdjpls"], ["gdcmconv", "--raw"]],
    "JPEG-LS near lossless": [["dcmdjpls"], ["gdcmconv", "--raw"]],
    "JPEG 2000 lossless": [["gdcmconv", "--raw"]],
    "JPEG 2000": [["gdcmconv", "--raw"]],
    "HTJ2K": [],
}


@pytest.fixture(scope="module", autouse=True)
def memory_that_stays() -> None:
    """As in a worker process: the memory of a frame is not given back to the system after each."""
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(M_MMAP_THRESHOLD, 1 << 25) == mallopt(M_TRIM_THRESHOLD, 1 << 25) == 1


@pytest.fixture(scope="module")
def curated() -> Path:
    folder = curated_folder()
    if folder is None:
        pytest.skip("the folder of curated files is not here")
    return folder


def medians(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds, interleaved, each with one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(ROUNDS + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_this_process(path: Path, one: Instance) -> dict[str, Callable[[], object]]:
    content = path.read_bytes()
    syntax = one.transfer_syntax
    found: dict[str, Callable[[], object]] = {
        "storescp": lambda: _core.transcode(one.dataset, syntax, EXPLICIT, 1 << 30, CORES),
        "storescp, one thread": lambda: _core.transcode(one.dataset, syntax, EXPLICIT, 1 << 30),
    }
    decoder = get_decoder(syntax)
    ours = _pixels(path, found["storescp"]())
    for plugin in decoder.available_plugins:
        if plugin == "gdcm":
            continue

        def decode(plugin: str = plugin) -> np.ndarray:
            dataset = pydicom.dcmread(io.BytesIO(content))
            return decoder.as_array(dataset, decoding_plugin=plugin)[0]

        try:
            theirs = decode()
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises
            print(f"{path.name}: {plugin}: {str(error)[:80]!r}")
            continue
        difference = largest_difference(ours, theirs)
        # Richter's libjpeg upsamples colour in another way.
        assert difference is not None
        assert difference <= (16 if plugin == "pylibjpeg" and syntax.endswith(".50") else 2), (path.name, plugin)
        found[f"pydicom, {plugin}"] = decode
    return found


def _pixels(path: Path, dataset: object) -> np.ndarray:
    assert isinstance(dataset, bytes)
    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
    meta.TransferSyntaxUID = EXPLICIT
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, pydicom.dcmread(io.BytesIO(dataset), force=True), little_endian=True, implicit_vr=False)
    content = pydicom.dcmread(io.BytesIO(buffer.getvalue()), force=True)
    content.file_meta = meta
    return content.pixel_array


@pytest.mark.parametrize("codec", FILES)
def test_in_one_process(curated: Path, codec: str) -> None:
    path = curated / FILES[codec]
    one = from_file(path)
    assert one is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = medians(in_this_process(path, one))
    _show(codec, found, len(_core.transcode(one.dataset, one.transfer_syntax, EXPLICIT, 1 << 30)), 1)


@pytest.mark.parametrize("codec", [name for name, programs in PROGRAMS.items() if programs])
def test_as_programs(curated: Path, bench_folder: Path, codec: str) -> None:
    """A folder of files: ours as one command, theirs one process for each file, two at a time."""
    source = bench_folder / "source"
    source.mkdir()
    for number in range(COPIES):
        shutil.copy(curated / FILES[codec], source / f"{number:04}.dcm")
    target = bench_folder / "target"

    def fresh() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

    def storescp() -> None:
        fresh()
        subprocess.run(
            [sys.executable, "-m", "storescp", "transcode", str(source), str(target), "--to", EXPLICIT],
            check=True, capture_output=True,
        )  # fmt: skip

    def program(command: list[str]) -> Callable[[], None]:
        def run() -> None:
            fresh()
            script = f"ls {source} | xargs -P 2 -I@ {' '.join(command)} {source}/@ {target}/@"
            subprocess.run(["sh", "-c", script], check=True, capture_output=True)

        return run

    candidates: dict[str, Callable[[], object]] = {"storescp": storescp}
    ours = None
    storescp()
    ours = pydicom.dcmread(target / "0000.dcm").pixel_array
    for command in PROGRAMS[codec]:
        run = program(command)
        try:
            run()
            theirs = pydicom.dcmread(target / "0000.dcm").pixel_array
        except Exception as error:  # noqa: BLE001 - a program that cannot read the file is not compared
            print(f"{codec}: {command[0]}: {str(error)[:80]!r}")
            continue
        assert (largest_difference(ours, theirs) or 0) <= 2, (codec, command)
        candidates[command[0]] = run
    size = sum(file.stat().st_size for file in target.iterdir())
    _show(codec, medians(candidates), size, COPIES)


def _show(codec: str, found: dict[str, float], size: int, instances: int) -> None:
    ours = found["storescp"]
    rest = {name: seconds for name, seconds in found.items() if name != "storescp"}
    others = [seconds for name, seconds in rest.items() if not name.startswith("storescp")]
    parts = [f"storescp {size / ours / 1e6:.0f} MB/s ({instances / ours:.0f}/s)"]
    parts += [f"{name} {size / seconds / 1e6:.0f} MB/s ({ours / seconds:.2f})" for name, seconds in rest.items()]
    best = min(others, default=float("nan"))
    print(f"\n{codec}: {', '.join(parts)}; {best / ours:.2f} times the fastest")


@pytest.mark.parametrize("pixels", ["a slice", "noise"])
@pytest.mark.parametrize(
    ("codec", "rounds"),
    [("1.2.840.10008.1.2.4.90", 5), ("1.2.840.10008.1.2.4.80", 15), ("1.2.840.10008.1.2.5", 101)],
    ids=["JPEG 2000", "JPEG-LS", "RLE"],
)
def test_frames_at_a_time(curated: Path, bench_folder: Path, codec: str, rounds: int, pixels: str) -> None:
    """A multi-frame instance of 100 frames by a worker process with one thread and with two."""
    frame = pydicom.dcmread(curated / FILES["RLE"]).pixel_array.tobytes() if pixels == "a slice" else None
    one = compressed_ct(1, codec, frames=100, rows=512, pixels=frame)
    source = bench_folder / "source.dcm"
    source.write_bytes(one.dataset)

    def worker(threads: int) -> Callable[[], float]:
        pool = _core.Transcoder(json.dumps(pool_config(Settings()) | {"threads": threads, "workers": 1}))
        target = bench_folder / f"target-{threads}"

        def run() -> float:
            target.unlink(missing_ok=True)
            began = time.perf_counter()
            pool.transcode_file(source, 0, target, b"", codec, EXPLICIT, 1 << 30)
            return time.perf_counter() - began

        return run

    native = _core.transcode(one.dataset, codec, EXPLICIT, 1 << 30)
    view = memoryview(native)

    def written() -> float:
        """What the file system takes for the result, which is in memory: a file has one writer at a time."""
        target = bench_folder / "target-written"
        target.unlink(missing_ok=True)
        began = time.perf_counter()
        with target.open("wb", buffering=0) as file:
            for start in range(0, len(native), RESERVED_BYTES):
                os.posix_fallocate(file.fileno(), start, min(RESERVED_BYTES, len(native) - start))
            for start in range(0, len(native), WRITTEN_BYTES):
                assert file.write(view[start : start + WRITTEN_BYTES]) == min(WRITTEN_BYTES, len(native) - start)
        return time.perf_counter() - began

    single, double = worker(1), worker(2)
    for run in (single, double, written):
        run()
    assert {(bench_folder / f"target-{name}").read_bytes() for name in (1, 2, "written")} == {native}
    seconds = [(single(), double(), written()) for _ in range(rounds)]
    one_thread, two, file = (statistics.median(values) for values in zip(*seconds, strict=True))
    print(
        f"\n{codec}, 100 frames of {pixels}: one thread {one_thread * 1000:.1f} ms, two {two * 1000:.1f} ms "
        f"({one_thread / two:.2f}); the file alone {file * 1000:.1f} ms"
    )


@pytest.mark.parametrize("associations", [1, 4])
@pytest.mark.parametrize("codec", ["JPEG-LS", "JPEG 2000 lossless", "RLE"])
def test_receiving_with_transcoding(curated: Path, bench_folder: Path, codec: str, associations: int) -> None:
    """What transcoding adds to reception, beside the codec's own time; what is written is as large in both."""
    one = from_file(curated / FILES[codec])
    assert one is not None
    native = _core.transcode(one.dataset, one.transfer_syntax, EXPLICIT, 1 << 30)
    services = {
        name: ServiceProcess(
            bench_folder / name,
            env={
                "STORESCP_LOCAL_STORAGE__DURABILITY": "none",
                "STORESCP_DICOM_STORE_SCP__CORNERSTONEJS_SUPPORTED_TRANSFER_SYNTAX": json.dumps([EXPLICIT]),
            },
        )
        for name in ("on", "off")
    }
    sent = {"on": one, "off": replace(one, transfer_syntax=EXPLICIT, dataset=native)}
    seconds: dict[str, list[float]] = {"on": [], "off": [], "codec": []}
    for number in range(RECEIVING_ROUNDS + 1):
        for name, service in services.items():
            quiet(bench_folder)
            began = time.perf_counter()
            _send_copies(service.port, sent[name], number, associations)
            if number:
                seconds[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(20):
            _core.transcode(one.dataset, one.transfer_syntax, EXPLICIT, 1 << 30)
        seconds["codec"].append((time.perf_counter() - began) / 20)
    for service in services.values():
        files = service.files()
        assert len(files) == (RECEIVING_ROUNDS + 1) * COPIES
        assert {len(dataset_of(file)) for file in files} == {len(native)}
        service.stop()
    found = {name: statistics.median(values) for name, values in seconds.items()}
    added = (found["on"] - found["off"]) / COPIES
    print(
        f"\n{codec}, {associations} associations: {COPIES / found['on']:.0f}/s with, "
        f"{COPIES / found['off']:.0f}/s without; "
        f"added {added * 1000:.2f} ms an instance, the codec alone takes {found['codec'] * 1000:.2f} ms "
        f"({added / found['codec']:.2f})"
    )


def _send_copies(port: int, one: Instance, number: int, associations: int) -> None:
    def send(first: int) -> None:
        with RawAssociation(port, [(1, one.sop_class, [one.transfer_syntax])]) as association:
            for copy in range(first, COPIES, associations):
                # The UIDs keep their length.
                uid = f"{one.sop_instance[:-5]}{number:02}{copy:03}"
                dataset = one.dataset.replace(one.sop_instance.encode(), uid.encode())
                assert association.store(1, one.sop_class, uid, dataset).status == 0
            association.release()

    threads = [threading.Thread(target=send, args=(first,)) for first in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
