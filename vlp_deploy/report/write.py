"""A report becomes files that people open: `report.html` and `report.md`."""

from pathlib import Path

from vlp_deploy.files import write_atomic
from vlp_deploy.measuring.records import BenchReport
from vlp_deploy.report.markdown import markdown
from vlp_deploy.report.page import page
from vlp_deploy.report.quality import quality_figures
from vlp_deploy.report.speed import speed_figures
from vlp_deploy.report.thumbnails import thumbnails

PAGE_FILE, TEXT_FILE = "report.html", "report.md"


def write_pages(report: BenchReport, folder: Path) -> None:
    """Put both files into a folder; older ones are replaced."""
    figures = [*quality_figures(report), *speed_figures(report)]
    mistakes = report.findings.mistakes if report.findings else ()
    pictures = thumbnails(
        path for each in mistakes for path in (each.truth_example, each.answer_example) if path
    )
    write_atomic(folder / PAGE_FILE, page(report, figures, pictures).encode())
    write_atomic(folder / TEXT_FILE, markdown(report, figures).encode())
