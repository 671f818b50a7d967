"""Does the video move as its prompt says, on photos that the model has never seen?

    python benchmarks/motion.py --photos PHOTOS --captions captions.jsonl --out runs/motion

Writes OUT/motion.json (every clip; a second run goes on where the first stopped) and OUT/motion.md (table).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from i2vgen.evaluate.suite import KIND_GROUPS, expand_kinds, find_photos, plan_items, run_suite, write_text
from i2vgen.evaluate.summary import summarize, to_markdown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds_help = f"groups ({', '.join(KIND_GROUPS)}) or single motions such as pan-left"
    parser.add_argument("--photos", type=Path, required=True, help="folder of .jpg and .png files")
    parser.add_argument("--captions", type=Path, help="JSONL with the keys file and caption")
    parser.add_argument("--out", type=Path, required=True, help="folder for motion.json and motion.md")
    parser.add_argument("--model", default="nano", help="nano, or the folder of a cascade")
    parser.add_argument("--kinds", nargs="+", default=["pans", "tilts", "zooms", "static"], help=kinds_help)
    parser.add_argument("--wordings", choices=("seen", "held-out", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, counted from 0")
    parser.add_argument("--limit", type=int, help="use only the first so many photos")
    parser.add_argument("--no-refine", action="store_true", help="base stage only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    photos = dict(list(find_photos(args.photos, args.captions).items())[: args.limit])
    items = plan_items(photos, expand_kinds(args.kinds), args.seeds, args.wordings)

    from i2vgen.media import load_image
    from i2vgen.pipelines import load_cascade

    cascade = load_cascade(args.model, device=args.device, dtype=args.dtype)

    def generate(photo: Path, prompt: str, seed: int) -> np.ndarray:
        return cascade(load_image(photo), prompt, seed=seed, refine=not args.no_refine).frames[0]

    settings = {
        "model": args.model,
        "refine": not args.no_refine,
        "device": args.device,
        "dtype": str(cascade.unet.dtype).removeprefix("torch."),  # what "auto" came to
    }
    results = run_suite(generate, items, args.out / "motion.json", settings)
    summary = summarize(results)
    table = to_markdown(summary)
    write_text(args.out / "motion.md", table)
    print(table)
    return 1 if summary["num_errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
