"""Assert what a wheel holds: the three packages whole with their data, and nothing else."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"vlp_deploy": ROOT, "vlp_train": ROOT / "train", "vlp_export": ROOT / "export"}
LIMIT_MB = 100
REQUIRED = {
    "vlp_deploy/embedded/weights.safetensors",
    "vlp_deploy/embedded/bundle/SHA256SUMS",
    "vlp_deploy/embedded/emoji/NOTICE",
    "vlp_deploy/vocabulary/NOTICE",
}


def main() -> None:
    path = Path(sys.argv[1])
    names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    expected = {
        file.relative_to(root).as_posix()
        for package, root in PACKAGES.items()
        for file in (root / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    if names != expected:
        sys.exit(f"missing {sorted(expected - names)[:5]}, foreign {sorted(names - expected)[:5]}")
    if not names >= REQUIRED:
        sys.exit(f"missing {sorted(REQUIRED - names)}")
    size_mb = path.stat().st_size / 1e6
    if size_mb > LIMIT_MB:
        sys.exit(f"{path.name} is {size_mb:.0f} MB, at most {LIMIT_MB} are allowed")
    print(f"{path.name}: {len(names)} files, {size_mb:.1f} MB")


main()
