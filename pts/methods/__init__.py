"""The searches, as generators that never see a model: start with `pts.methods.question`."""
