"""The three-stage post-train: SFT in ChatML, DPO on pivotal tokens, DPO on full-length pairs.

Command line: `align run phi-nano`. From Python: `align.pipeline.recipe.load_recipe`,
`align.pipeline.run`.
"""
