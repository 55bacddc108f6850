"""`vlp classify`: pictures from files, archives and tables to a line of answer each, torch-free."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlp_deploy.bulk.reading import READ_THREADS
from vlp_deploy.bulk.request import Request, Source, Targets
from vlp_deploy.commands.classify_run import run_request
from vlp_deploy.images.limits import MAX_BYTES, MAX_PIXELS, SECONDS, Limits
from vlp_deploy.question import BATCH_SIZE, Question

MEGABYTE = 1_000_000
LABELS, RESULTS = "Which labels", "Where results go"
SPEED, LIMITS = "Engine and speed", "Limits of one file"


class Format(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Images, folders to search, .tar and .zip archives, .parquet tables; - for a list "
            "of paths on stdin."
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(help="New classes: a UTF-8 file, one a line, synonyms separated by tabs."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder. Default: $VLP_BUNDLE, else the embedded.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates to name for every image.")] = 5,
    reject: Annotated[
        bool,
        typer.Option(
            "--reject",
            rich_help_panel=LABELS,
            help="No label for images that look like none of the classes: below the threshold that "
            "`vlp calibrate --unknown` fitted.",
        ),
    ] = False,
    reject_below: Annotated[
        float | None,
        typer.Option(min=0, max=1, rich_help_panel=LABELS, help="The same below this probability."),
    ] = None,
    multi_label: Annotated[
        bool,
        typer.Option(
            "--multi-label",
            rich_help_panel=LABELS,
            help="All labels that reach the thresholds which `vlp calibrate --multi-label` fitted.",
        ),
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option(rich_help_panel=RESULTS, help="Default: by the name of --output, else table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="Write here instead of to stdout. A .jsonl or .csv file or a .parquet folder that "
            "was left unfinished is continued by typing the same command again.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=RESULTS, help="Begin --output and --embeddings anew."
        ),
    ] = False,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="Also write image embeddings: .npy, or .parquet for a folder of parts.",
        ),
    ] = None,
    copy_to: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESULTS,
            metavar="DIR/{label}",
            help="Also copy every image into the folder of its label. Nothing is replaced.",
        ),
    ] = None,
    symlink: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESULTS,
            metavar="DIR/{label}",
            help="The same with symbolic links; images inside archives and tables are copied.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="At the end, also write a page of thumbnails by label, to look at offline.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Classify what is in the folders and then what arrives there, until Ctrl-C.",
        ),
    ] = False,
    exact_decode: Annotated[
        bool,
        typer.Option(
            "--exact-decode", rich_help_panel=SPEED, help="Decode JPEG in full; slower on photos."
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(rich_help_panel=SPEED, help="auto, onnx, openvino or fake.")
    ] = "auto",
    device: Annotated[str, typer.Option(rich_help_panel=SPEED, help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=0, rich_help_panel=SPEED, help="0: the engine's own choice.")
    ] = 0,
    read_threads: Annotated[
        int, typer.Option(min=1, rich_help_panel=SPEED, help="Threads that read images.")
    ] = (READ_THREADS),
    batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel=SPEED, help="Images the engine gets at once.")
    ] = (BATCH_SIZE),
    ray: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED,
            metavar="local|ADDRESS",
            help="Let a Ray cluster classify: one made here, or the one at the address.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt with {} for the names in --classes; repeat it to average several."
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, rich_help_panel=LIMITS, help="An image with more is an error.")
    ] = MAX_PIXELS,
    max_memory: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=LIMITS,
            help="Megabytes that decoding may take, of all images at once.",
        ),
    ] = MAX_BYTES // MEGABYTE,
    timeout: Annotated[
        float,
        typer.Option(
            min=0, rich_help_panel=LIMITS, help="Seconds to read an image, 0 for any time."
        ),
    ] = SECONDS,
) -> int:
    """Classify images and give one line for each, in the order they were named.

    In folders every file counts that is named like an image or begins like one. Results go to
    stdout, the rest to stderr. Exit code 1 if an input could not be classified.
    """
    limits = Limits(max_pixels=max_pixels, max_bytes=max_memory * MEGABYTE, seconds=timeout or None)
    request = Request(
        images=tuple(images),
        source=Source(
            bundle=bundle,
            engine=engine,
            device=device,
            threads=threads or None,
            classes=classes,
            templates=tuple(template) if template else None,
        ),
        question=Question(
            top_k=top_k,
            batch_size=batch_size,
            exact_decode=exact_decode,
            limits=limits,
            multi_label=multi_label,
            with_embeddings=embeddings is not None,
        ),
        targets=Targets(
            format=_format(format, output),
            output=output,
            embeddings=embeddings,
            copy_to=copy_to,
            symlink=symlink,
            html=html,
            force=force,
        ),
        reject=reject,
        reject_below=reject_below,
        read_threads=read_threads,
        watch=watch,
        ray=ray,
    )
    return run_request(request)


def _format(format: Format | None, output: Path | None) -> Format:
    """What was asked for, else what the output's name says, else a table."""
    by_name = output.suffix.removeprefix(".").lower() if output else ""
    return format or (Format(by_name) if by_name in set(Format) else Format.TABLE)
