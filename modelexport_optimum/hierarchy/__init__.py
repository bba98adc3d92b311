"""Looking at the hierarchy: what people do with the tags of an exported model.

Each view is a function and a command of the same name, and works from the tagged `.onnx`
file alone: nothing here imports torch or transformers, and of the package only the tag's
reader (`carriers`), the file's (`onnx_file`) and `errors`. `tagged` is what the views share.
"""
