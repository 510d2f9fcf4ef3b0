"""Changing a fact: the second moment C, the value v*, and the methods that make an update of them."""
