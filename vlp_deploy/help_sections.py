"""A verb's options become a help text in sections, as their `rich_help_panel` says."""

from typing import Any

from typer.core import TyperCommand

FIRST = "Options"  # of those without a panel


class SectionedCommand(TyperCommand):
    """Typer's command with its plain help, which knows no panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options without a section, then section after section as they first occur."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], FIRST: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                title = "Arguments"
            else:
                title = getattr(parameter, "rich_help_panel", None) or FIRST
            sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
