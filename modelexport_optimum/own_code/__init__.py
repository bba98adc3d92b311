"""Code that comes with a model: seen before anything is loaded, and kept from running.

It gives to others: `named_code.find_own_code`, which reads from JSON and file names alone what
would run; and `guard.own_code_refused`, which keeps a model's code from running while the model
is loaded.

It must not know PyTorch or any library that loads models, and it imports none of them.
"""
