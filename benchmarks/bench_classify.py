"""What bulk classification reaches of what the machine could do, and of what people do instead.

    python benchmarks/bench_classify.py [overlap] [decode] [memory] [loops] [--seconds 60]
        [--bundle FOLDER] [--engine auto] [--files 100000]

overlap   `Classifier.stream` on 500 x 375 JPEG files with a bundle (by default a ViT-B/16 of random
          weights) against ideal overlap. The model: decoding all images alone, on all cores, takes
          t_d seconds, and running the engine on all of them alone, on all cores, t_e. Both are work
          of the same cores, so overlapped ideally they take t_d + t_e; the ratio is
          (t_d + t_e) / t, with all three measured in turns.
decode    12-megapixel JPEG to 224 x 224 pixels, against Pillow's full decoding and resizing, one
          thread each.
memory    peak memory of `vlp classify` on a folder of 1,000 files and of `--files`.
loops     the embedded model on 500 x 375 JPEG files, against the loop one would write first
          (Pillow, torchvision, PyTorch in batches of 32), also behind a DataLoader of 2 workers.

Without names all four run. A table goes to stdout, a line for each to `results/classify.jsonl`.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from bench_folding import VIT_B_16, random_weights
from PIL import Image
from recording import Recording

from vlp_deploy import Classifier, Prediction, embedded
from vlp_deploy.bulk.reading import READ_THREADS, read_pictures
from vlp_deploy.classes.tokenizer import VOCABULARY_PATH
from vlp_deploy.formats.architecture import Backbone, Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.bundle import (
    BundleContents,
    ClassBank,
    Golden,
    GraphInfo,
    Manifest,
    NewClasses,
    write_bundle,
)
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_deploy.images.limits import DEFAULT_LIMITS
from vlp_deploy.images.preprocess import preprocess
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_deploy.question import Question

RESULTS = Path(__file__).parent / "results" / "classify.jsonl"
PHOTO, LARGE_PHOTO = (500, 375), (4000, 3000)
QUALITY = 90
DIFFERENT_PHOTOS = 24
BATCH = 32
CLASSES = 1000
Row = dict[str, object]
# The peak of the process's own memory: what wait4 reports begins with that of its parent.
WITH_PEAK = """
import re, sys
from vlp_deploy.cli import run
code = run(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG with detail at every scale, as photographs have it."""
    generator = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 128, np.float32)
    for cells, strength in ((3, 60), (12, 30), (50, 15), (200, 8), (min(width, 800), 4)):
        noise = generator.normal(0, strength, (cells * height // width + 1, cells, 3))
        levels = Image.fromarray(np.clip(noise + 128, 0, 255).astype(np.uint8))
        canvas += np.asarray(levels.resize((width, height), Image.Resampling.BICUBIC)) - 128.0
    file = io.BytesIO()
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_photos(folder: Path, count: int) -> list[Path]:
    """Files of 500 x 375 pixels."""
    contents = [photo(*PHOTO, seed) for seed in range(DIFFERENT_PHOTOS)]
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % DIFFERENT_PHOTOS])
    return paths


def write_random_bundle(path: Path) -> None:
    """A ViT-B/16 of random weights: time does not depend on their values."""
    from vlp_export.graph import to_bytes
    from vlp_export.image_graph import write_image_graph
    from vlp_export.session import Session

    preprocessing = Preprocessing(image_size=VIT_B_16.vision.image_size)
    model = write_image_graph(VIT_B_16, random_weights(VIT_B_16), preprocessing=preprocessing)
    generator = np.random.default_rng(0)
    embeddings = generator.normal(0, 1, (CLASSES, VIT_B_16.embed_dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    bank = ClassBank.from_embeddings(embeddings, logit_scale=100.0)
    size = preprocessing.image_size
    pixels = generator.integers(0, 256, (8, 3, size, size), np.uint8)
    content = to_bytes(model)
    answers = Session(content)({"image": pixels, **bank.inputs})
    backbone = Backbone(name="ViT-B-16", pretrained="random", sha256="0" * 64, config=VIT_B_16)
    manifest = Manifest(
        method="zeroshot",
        backbone=backbone,
        preprocessing=preprocessing,
        engine="onnx",
        precision="fp32",
        graphs={"image": GraphInfo(file="image.onnx", opset=18, nodes=0, flops=0)},
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        templates=("{}",),
        text_layout=TextLayout(),
        visual_layout=VisualLayout(),
        logit_scale=100.0,
        new_classes=NewClasses(allowed=False, reason="it has no text tower"),
        tools={},
        parity=(),
        history=(),
    )
    contents = BundleContents(
        manifest=manifest,
        graphs={"image.onnx": content},
        prompts={},
        bank=bank,
        golden=Golden(pixels=pixels, embeddings=answers["embedding"], logits=answers["logits"]),
        vocabulary=VOCABULARY_PATH.read_bytes(),
    )
    write_bundle(contents, path, replace=False)


def bench_overlap(folder: Path, options: argparse.Namespace) -> list[Row]:
    """End to end against decoding and engine, each alone."""
    if options.bundle is None:
        write_random_bundle(folder / "bundle")
    classifier = Classifier.load(options.bundle or folder / "bundle", options.engine)
    paths = write_photos(folder, options.images)
    preprocessing = classifier.bundle.manifest.preprocessing

    def decode() -> list[np.ndarray]:
        pictures = read_pictures(
            paths,
            preprocessing,
            exact_decode=False,
            limits=DEFAULT_LIMITS,
            threads=READ_THREADS,
            ahead=2 * BATCH,
        )
        return [picture.pixels for picture in pictures]

    pixels = np.stack(decode())

    def run_engine() -> None:
        for start in range(0, len(pixels), BATCH):
            classifier.logits(pixels[start : start + BATCH])

    def end_to_end() -> None:
        answers = list(classifier.stream(paths, Question(batch_size=BATCH)))
        assert all(isinstance(answer, Prediction) for answer in answers)

    times = take_turns(
        {"decode": decode, "engine": run_engine, "end to end": end_to_end},
        seconds=options.seconds,
        warm_up=1,
    )
    ideal = times["decode"] + times["engine"]
    ratio = paired_ratio(ideal, times["end to end"])
    rates = {name: 1000 * len(paths) / float(np.median(values)) for name, values in times.items()}
    shown = ", ".join(f"{name} {rate:.1f} images/s" for name, rate in rates.items())
    print(f"overlap   {ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}) of ideal; {shown}")
    return [{"what": "overlap", "rates": rates, "ratio": msgspec.to_builtins(ratio)}]


def bench_decode(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Scaled decoding against full decoding, one thread."""
    (path := folder / "large.jpg").write_bytes(photo(*LARGE_PHOTO, 0))
    preprocessing = Preprocessing(image_size=224)

    def plain() -> None:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        width, height = rgb.size
        scale = 224 / min(width, height)
        small = rgb.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left = (small.width - 224) // 2
        np.asarray(small.crop((left, 0, left + 224, 224)))

    times = take_turns(
        {
            "plain Pillow": plain,
            "exact": lambda: preprocess(path, preprocessing),
            "scaled": lambda: preprocess(path, preprocessing, exact=False),
        },
        seconds=options.seconds / 2,
    )
    rows: list[Row] = []
    for name in ("exact", "scaled"):
        ratio = paired_ratio(times["plain Pillow"], times[name])
        print(
            f"decode    {name}: {ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}) as fast"
            f" as plain Pillow, p50 {np.median(times[name]):.1f} ms"
        )
        rows.append({"what": "decode", "how": name, "ratio": msgspec.to_builtins(ratio)})
    return rows


def bench_memory(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Peak memory of the whole process, few files against many."""
    write_fake_bundle(folder / "bundle", ("red", "green", "blue"))
    contents = [photo(48, 36 + seed, seed) for seed in range(DIFFERENT_PHOTOS)]
    peaks = {}
    for count in (1_000, options.files):
        images = folder / f"{count}"
        images.mkdir()
        for number in range(count):
            (images / f"{number:07}.jpg").write_bytes(contents[number % DIFFERENT_PHOTOS])
        output = folder / f"{count}.jsonl"
        command = [sys.executable, "-c", WITH_PEAK, "classify", images]
        command += ["--bundle", folder / "bundle", "--output", output]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        assert output.read_bytes().count(b"\n") == count
        peaks[count] = int(done.stdout) / 1024
        print(f"memory    {count:,} files: peak {peaks[count]:.1f} MB")
    growth = peaks[options.files] - peaks[1_000]
    print(f"memory    growth {growth:.1f} MB")
    return [{"what": "memory", "peak_mb": peaks, "growth_mb": growth}]


def bench_loops(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The embedded model against two loops in PyTorch."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from vlp_deploy.measuring.rivals import RivalOptions
    from vlp_train.eager import load_eager

    classifier = Classifier.load(embedded.default_bundle(), options.engine)
    paths = write_photos(folder, options.images)
    cores = len(os.sched_getaffinity(0))
    options_of_rival = RivalOptions(
        classes=classifier.classes, pretrained=None, threads=cores, device="cpu"
    )
    eager = load_eager(classifier.bundle, options_of_rival)
    size = classifier.bundle.manifest.preprocessing.image_size
    transform = transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(paths[index]) as image:
                return transform(image.convert("RGB"))

    def torch_loop(workers: int) -> Callable[[], list[int]]:
        def loop() -> list[int]:
            labels: list[int] = []
            for batch in DataLoader(Photos(), batch_size=BATCH, num_workers=workers):
                labels += eager.logits(batch.numpy()).argmax(axis=1).tolist()
            return labels

        return loop

    def ours() -> list[int]:
        answers = classifier.stream(paths)
        return [classifier.classes.index(answer.label) for answer in answers]

    contenders = {"vlp classify": ours, "loop": torch_loop(0), "2 workers": torch_loop(2)}
    same = np.mean(np.array(ours()) == np.array(contenders["loop"]()))
    assert same > 0.8, f"only {same:.0%} of labels agree"  # scaled decoding changes a few
    times = take_turns(contenders, seconds=options.seconds, warm_up=1)
    rates = {name: 1000 * len(paths) / float(np.median(values)) for name, values in times.items()}
    rows: list[Row] = []
    for name in ("loop", "2 workers"):
        ratio = paired_ratio(times[name], times["vlp classify"])
        print(
            f"loops     {ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}) as fast as"
            f" PyTorch ({name}), {rates['vlp classify']:.0f} images/s in"
            f" {classifier.engine_version}; {same:.1%} same labels"
        )
        row = {"what": "loops", "against": name, "engine": classifier.engine_version}
        rows.append({**row, "rates": rates, "ratio": msgspec.to_builtins(ratio)})
    return rows


BENCHES = {
    "overlap": bench_overlap,
    "decode": bench_decode,
    "memory": bench_memory,
    "loops": bench_loops,
}


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=[*BENCHES], help=", ".join(BENCHES))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--engine", default="auto", help="of overlap and loops")
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "openvino", "pillow", "torch", "torchvision", "numpy"])
    if unknown := set(options.what) - BENCHES.keys():
        parser.error(f"there is no {', '.join(unknown)}; expected {', '.join(BENCHES)}")
    for name in options.what:
        with tempfile.TemporaryDirectory() as folder:
            rows = BENCHES[name](Path(folder), options)
        recording.append(RESULTS, rows=rows)


if __name__ == "__main__":
    main()
