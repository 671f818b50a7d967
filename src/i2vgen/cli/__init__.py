"""The command line: `i2vgen generate photo.jpg "the camera pans left" -o video.mp4`."""

from i2vgen.cli.app import app, main

__all__ = ["app", "main"]
