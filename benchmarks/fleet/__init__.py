"""How a fleet behaves before it is bought: the real batching and admission rules in virtual time."""
