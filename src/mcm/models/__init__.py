"""Networks: the teachers' families, the student on a teacher's weights, and the frame discriminator.

Nothing is imported here, so that a verb pays only for what it uses: `video` (the contract,
`load_video_model`), one module a family, `student`, `discriminator` with its `features` and `augment`, and
`folders` (reading of weights).
"""
