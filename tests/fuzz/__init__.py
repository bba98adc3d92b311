"""Two fuzzers: random edits of whole files through every verb, and atheris on what reads them."""
