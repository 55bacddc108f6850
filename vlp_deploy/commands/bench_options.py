"""The options of `vlp bench`, by topic: each is a parameter's type and what `--help` says of it."""

from pathlib import Path
from typing import Annotated

import typer

from vlp_deploy.measuring.rivals import AGAINST

IMAGES, BESIDE = "Labelled images", "What runs beside the bundle"
SPEED, ENGINE, REPORTS = "Latency and throughput", "Engine", "Reports"

Bundle = Annotated[
    Path | None, typer.Argument(help="Folder made by `vlp export`. Default: the embedded one.")
]

# labelled images

Data = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Labelled images: accuracy on their test split, with JPEG decoded in full, as "
        "`vlp classify` does with --exact-decode only.",
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(rich_help_panel=IMAGES, help="What the paths in a list --data are relative to."),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=IMAGES, help="File of 'folder name' lines that names --data's classes."
    ),
]
DataClasses = Annotated[
    bool,
    typer.Option(
        rich_help_panel=IMAGES, help="Classify into the class names of --data, not the bundle's."
    ),
]
Unknown = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Images of none of the classes: how well 'none of these' can be told.",
    ),
]
Domain = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Regular expression; its group, in an image's path, is the image's domain (style, "
        "camera, site): top-1 for each.",
    ),
]
BaseClasses = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="File of the classes that were tuned on: base, new, harmonic mean. Default: with "
        "--data-classes the bundle's own, if --data has others too.",
    ),
]
Transfer = Annotated[
    list[Path] | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Other labelled images, classified into class names of their own.",
    ),
]

# what runs beside the bundle

Beside = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=BESIDE,
        help="Another bundle of the same classes, of another precision say; in another engine "
        "as BUNDLE@ENGINE.",
    ),
]
Against = Annotated[
    str,
    typer.Option(
        rich_help_panel=BESIDE,
        help=f"Run the same classifier beside it; comma-separated: {', '.join(AGAINST)}.",
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(rich_help_panel=BESIDE, help="The backbone's weights, for --against torch."),
]

# latency and throughput

Batch = Annotated[
    list[int] | None,
    typer.Option(rich_help_panel=SPEED, min=1, help="Batch sizes: 1, 8, or the bundle's own."),
]
Seconds = Annotated[
    float,
    typer.Option(
        rich_help_panel=SPEED,
        min=0,
        help="Time for each contender at each batch size, and for each of its loops.",
    ),
]
Concurrency = Annotated[
    str,
    typer.Option(
        rich_help_panel=SPEED,
        help="Closed loops: callers at a time, each calling again when it is answered. '' "
        "leaves them out.",
    ),
]
Rate = Annotated[
    str,
    typer.Option(
        rich_help_panel=SPEED,
        help="Open loops: requests a second, comma-separated; latency counts from the moment "
        "a request was due.",
    ),
]
ConstantRate = Annotated[
    bool,
    typer.Option(
        rich_help_panel=SPEED, help="Requests of open loops come evenly, not as a Poisson process."
    ),
]
Stages = Annotated[
    bool,
    typer.Option(
        rich_help_panel=SPEED, help="Also time reading, decoding, preprocessing, engine and head."
    ),
]
ColdStart = Annotated[
    bool,
    typer.Option(
        rich_help_panel=SPEED, help="Also measure fresh processes: cold start, matrix products."
    ),
]

# where it runs

Threads = Annotated[int, typer.Option(rich_help_panel=ENGINE, min=0, help="0: one for every core.")]
Engine = Annotated[str, typer.Option(rich_help_panel=ENGINE, help="auto, or an engine's name.")]
Device = Annotated[str, typer.Option(rich_help_panel=ENGINE, help="cpu, or cuda.")]

# reports

Output = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=REPORTS,
        help="Folder for bench.json, report.html and report.md, which replace older ones.",
    ),
]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        rich_help_panel=REPORTS,
        help="Measure nothing: say what changed from one report to the other.",
    ),
]
