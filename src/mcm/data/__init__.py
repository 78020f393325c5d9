"""Data: films, pictures and prompts in; films and contact sheets out; streams that resume; latents kept on
disk.

Nothing is imported here, so that a verb pays only for the readers it uses: `sources` (folders, tables,
prompts), `video` (decode, encode), `stream` (resume, ranks), `cache` (latents).
"""
