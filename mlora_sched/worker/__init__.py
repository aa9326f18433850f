"""The process that holds the base, seen from both ends: the seam (`protocol`), its client side and a fake."""
