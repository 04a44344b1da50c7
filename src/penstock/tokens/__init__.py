"""Signed tokens of others: the keys of their issuers, and who a token is by them."""
