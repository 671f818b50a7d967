"""Replays of numbers recorded from the original code: `python -m i2vgen.parity FOLDER`.

A golden folder has one folder a group (networks, samplers, ...), each with tensors and with JSON that says how the
original was called. Everything here is driven by that JSON, so that other cases of the same layout can be replayed.
"""
