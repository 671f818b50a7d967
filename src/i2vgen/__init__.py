"""I2VGen-XL: a still image and a line of text become a video, in two stages."""

__version__ = "0.1.0"
