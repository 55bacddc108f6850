"""Take the weights out of a bundle's graphs, where they are copies of tensors that are stored
elsewhere.

    python -m vlp_export.strip BUNDLE OUTPUT

makes the bundle that is shipped inside the package: its graphs share the float16 weights of
`vlp-tiny` with the trainer. `vlp_deploy.embedded.default_bundle` is the way back.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

from vlp_deploy.embedded import GRAFTS, weights_path
from vlp_deploy.errors import IntegrityError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.bundle import Bundle, Floats, open_target
from vlp_deploy.formats.sealed import CHECKSUMS, seal
from vlp_deploy.formats.splice import Graft, splice

SMALL_BYTES = 4096  # not worth a graft


def strip_bundle(source: Path, output: Path, weights: Mapping[str, Floats]) -> None:
    """Write `source` without the weights that `weights` can give back, float32-exact.

    The SHA256SUMS written are those of the completed bundle. Raises IntegrityError if a file of
    `source` is not the one that was exported.
    """
    bundle = Bundle(source)
    config = bundle.manifest.backbone.config
    graphs = {graph.file for graph in bundle.manifest.graphs.values()}
    verdicts = list(bundle.files.verify())
    if complaints := [f"{name}: {complaint}" for name, complaint in verdicts if complaint]:
        raise IntegrityError(f"{source} is damaged ({'; '.join(complaints)}). Export it again")
    names = [name for name, _ in verdicts]
    grafts: dict[str, tuple[Graft, ...]] = {}
    stripped, completed = {}, {}
    for name in names:
        content = bundle.files.read(name)
        if name in graphs:
            content, grafts[name] = strip_graph(content, weights, config)
            completed[name] = splice(content, grafts[name], weights)
        else:
            completed[name] = content
        stripped[name] = content
    stripped[GRAFTS] = msgspec.json.format(msgspec.json.encode(grafts), indent=1) + b"\n"
    stripped[CHECKSUMS] = seal(completed)
    with open_target(output, replace=True) as staging:
        for name, content in stripped.items():
            (staging / name).write_bytes(content)


def strip_graph(
    content: bytes, weights: Mapping[str, Floats], config: ClipConfig
) -> tuple[bytes, tuple[Graft, ...]]:
    """An ONNX file without the initialisers that `weights` holds, and how to put them back."""
    model = onnx.load_from_string(content)
    grafts, kept = [], []
    for initializer in model.graph.initializer:
        value = numpy_helper.to_array(initializer)
        graft = None
        if value.nbytes > SMALL_BYTES and value.dtype == np.float32:
            candidates = _candidates(initializer.name, weights, config)
            graft = next((g for g in candidates if np.array_equal(g.apply(weights), value)), None)
        if graft is None:
            kept.append(initializer)
        else:
            grafts.append(graft)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.SerializeToString(deterministic=True), tuple(grafts)


def _candidates(name: str, weights: Mapping[str, Floats], config: ClipConfig) -> Iterator[Graft]:
    """What the initialiser `name` may be: the exporter calls it as its tensor is called."""
    if name not in weights:
        return
    yield Graft(initializer=name, tensor=name, form="as_stored")
    if weights[name].ndim == 2:
        yield Graft(initializer=name, tensor=name, form="transposed")
    if name.endswith("attn.in_proj_weight"):
        tower = config.vision if name.startswith("visual.") else config.text
        yield Graft(
            initializer=name,
            tensor=name,
            form="packed_query_scaled",
            head_width=tower.width // tower.heads,
        )


def main() -> None:
    """Strip a bundle of `vlp-tiny`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    strip_bundle(arguments.bundle, arguments.output, load_file(weights_path()))


if __name__ == "__main__":
    main()
