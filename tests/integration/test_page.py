"""The status page in a real browser, while DCMTK sends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from storescp.pure.store import file_meta
from support.damage import KEEPS, QUARANTINED, send, truncated
from support.instances import CT, ct_slice
from support.licences import licence_issued, section
from support.load import again_and_again
from support.scu import EXPLICIT, RawAssociation, Rejected
from support.service import ServiceProcess
from support.web import get, http_port

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
if shutil.which("chromium") is None:
    pytest.skip("needs chromium", allow_module_level=True)

from support.browser import chromium  # noqa: E402

StartService = Callable[..., ServiceProcess]
HTTP = {"STORESCP_HTTP__PORT": "0"}
SHOWN = HTTP | {"STORESCP_HTTP__SHOW_PATIENT_DATA": "true"}
# Where it is set, what the browser showed is kept there.
SCREENSHOTS = os.environ.get("STORESCP_SCREENSHOTS")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty CT slices."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(40):
        one = ct_slice(number, rows=128)
        header = file_meta(one.sop_class, one.sop_instance, one.transfer_syntax, "")
        (folder / f"{number}.dcm").write_bytes(header + one.dataset)
    return folder


def dcmsend(service: ServiceProcess, files: Path) -> int:
    """Everything in a folder; the exit code."""
    command = ["dcmsend", "-aet", "CT1", "-aec", "STORE-SCP", "127.0.0.1", str(service.port)]
    return subprocess.run([*command, "--scan-directories", str(files)], check=False, timeout=60).returncode


def show(page, port: int, *, ready: bool = True) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    if ready:
        page.wait_for_selector("#state[data-state=ready]", timeout=15000)


def refuse_something(service: ServiceProcess) -> None:
    with RawAssociation(service.port, [(1, CT, [EXPLICIT])], calling=b"SCU") as association:
        one = ct_slice(1, rows=64)
        assert association.store(1, CT, "1.2.3", one.dataset).status == 0xA900
        association.release()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_the_page_under_load_is_right_and_accessible(
    start_service: StartService, files: Path, scheme: str, width: int
) -> None:
    service = start_service(env=SHOWN | {"STORESCP_DICOM_STORE_SCP__ALLOWED_CALLING_AE_TITLES": '["CT1", "SCU"]'})
    port = http_port(service)
    refuse_something(service)
    with pytest.raises(Rejected):
        RawAssociation(service.port, [(1, CT, [EXPLICIT])], calling=b"OTHER")
    sending = again_and_again(lambda: dcmsend(service, files))
    with sending, chromium(width=width, scheme=scheme) as (page, complaints):
        show(page, port)
        page.wait_for_selector("#associations-table td:has-text('CT1 to STORE-SCP')", timeout=30000)
        page.wait_for_selector("#latest-table .badge.good", timeout=15000)
        page.wait_for_function(
            "() => Number.parseInt(document.querySelector('#instances-now').value) > 0", timeout=15000
        )
        assert page.evaluate("document.querySelectorAll('#instances-chart path').length") == 2
        notes = page.inner_text("#warnings")
        assert "A900 SOPInstanceUID of the data set differs from the command" in notes
        assert "The sender calls itself 'OTHER', which may not come in." in notes
        assert page.inner_text("#warnings strong:has-text('rejected')") == "An association was rejected"
        assert "event: association.rejected" in notes
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Paused, the page stays as it is while it is examined.
        page.click("#pause")
        found = axe.Axe().run(page).response
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/page-{scheme}-{width}.png", full_page=True)
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(serious, indent=1)[:4000]
    assert len(found["passes"]) > 20
    assert complaints == []


def test_a_picture_is_shown_on_demand_and_by_keyboard(start_service: StartService, files: Path) -> None:
    service = start_service(env=SHOWN)
    port = http_port(service)
    assert dcmsend(service, files) == 0
    with chromium() as (page, complaints):
        show(page, port)
        button = page.wait_for_selector("#latest-table button", timeout=15000)
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#picture-image:not([hidden])", timeout=20000)
        page.wait_for_function("() => document.querySelector('#picture-image').naturalWidth > 0")
        size = page.evaluate(
            "(({naturalWidth: w, naturalHeight: h}) => [w, h])(document.querySelector('#picture-image'))"
        )
        assert max(size) in range(100, 321)
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/picture.png")
        page.keyboard.press("Escape")
        page.wait_for_selector("#picture", state="hidden")
        # Where it was opened from, though the page was drawn anew meanwhile.
        page.wait_for_timeout(1500)
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Show the picture")
    assert complaints == []


def test_no_patient_data_unless_it_is_wished_for(start_service: StartService, files: Path) -> None:
    service = start_service(env=HTTP)
    port = http_port(service)
    assert dcmsend(service, files) == 0
    service.records(count=40)
    one = ct_slice(1, rows=128)
    status, text = get(port, "/status")
    assert status == 200
    assert json.loads(text)["instances"] == 40
    for secret in ("P-0001", one.sop_instance, "1.2.826"):
        assert secret not in text
    assert get(port, "/thumbnails/1")[0] == 403
    with chromium() as (page, _):
        show(page, port)
        page.wait_for_selector("#latest-table td")
        assert "P-0001" not in page.content()
        assert page.is_hidden("#latest-table .patient >> nth=0")
        assert page.is_visible("#patient-note")


def test_a_licence_that_has_ended_is_shown_on_a_page_that_is_ready(start_service: StartService, tmp_path: Path) -> None:
    issued = licence_issued(timedelta(days=10), 5, tmp_path / "licence")
    (tmp_path / "storescp.toml").write_text(f"{section(issued)}[dicom_store_scp]\nhost = '127.0.0.1'\n")
    (tmp_path / "data" / ".outbox").mkdir(parents=True)
    (tmp_path / "data" / ".outbox" / "licensed").write_text('{"client_id": "hospital"}')
    service = start_service("-c", str(tmp_path / "storescp.toml"), env=HTTP)
    port = http_port(service)
    with chromium() as (page, complaints):
        show(page, port)
        tile = page.wait_for_selector("#tiles div.bad:has-text('Licence')", timeout=15000)
        assert "ended" in tile.inner_text()
        assert "reception goes on" in tile.inner_text()
        note = page.inner_text("#warnings")
        assert "storescpd license issue --client-id ID DIR" in note
        assert "SIGHUP" in note
    assert complaints == []


def test_damaged_data_sets_are_in_the_verdict(start_service: StartService) -> None:
    service = start_service(env=HTTP | KEEPS)
    port = http_port(service)
    assert [answer.status for answer in send(service, truncated(1), truncated(2))] == [QUARANTINED] * 2
    with chromium() as (page, complaints):
        show(page, port, ready=False)
        page.wait_for_selector("#state[data-state=attention]", timeout=15000)
        assert "Ready; 2 damaged data sets wait in quarantine since " in page.inner_text("#state")
        assert "B007 in quarantine" in page.inner_text("#latest-table")
        assert "storescpd quarantine retry" in page.inner_text("#warnings")
        assert "Damaged" in page.inner_text("#storage-table")
        assert complaints == []


def test_the_page_asks_for_the_token(start_service: StartService) -> None:
    service = start_service(env=HTTP | {"STORESCP_HTTP__TOKEN": "secret"})
    port = http_port(service)
    assert [get(port, path)[0] for path in ("/", "/page.js", "/page.css")] == [200] * 3
    assert [get(port, path)[0] for path in ("/status", "/events", "/thumbnails/1")] == [401] * 3
    with chromium() as (page, _):
        show(page, port, ready=False)
        page.wait_for_selector("#token")
        parts = [f"#{part}-none" for part in ("attention", "associations", "latest", "tenants")]
        assert [page.inner_text(part) for part in parts] == ["Not known yet."] * 4
        assert page.is_hidden("#patient-note")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state[data-state=ready]", timeout=15000)
        assert page.inner_text("#latest-none") == "None yet."
