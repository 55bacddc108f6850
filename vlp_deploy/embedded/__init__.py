"""What comes with the installation: the CLIP `vlp-tiny`, the emoji data set and a bundle of both.

The weights are stored once, in float16. The trainer reads them as they are; the default bundle's
graphs are completed with them in the cache, on first use (`vlp_deploy.formats.splice`).
"""

import json
from pathlib import Path

import msgspec
from safetensors.numpy import load_file

from vlp_deploy.cache import cache_folder
from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.files import sha256_of, staged_folder
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.bundle import MANIFEST
from vlp_deploy.formats.sealed import CHECKSUMS, SealedFolder
from vlp_deploy.formats.splice import Graft, splice

MODEL_NAME = "vlp-tiny"
PRETRAINED = "embedded"
GRAFTS = "grafts.json"  # graph file -> the initialisers it was stripped of
_HERE = Path(__file__).parent


def config_path() -> Path:
    """The open_clip model configuration of `vlp-tiny`."""
    return _HERE / f"{MODEL_NAME}.json"


def config() -> ClipConfig:
    """The shape of `vlp-tiny`."""
    return ClipConfig.from_open_clip(json.loads(config_path().read_text()))


def weights_path() -> Path:
    """The float16 weights of `vlp-tiny`, as an open_clip state dict in safetensors."""
    return _HERE / "weights.safetensors"


def emoji_path() -> Path:
    """The emoji data set: class folders, splits and licences."""
    return _HERE / "emoji"


def stripped_bundle_path() -> Path:
    """The default bundle as it is shipped: complete but for the weights in its graphs."""
    return _HERE / "bundle"


def default_bundle() -> Path:
    """The default bundle, ready to load. The first call completes it in the cache folder."""
    target = _unpacked_path()
    if not target.is_dir():
        _unpack(target, replace=False)
    elif not _opens(target):
        _unpack(target, replace=True)
    return target


def restore(bundle: Path) -> bool:
    """Unpack the default bundle again if `bundle` is where it is unpacked; False if it is not."""
    if bundle != _unpacked_path():
        return False
    _unpack(bundle, replace=True)
    return True


def _unpacked_path() -> Path:
    stripped = stripped_bundle_path()
    for path in (stripped / CHECKSUMS, stripped / GRAFTS, weights_path()):
        if not path.is_file():
            raise BundleError(
                f"this installation has no default bundle: {path} is missing. Install vlp-deploy "
                "again, or pass --bundle"
            )
    return cache_folder() / f"vlp-tiny-{sha256_of(stripped / CHECKSUMS)[:16]}"


def _opens(bundle: Path) -> bool:
    """Whether the list of files and the manifest are whole; the rest is hashed when it is read."""
    try:
        SealedFolder(bundle).read(MANIFEST)
    except BundleError:
        return False
    return True


def _unpack(target: Path, *, replace: bool) -> None:
    try:
        with staged_folder(target, replace=replace) as staging:
            complete_bundle(stripped_bundle_path(), staging)
            _check(staging)
    except FileExistsError:
        pass  # another process was faster, with the same content
    except OSError as error:
        raise BundleError(
            f"the default bundle cannot be unpacked to {target} ({error.strerror}). "
            "Set VLP_CACHE to a folder that can be written to, or pass --bundle"
        ) from error


def _check(completed: Path) -> None:
    for name, complaint in SealedFolder(completed).verify():
        if complaint:
            raise IntegrityError(
                f"the embedded bundle's {name} does not come out as it was exported: the installed "
                "weights and graphs do not belong together. Install vlp-deploy again"
            )


def complete_bundle(stripped: Path, output: Path) -> None:
    """Copy a stripped bundle into the folder `output`, its graphs completed with the weights."""
    grafts = msgspec.json.decode(
        (stripped / GRAFTS).read_bytes(), type=dict[str, tuple[Graft, ...]]
    )
    weights = load_file(weights_path())
    for path in sorted(stripped.iterdir()):
        if path.name in grafts:
            content = splice(path.read_bytes(), grafts[path.name], weights)
            (output / path.name).write_bytes(content)
        elif path.name != GRAFTS:
            (output / path.name).write_bytes(path.read_bytes())
