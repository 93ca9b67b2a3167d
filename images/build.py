"""`python -m images.build`: build the container images, those alone whose content has changed."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from e2e.cluster.run import ClusterError

from .builders import KEY_LABEL, Builder, BuildError, choose
from .catalog import DEFAULT, IMAGES, ROOT, Image, content_key


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m images.build", description=__doc__)
    top.add_argument(
        "--only", action="append", choices=sorted(IMAGES), metavar="NAME",
        help=f"this image ({', '.join(IMAGES)}); may be repeated; otherwise {', '.join(DEFAULT)}",
    )  # fmt: skip
    top.add_argument("--tag", default="dev", help="tag of the images rljob/NAME (default: %(default)s)")
    top.add_argument("--load", action="store_true", help="put them on the node of the e2e cluster too")
    top.add_argument("--force", action="store_true", help="build even when nothing has changed")
    top.add_argument("--builder", choices=("buildah", "podman", "docker"), help="otherwise the first one found")
    top.add_argument("--base-image", help="Debian image with Python 3.12 or 3.13 (for `trainer`: with CUDA's toolkit)")
    top.add_argument("--torch-index", default="", metavar="URL", help="index with CPU builds of torch, for trainer-cpu")
    return top


def revision() -> str:
    """The commit checked out, or `unknown` outside a git checkout."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.strip() or "unknown"


def arguments_of(image: Image, options: argparse.Namespace, builder: Builder) -> dict[str, str]:
    """Build arguments that decide the content."""
    arguments: dict[str, str] = {}
    if options.base_image:
        arguments["BASE_IMAGE"] = options.base_image
    elif not image.needs_gpu_base:
        arguments["BASE_IMAGE"] = builder.default_base()
    if image.name == "trainer-cpu" and options.torch_index:
        arguments["TORCH_INDEX"] = options.torch_index
    return arguments


def build(image: Image, options: argparse.Namespace, builder: Builder) -> str:
    """Build one image unless the one in storage has the same content; a line on what was done."""
    started = time.monotonic()
    reference = image.reference(options.tag)
    arguments = arguments_of(image, options, builder)
    key = content_key(image, arguments)
    if not options.force and (builder.labels(reference) or {}).get(KEY_LABEL) == key:
        done = "unchanged"
    else:
        notes = {"VERSION": options.tag, "REVISION": revision(), "CONTENT_KEY": key}
        builder.build(image.containerfile, reference, arguments | notes)
        done = "built"
    if options.load:
        builder.load(reference)
    size = builder.size(reference) / 1e6
    return f"{reference}: {done}, {size:.0f} MB, {time.monotonic() - started:.1f} s"


def main(words: list[str] | None = None) -> int:
    """Run; the exit code."""
    options = parser().parse_args(words)
    try:
        builder = choose(options.builder, install=options.load)
        for name in dict.fromkeys(options.only or DEFAULT):
            print(build(IMAGES[name], options, builder), flush=True)
    except (BuildError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
