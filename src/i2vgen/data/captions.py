"""Words for motions. The convention: the words say what the camera does, so "pans left" moves content right."""

from __future__ import annotations

import numpy as np

# motion name -> phrases; "{speed}" is replaced by an adverb or dropped
CAMERA_PHRASES = {
    "pan-left": [
        "the camera {speed} pans left",
        "the camera pans {speed} to the left",
        "camera pans left {speed}",
        "{speed} pan left",
        "panning {speed} to the left",
        "the camera moves left {speed}",
        "the view pans left {speed}",
        "a {speed} leftward pan",
    ],
    "tilt-up": [
        "the camera {speed} tilts up",
        "the camera tilts {speed} upward",
        "camera tilts up {speed}",
        "{speed} tilt up",
        "tilting {speed} upwards",
        "the camera moves up {speed}",
        "the view tilts up {speed}",
    ],
    "zoom-in": [
        "the camera {speed} zooms in",
        "camera zooms in {speed}",
        "{speed} zoom in",
        "zooming {speed} in",
        "the camera {speed} pushes in",
        "the camera moves closer {speed}",
        "the view {speed} zooms in",
        "{speed} push in",
    ],
    "zoom-out": [
        "the camera {speed} zooms out",
        "camera zooms out {speed}",
        "{speed} zoom out",
        "zooming {speed} out",
        "the camera {speed} pulls back",
        "the camera moves away {speed}",
        "the view {speed} zooms out",
        "{speed} pull out",
    ],
    "roll-clockwise": [
        "the camera {speed} rolls clockwise",
        "camera rolls clockwise {speed}",
        "{speed} roll clockwise",
        "rolling {speed} clockwise",
        "the camera {speed} rotates clockwise",
    ],
    "static": [
        "the camera does not move",
        "static camera",
        "static shot",
        "the camera stays still",
        "a still shot",
        "the camera is static",
        "fixed camera",
        "nothing moves",
        "locked off shot",
    ],
}


def _mirrored(phrases: list[str], words: dict[str, str]) -> list[str]:
    result = []
    for phrase in phrases:
        for word, other in words.items():
            phrase = phrase.replace(word, other)
        result.append(phrase)
    return result


CAMERA_PHRASES["pan-right"] = _mirrored(CAMERA_PHRASES["pan-left"], {"left": "right"})
CAMERA_PHRASES["tilt-down"] = _mirrored(CAMERA_PHRASES["tilt-up"], {"up": "down"})
CAMERA_PHRASES["roll-counterclockwise"] = _mirrored(CAMERA_PHRASES["roll-clockwise"], {"clockwise": "counterclockwise"})

SPEED_WORDS = {"slow": ["slowly", "gently", "slow"], "normal": [""], "fast": ["quickly", "fast", "rapidly"]}

OBJECT_VERBS = {
    "bird": ["flies", "moves", "glides"],
    "aircraft": ["flies", "moves"],
    "insect": ["crawls", "moves", "flies"],
    "fish": ["swims", "moves"],
    "vehicle": ["drives", "moves", "rolls"],
    "boat": ["sails", "moves"],
    "ball": ["rolls", "moves", "flies"],
    "animal": ["walks", "moves", "runs"],
}
KIND_NOUNS = {
    "bird": ["a bird", "the bird"],
    "aircraft": ["a plane", "an aircraft", "the plane"],
    "insect": ["an insect", "the insect"],
    "fish": ["a fish", "the fish"],
    "vehicle": ["a car", "a vehicle", "the car"],
    "boat": ["a boat", "the ship"],
    "ball": ["a ball", "a balloon", "the ball"],
    "animal": ["an animal", "the animal"],
}
DIRECTION_VECTORS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIRECTION_PHRASES = {
    "left": ["to the left", "left", "from right to left", "leftwards"],
    "right": ["to the right", "right", "from left to right", "rightwards"],
    "up": ["up", "upwards", "to the top"],
    "down": ["down", "downwards", "to the bottom"],
}
AMBIENT_PHRASES = {
    "snow": ["snow falls", "falling snow", "snowflakes drift down", "it is snowing"],
    "rain": ["rain falls", "it is raining", "falling rain", "heavy rain"],
    "fog": ["fog drifts by", "drifting mist", "clouds of fog move past", "mist rolls through"],
    "flicker": ["the light flickers", "flickering light", "the lights flicker"],
    "sway": ["swaying in the wind", "everything sways in the wind", "it sways gently", "the wind moves it"],
}


def camera_phrase(name: str, speed: str, rng: np.random.Generator) -> str:
    phrase = str(rng.choice(CAMERA_PHRASES[name]))
    word = str(rng.choice(SPEED_WORDS[speed]))
    return " ".join(phrase.replace("{speed}", word).split())


def object_phrase(name: str, kind: str, direction: str, speed: str, rng: np.random.Generator) -> str:
    """ "a red car drives quickly to the left", or the kind of thing in place of its name"""
    subject = str(rng.choice(KIND_NOUNS.get(kind, ["it", "the thing"]))) if rng.random() < 0.35 else name
    verb = str(rng.choice(OBJECT_VERBS.get(kind, ["moves", "slides"])))
    where, word = str(rng.choice(DIRECTION_PHRASES[direction])), str(rng.choice(SPEED_WORDS[speed]))
    parts = [subject, verb, where, word] if rng.random() < 0.5 else [subject, verb, word, where]
    return " ".join(part for part in parts if part)


def join_caption(subject: str, motion: str, rng: np.random.Generator) -> str:
    """Put subject and motion together in one of the orders that people write, or give the motion alone."""
    style = rng.random()
    if style < 0.3:
        return motion
    if style < 0.6:
        return f"{subject}, {motion}"
    if style < 0.8:
        return f"{motion}, {subject}"
    if style < 0.9:
        return f"{subject} while {motion}"
    return f"{subject}. {motion}"
