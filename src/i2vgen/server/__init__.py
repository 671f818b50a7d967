"""The video service: an HTTP API in the shape of OpenAI's Videos API, a durable queue, and workers."""
