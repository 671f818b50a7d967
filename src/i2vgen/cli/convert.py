"""`i2vgen convert`: released checkpoints into diffusers folders, and back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import Progress, print_json, readable_bytes, readable_seconds

CONVERSION = "The conversion"


class Layout(str, Enum):
    diffusers = "diffusers"
    vgen = "vgen"


class KeptDtype(str, Enum):
    keep = "keep"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


def convert(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint file, or a folder: ModelScope's, VGen's, or one in diffusers layout.",
            show_default=False,
        ),
    ],
    dst: Annotated[
        str,
        typer.Argument(metavar="DST", help="The folder to write, or the .pth with --to vgen.", show_default=False),
    ],
    to: Annotated[
        Layout,
        typer.Option("--to", help="diffusers or vgen. \\[diffusers]", rich_help_panel=CONVERSION, show_default=False),
    ] = Layout.diffusers,
    dtype: Annotated[
        KeptDtype,
        typer.Option(
            "--dtype",
            help="keep, float16, bfloat16, float32. \\[keep]",
            rich_help_panel=CONVERSION,
            metavar="NAME",
            show_default=False,
        ),
    ] = KeptDtype.keep,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="For a refiner whose keys leave it open: vgen-sr600 or modelscope-vid2vid.",
            rich_help_panel=CONVERSION,
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            help="Split larger weights into files of at most so much. \\[10GB]",
            rich_help_panel=CONVERSION,
            metavar="SIZE",
            show_default=False,
        ),
    ] = "10GB",
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Replace a model that is at DST.", rich_help_panel=o.OUTPUT),
    ] = False,
    json: o.Json = False,
) -> None:
    """Convert released weights to a diffusers folder, or a diffusers UNet to VGen's .pth.

    Tensor by tensor, so that a large file needs little memory; every tensor is compared with the source afterwards.

    Examples:

      i2vgen convert ./damo/Image-to-Video ./image2video

      i2vgen convert i2vgen_xl_00854500.pth ./unet --dtype float16

      i2vgen convert pytorch_model.pth ./refiner-unet --source modelscope-vid2vid

      i2vgen convert ./i2vgen-xl/unet i2vgen_xl.pth --to vgen
    """
    from i2vgen.cli.sources import quiet_libraries

    quiet_libraries()  # before transformers is imported further, which warns
    from i2vgen.batch.interrupts import terminate_as_interrupt
    from i2vgen.checkpoints.convert import convert as convert_checkpoint

    with terminate_as_interrupt(), Progress({"convert": 0, "verify": 0}, unit="B") as progress:
        done = convert_checkpoint(
            src,
            dst,
            to=to.value,
            force=force,
            progress=progress,
            dtype=dtype.value,
            source=source,
            max_shard_size=max_shard_size,
        )
    if json:
        print_json(
            {
                "output": str(done.path),
                "source": str(Path(src).expanduser().resolve()),
                "kind": done.found.kind,
                "variant": done.found.variant,
                "to": to.value,
                "networks": done.networks,
                "bytes": done.size,
                "seconds": round(done.seconds, 2),
                "left_out": done.left_out,
            }
        )
        return
    tensors = ", ".join(f"{name} {count}" for name, count in done.networks.items())
    print(f"{done.path}: {done.found.label}")
    print(
        f"{readable_bytes(done.size)}, tensors: {tensors}; all compared with the source, "
        f"in {readable_seconds(done.seconds)}"
    )
    for part in done.left_out:
        print(f"not converted: {part}")
