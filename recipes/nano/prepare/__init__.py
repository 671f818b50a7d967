"""nano's training pack, made again from ordinary packages: `python recipes/nano/prepare OUT_DIR`."""
