"""Build the documentation site, or serve it: `python -m docs build`, `python -m docs serve`.

Serving starts within seconds and draws no figures: those that are not there have a placeholder
with their command. Building draws them first, which trains thousands of networks.
"""

import argparse
import importlib.util
import os
import subprocess
import sys

from docs import figures


def main() -> int:
    """Draw the figures that a build lacks, then run MkDocs; every warning is an error."""
    parser = argparse.ArgumentParser("python -m docs", description=__doc__)
    parser.add_argument("command", choices=("build", "serve"))
    parser.add_argument(
        "--no-figures",
        action="store_true",
        help="Build within seconds, with placeholders for the figures that are not there.",
    )
    parser.add_argument("--redraw", action="store_true", help="Draw all figures anew.")
    parser.add_argument("--site-dir", help="Where to build the site, build/site by default.")
    options = parser.parse_args()
    if options.redraw and options.no_figures:
        parser.error("--redraw and --no-figures exclude each other; pass one of them")
    serve = options.command == "serve"
    if serve and (options.site_dir or options.redraw):
        parser.error("--site-dir and --redraw are options of build; leave them out")
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "jupytext"):
        if importlib.util.find_spec(module) is None:
            parser.error(f"{module} is not installed: python -m pip install -e '.[docs]'")
    if not (serve or options.no_figures):
        figures.draw(options.redraw)
    command = [sys.executable, "-m", "mkdocs", options.command, "--strict"]
    if options.site_dir:
        command += ["--site-dir", options.site_dir]
    # A notice about other software is no part of the build.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=figures.ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
