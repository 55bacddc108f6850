"""The options of `vlp train`, by topic: each is a parameter's type and what `--help` says of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DATA, MODEL = "Data", "Model"
SCHEDULE, IMAGES, MEMORY = "Schedule", "Images", "Memory and precision"


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SubsetName(StrEnum):
    """What `--subset` takes."""

    all = "all"
    base = "base"
    new = "new"


class ScheduleName(StrEnum):
    """What `--schedule` takes."""

    cosine = "cosine"
    constant = "constant"


# what is learned, from what, to where

Data = Annotated[
    Path,
    typer.Argument(
        help="Labelled images: a folder of class folders, a .csv/.jsonl/.parquet list with "
        "path and label, or CoOp's split_zhou_*.json."
    ),
]
Output = Annotated[
    Path,
    typer.Option(help="The run's folder: prompt.safetensors, resume.safetensors, log.jsonl."),
]
Method = Annotated[
    str, typer.Option(help="What is learned, and how; all methods are listed below.")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "-O",
        "--option",
        metavar="NAME=VALUE",
        help="A hyper-parameter of the method, repeatable, such as -O context_tokens=4; listed "
        "below.",
    ),
]
Stage1 = Annotated[
    Path | None,
    typer.Option(
        "--stage1",
        help="For dpc: the run or checkpoint of the prompt that a second one is tuned beside.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        help="Sentence around the class name, {}, for methods whose text is not learned "
        "(zeroshot, vpt). Repeat it to average several."
    ),
]

# an interrupted run

Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, or start it.")
]
Force = Annotated[bool, typer.Option("--force", help="Delete a run that is in the way.")]

# data

Subset = Annotated[
    SubsetName,
    typer.Option(
        rich_help_panel=DATA,
        help="Classes to train on. base: the first half by label, rounded up; the accuracy on "
        "it, on the new half and their harmonic mean are told. new: the other half.",
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Training images a class, drawn with --seed. Default: all of them.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        rich_help_panel=DATA, help="Decides the shots, the initial prompts, order and crops."
    ),
]
Evaluate = Annotated[
    list[Path] | None,
    typer.Option(
        rich_help_panel=DATA,
        help="More data to measure the trained prompt on, repeatable; its classes may be new. "
        "With --resume also where the run is finished.",
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=DATA, help="Where the paths of a list start. Default: its folder."
    ),
]
Classnames = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=DATA,
        help="File with a class name for every folder name (n01440764 tench).",
    ),
]

# model

Model = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL,
        help="vlp-tiny (embedded), an open_clip name such as ViT-B-16-quickgelu, or an "
        "open_clip .json configuration.",
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Its weights: an open_clip tag such as openai, or a local file.",
    ),
]

# schedule

Epochs = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=SCHEDULE, help="Default: the method's own, by the number of shots."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=SCHEDULE,
        help="Images a forward pass, over all processes. Default: the method's own.",
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=SCHEDULE,
        help="Batches whose gradients make one step: what N times the batch size does, in the "
        "memory of one. Losses that couple the images of a batch (dpt, dcp, dpc) still see one "
        "batch at a time. Default: 1.",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(rich_help_panel=SCHEDULE, help="At its peak. Default: the method's own."),
]
Schedule = Annotated[
    ScheduleName | None,
    typer.Option(
        rich_help_panel=SCHEDULE,
        help="How the rate goes on after the warm-up, epoch by epoch. Default: the method's "
        "own, which is cosine.",
    ),
]
WarmupEpochs = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=SCHEDULE,
        help="Epochs at a rate of 1e-5 before the peak. Default: 1, or 0 of one epoch.",
    ),
]
Momentum = Annotated[
    float | None, typer.Option(rich_help_panel=SCHEDULE, help="Of SGD. Default: 0.9.")
]
WeightDecay = Annotated[
    float | None,
    typer.Option(rich_help_panel=SCHEDULE, help="Pulls prompts to zero. Default: 5e-4."),
]

# images

Augment = Annotated[
    bool,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Random crops. Without them every epoch sees the images as they are served, and "
        "the features of a frozen image tower are computed once, which is much faster.",
    ),
]
Flip = Annotated[bool, typer.Option(rich_help_panel=IMAGES, help="Mirror half of the crops.")]
CacheFeatures = Annotated[
    bool,
    typer.Option(
        "--cache-features",
        rich_help_panel=IMAGES,
        help="Run the image tower over the images once, not in every epoch. It changes what is "
        "learned: no random crops, unless --views caches some. For methods that leave the "
        "image tower alone.",
    ),
]
Views = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="With --cache-features: cache N random crops of every image, taken in turn, one "
        "an epoch.",
    ),
]

# memory and precision

ClassChunk = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MEMORY,
        help="Class prompts in the text tower at once; computed again for the backward pass, "
        "which takes half as long again and the memory of one chunk. 0: all. Default: all, or "
        "what fits where they would take more than 2 GiB.",
    ),
]
Device = Annotated[str, typer.Option(rich_help_panel=MEMORY, help="auto, cpu or cuda.")]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        rich_help_panel=MEMORY,
        help="Of matrix products. auto: fp32 on a CPU, half precision on CUDA.",
    ),
]
