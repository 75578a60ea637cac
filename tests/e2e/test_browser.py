"""What a downstream team sees of the quickstart in MLflow's pages: real ones, in a real browser.

Screenshots are left in ``.output/`` at the top of the repository.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.e2e.conftest import REPOSITORY, Quickstart, environment
from tests.registry.servers import SETTINGS, end, free_port

pytestmark = pytest.mark.e2e

OUTPUT = REPOSITORY / ".output"
MODEL = "mlp-k10-precalibrated"


@pytest.fixture(scope="module")
def pages(quickstart: Quickstart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that the quickstart's last lines name."""
    (line,) = (x.strip() for x in quickstart.done.out.splitlines() if "mlflow ui " in x)
    port, log = free_port(), tmp_path_factory.mktemp("pages") / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(line), "--port", str(port)],
            cwd=quickstart.folder, stdout=file, stderr=file,
            env=environment() | SETTINGS,
            start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, log.read_text()
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        end(server)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    found = Chrome(options=options, service=Service(driver))
    found.set_window_size(1500, 1050)
    yield found
    found.quit()


def look(browser: Chrome, address: str, name: str, *texts: str) -> None:
    """Open a page, wait until it shows some texts, and keep a screenshot."""
    browser.get("about:blank")  # else a change of what follows # loads nothing
    browser.get(address)
    shown = ""
    deadline = time.monotonic() + 90
    while any(text not in shown for text in texts):
        assert time.monotonic() < deadline, ([t for t in texts if t not in shown], shown)
        time.sleep(0.3)
        shown = browser.find_element(By.TAG_NAME, "body").text
    for button in browser.find_elements(By.CSS_SELECTOR, "button[aria-label='Close']"):
        button.click()  # MLflow's assistant, which hides a quarter of the page
    time.sleep(2)  # what slides and fades
    OUTPUT.mkdir(exist_ok=True)
    picture = OUTPUT / f"mlflow-{name}.png"
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 30_000


def test_the_quickstart_in_mlflows_pages(pages: str, browser: Chrome) -> None:
    client = MlflowClient(tracking_uri=pages, registry_uri=pages)
    version = client.get_model_version_by_alias(MODEL, "candidate")
    run = client.get_run(version.run_id)
    deviation = float(version.tags["precalib.deviation"])
    experiment = f"{pages}/#/experiments/{run.info.experiment_id}/runs"
    started = f"{experiment}/{version.run_id}"
    name = run.info.run_name
    assert name is not None

    look(browser, experiment, "experiment", name, "train-registry", "train-random")
    look(browser, f"{started}/model-metrics", "curves", name, "deviation/gaussian", "Step")
    look(
        browser, f"{pages}/#/models/{MODEL}/versions/{version.version}", "version",
        "Version 1", "@ candidate", "precalib.deviation", version.tags["precalib.deviation"],
        "How it was made", "How to load it", f"at most {deviation:.4f} above chance",
    )  # fmt: skip
    look(browser, f"{pages}/#/models/{MODEL}", "model", "Version 1", "@ candidate")
    look(browser, f"{started}/artifacts/card.html", "artifacts", "card.html")

    frame = browser.find_element(By.TAG_NAME, "iframe")
    browser.switch_to.frame(frame)
    try:
        card = browser.find_element(By.TAG_NAME, "body").text
    finally:
        browser.switch_to.default_content()
    for text in ("mlp-k10-precalibrated, version 1", f"{deviation:.4f}", "How far from chance"):
        assert text in card


def test_the_card_by_itself(quickstart: Quickstart, browser: Chrome) -> None:
    """As a file: its picture is there, and nothing is asked of the network."""
    (file, *_) = sorted(quickstart.folder.rglob("card.html"))
    look(browser, Path(file).as_uri(), "card", "How far from chance", "Versions and digests")
    loaded = browser.execute_script(
        "return [performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))"
        ".length, [...document.images].every(image => image.naturalWidth > 100)]"
    )
    assert loaded == [0, True]
