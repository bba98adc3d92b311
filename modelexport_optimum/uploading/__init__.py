"""A finished export and the Hugging Face Hub: its model card, and its upload.

It gives to others: `model_card`, which writes a card of an export, and knows one again; and
`upload.push`, which uploads a directory and says what became of it.

It must not know how an export is made, checked or published, Typer, or batches. The names in a
card come from anybody's model, and are data there.
"""
