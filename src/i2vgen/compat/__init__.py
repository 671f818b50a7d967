"""Other packages' interfaces on our pipelines, so that their published examples run."""
