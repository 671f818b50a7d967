"""The studio: a page over the pipelines, for a person. `i2vgen studio` starts it; only `page` imports Gradio."""
