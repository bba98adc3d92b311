"""Code that comes with a model: found before anything is loaded, and kept from running.

It provides: `named_code.find_own_code`, which finds the code that would run, from JSON and file
names only; and `guard.own_code_refused`, which keeps a model's code from running while the model is
loaded.

It must not know PyTorch or any library that loads models, and it imports none of them.
"""
