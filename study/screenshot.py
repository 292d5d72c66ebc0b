"""
The picture of a run's page that the README shows, made by a headless Chromium.

    python -m study.screenshot out/toy/dpo/page.html --out study/figures/page.png

Needs Chromium with its driver, and `pip install selenium`. Read first: page.py
"""
import argparse
import shutil
from pathlib import Path

WIDTH, HEIGHT = 1000, 720

def browser(width=WIDTH, height=HEIGHT, dark=False):
    """A headless Chromium without a network. Raises SystemExit in one line if there is none."""
    try:
        from selenium import webdriver
    except ImportError:
        raise SystemExit("selenium is missing: pip install selenium") from None
    driver = shutil.which("chromedriver")
    if driver is None:
        raise SystemExit("there is no chromedriver: install Chromium and its driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                 "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)    # a window is at least 500 wide
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    found.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    return found

# Puts the pairs at the top, sorted by how far the chosen completion fell, and focuses its worst token
SHOW = """
    const sort = document.querySelector("#sort");
    sort.value = "chosen";
    sort.dispatchEvent(new Event("change"));
    document.querySelector("#sort").closest(".controls").previousElementSibling.scrollIntoView();
    document.querySelector(".pair .n8")?.focus({preventScroll: true});
"""

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("page", help="the page.html of a run with pairs")
    p.add_argument("--out", default="study/figures/page.png", help="the picture to write (default: %(default)s)")
    p.add_argument("--dark", action="store_true", help="the dark colors")
    args = p.parse_args(argv)
    if not Path(args.page).is_file():
        raise SystemExit(f"{args.page}: there is no such file; python page.py --run RUN writes one")
    window = browser(dark=args.dark)
    try:
        window.get(Path(args.page).resolve().as_uri())
        window.execute_script(SHOW)
        window.save_screenshot(args.out)
    finally:
        window.quit()
    print(args.out)

if __name__ == "__main__":
    main()
