"""The top of a report of `vlp bench` becomes a picture, `results/report.webp`.

    python benchmarks/picture_report.py bundles/report/report.html

Chromium draws it, in its light colours, as wide as a desk's screen. Needs `chromium` and Pillow.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "results" / "report.webp"
SIZE = (1240, 1230)  # of the window, in pixels
QUALITY, MOST_BYTES = 82, 150_000


def draw(page: Path, picture: Path) -> None:
    """Raises SystemExit without Chromium, or if the picture is too large to be kept."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}"]
        command += [f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(shot) as image:
            image.convert("RGB").save(picture, "WEBP", quality=QUALITY, method=6)
    if picture.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{picture} has {picture.stat().st_size} bytes; most are {MOST_BYTES}")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), PICTURE)
