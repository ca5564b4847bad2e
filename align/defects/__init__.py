"""How often a policy's replies have severe defects by a judge, and how far to trust it."""
