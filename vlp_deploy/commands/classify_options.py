"""The options of `vlp classify`: each is a parameter's type and what `--help` says of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LABELS, RESULTS = "Which labels", "Where results go"
SPEED, LIMITS = "Engine and speed", "Limits of one file"


class Format(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


Images = Annotated[
    list[Path],
    typer.Argument(
        help="Images, folders to search, .tar and .zip archives, .parquet tables; - for a list "
        "of paths on stdin."
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(help="New classes: a UTF-8 file, one a line, synonyms separated by tabs."),
]
Bundle = Annotated[
    Path | None, typer.Option(help="Bundle folder. Default: $VLP_BUNDLE, else the embedded.")
]
TopK = Annotated[int, typer.Option(min=1, help="Candidates to name for every image.")]

# which labels

Reject = Annotated[
    bool,
    typer.Option(
        "--reject",
        rich_help_panel=LABELS,
        help="No label for images that look like none of the classes: below the threshold that "
        "`vlp calibrate --unknown` fitted.",
    ),
]
RejectBelow = Annotated[
    float | None,
    typer.Option(min=0, max=1, rich_help_panel=LABELS, help="The same below this probability."),
]
MultiLabel = Annotated[
    bool,
    typer.Option(
        "--multi-label",
        rich_help_panel=LABELS,
        help="All labels that reach the thresholds which `vlp calibrate --multi-label` fitted.",
    ),
]

# where results go

OutputFormat = Annotated[
    Format | None,
    typer.Option(rich_help_panel=RESULTS, help="Default: by the name of --output, else table."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=RESULTS,
        help="Write here instead of to stdout. A .jsonl or .csv file or a .parquet folder that "
        "was left unfinished is continued by typing the same command again.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", rich_help_panel=RESULTS, help="Begin --output and --embeddings anew."),
]
Embeddings = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=RESULTS,
        help="Also write image embeddings: .npy, or .parquet for a folder of parts.",
    ),
]
CopyTo = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RESULTS,
        metavar="DIR/{label}",
        help="Also copy every image into the folder of its label. Nothing is replaced.",
    ),
]
Symlink = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RESULTS,
        metavar="DIR/{label}",
        help="The same with symbolic links; images inside archives and tables are copied.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=RESULTS,
        help="At the end, also write a page of thumbnails by label, to look at offline.",
    ),
]

# what is classified, and in what

Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Classify what is in the folders and then what arrives there, until Ctrl-C.",
    ),
]
ExactDecode = Annotated[
    bool,
    typer.Option(
        "--exact-decode", rich_help_panel=SPEED, help="Decode JPEG in full; slower on photos."
    ),
]
Engine = Annotated[str, typer.Option(rich_help_panel=SPEED, help="auto, onnx, openvino or fake.")]
Device = Annotated[str, typer.Option(rich_help_panel=SPEED, help="cpu or cuda.")]
Threads = Annotated[
    int, typer.Option(min=0, rich_help_panel=SPEED, help="0: the engine's own choice.")
]
ReadThreads = Annotated[
    int, typer.Option(min=1, rich_help_panel=SPEED, help="Threads that read images.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, rich_help_panel=SPEED, help="Images the engine gets at once.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED,
        metavar="local|ADDRESS",
        help="Let a Ray cluster classify: one made here, or the one at the address.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(help="Prompt with {} for the names in --classes; repeat it to average several."),
]

# limits of one file

MaxPixels = Annotated[
    int, typer.Option(min=1, rich_help_panel=LIMITS, help="An image with more is an error.")
]
MaxMemory = Annotated[
    int,
    typer.Option(
        min=1,
        rich_help_panel=LIMITS,
        help="Megabytes that decoding may take, of all images at once.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(min=0, rich_help_panel=LIMITS, help="Seconds to read an image, 0 for any time."),
]
