"""The upload of a finished export to the Hugging Face Hub, and its model card.

It provides: `model_card`, which writes the card of an export and recognizes its own cards; and
`upload.push`, which uploads a directory and returns the result.

It must not know how an export is made, checked or published, Typer, or batches. The names in a card
come from models of unknown authors, and are escaped.
"""
